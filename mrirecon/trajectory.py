"""Where in k-space a scan samples: the usual non-Cartesian trajectories, and the unit of one that came from a file."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from operators.decision import Decision
from operators.errors import InputError
from operators.nufft import Backend, NonUniformFourier, StackedNonUniformFourier

TrajectoryUnit = Literal["cycles-per-pixel", "radians-per-pixel", "index", "1/m"]

_GOLDEN_ANGLE_RAD = math.pi * (math.sqrt(5) - 1) / 2  # 111.25°
_GOLDEN_MEANS = (0.4655712318767680, 0.6823278038280193)  # v² and v, with v³ + v = 1
_LARGEST_FLOAT32 = 3.1415925  # the largest float32 below π; the next one is above
_ROUNDING = 1e-4  # how far a file may pass a limit by rounding: 3.1416 is π


def radial(n_spokes: int, n_samples: int, *, golden: bool = False, n_dims: int = 2) -> torch.Tensor:
    """Straight readouts through the centre of k-space.

    Sample i of a spoke lies at the signed radius 2π (i − n_samples//2)/n_samples, so that sample n_samples//2 is the
    centre. Spoke s of a 2-D scan has the direction (ky, kx) = (sin φ, cos φ) with φ = π s/n_spokes, or
    φ = s π (√5 − 1)/2 (111.25° further with every spoke) for the golden angle. The spokes of a 3-D scan always follow
    the golden means: kz = (s v²) mod 1 and the azimuth 2π ((s v) mod 1), with v³ + v = 1.

    Parameters
    ----------
    n_spokes
        Number of readouts.
    n_samples
        Number of samples of each, at least 2.
    golden
        Golden-angle order instead of equal angles; 3-D spokes ignore it.
    n_dims
        2, or 3 for a kooshball.

    Returns
    -------
    torch.Tensor
        Float32 ``(n_spokes * n_samples, n_dims)`` in radians per pixel, spoke after spoke, axes ``([kz,] ky, kx)``.

    Raises
    ------
    ValueError
        If a count is too small or ``n_dims`` is neither 2 nor 3.

    References
    ----------
    "An optimal radial profile order based on the golden ratio for time-resolved MRI", 2007 (2-D);
    "Temporal stability of adaptive 3D radial MRI using multidimensional golden means", 2009 (3-D).

    Examples
    --------
    >>> radial(3, 4).shape
    torch.Size([12, 2])
    """
    _require(n_spokes=(n_spokes, 1), n_samples=(n_samples, 2))
    if n_dims not in (2, 3):
        raise ValueError(f"n_dims is {n_dims}; expected 2 or 3.")
    spoke = torch.arange(n_spokes, dtype=torch.float64)
    if n_dims == 3:
        direction = _golden_means_directions(spoke)
    else:
        angle_rad = spoke * (_GOLDEN_ANGLE_RAD if golden else math.pi / n_spokes)
        direction = torch.stack((angle_rad.sin(), angle_rad.cos()), -1)
    return _as_trajectory(_centred_positions(n_samples)[:, None] * direction[:, None, :])


def spiral(n_interleaves: int, n_samples: int, n_turns: float, *, density: float = 1.0) -> torch.Tensor:
    """Spirals from the centre outwards, rotated copies of one arm.

    (kx, ky) = π τ^density (cos φ, sin φ) with φ = 2π (n_turns τ + interleaf/n_interleaves). With ``density`` 1 the
    spiral is Archimedean: its turns are equally far apart, and k-space is fully sampled for an image of n pixels when
    n_interleaves · n_turns ≥ n/2. The samples of an arm are equally far apart along it, at i/n_samples of its length,
    as with a gradient at its largest amplitude.

    Parameters
    ----------
    n_interleaves
        Number of arms.
    n_samples
        Number of samples of each, at least 2.
    n_turns
        Turns of each arm, positive.
    density
        Exponent of the radius, positive: above 1 the centre of k-space is sampled more densely than the edge.

    Returns
    -------
    torch.Tensor
        Float32 ``(n_interleaves * n_samples, 2)`` in radians per pixel, interleaf after interleaf, axes ``(ky, kx)``.

    Raises
    ------
    ValueError
        If a count is too small, or ``n_turns`` or ``density`` is not positive and finite.

    Examples
    --------
    >>> spiral(4, 100, 8).shape
    torch.Size([400, 2])
    """
    _require(n_interleaves=(n_interleaves, 1), n_samples=(n_samples, 2))
    for name, value in (("n_turns", n_turns), ("density", density)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; expected a positive, finite number.")
    progress = _at_equal_lengths(n_samples, n_turns, density)
    start = torch.arange(n_interleaves, dtype=torch.float64)[:, None] / n_interleaves
    return _as_trajectory(_polar(math.pi * progress**density, 2 * math.pi * (n_turns * progress + start)))


def rosette(n_shots: int, n_samples: int, n_oscillations: int, n_rotations: int) -> torch.Tensor:
    """Petals through the centre of k-space: the radius oscillates while its direction turns.

    (kx, ky) = π sin(2π n_oscillations t) (cos φ, sin φ) with φ = 2π (n_rotations t + shot/(2 n_oscillations n_shots))
    and t = i/n_samples. One shot has 2 n_oscillations petals; the shots fill the gaps between them evenly.

    Parameters
    ----------
    n_shots
        Number of excitations.
    n_samples
        Number of samples of each, at least 2.
    n_oscillations
        Oscillations of the radius during one shot.
    n_rotations
        Turns of the direction during one shot.

    Returns
    -------
    torch.Tensor
        Float32 ``(n_shots * n_samples, 2)`` in radians per pixel, shot after shot, axes ``(ky, kx)``.

    Raises
    ------
    ValueError
        If a count is too small, or some petals of a shot would coincide.

    References
    ----------
    "Multishot rosette trajectories for spectrally selective MR imaging", 1997.

    Examples
    --------
    >>> rosette(4, 200, 3, 2).shape
    torch.Size([800, 2])
    """
    _require(
        n_shots=(n_shots, 1),
        n_samples=(n_samples, 2),
        n_oscillations=(n_oscillations, 1),
        n_rotations=(n_rotations, 1),
    )
    n_petals = 2 * n_oscillations
    # Petal m points at the angle 2π m (n_rotations + n_oscillations) / n_petals, up to a constant.
    if math.gcd(n_rotations + n_oscillations, n_petals) != 1:
        raise ValueError(
            f"With {n_oscillations} oscillations and {n_rotations} rotations some of the {n_petals} petals coincide; "
            f"choose them such that their sum shares no factor with {n_petals}."
        )
    time = _unit_time(n_samples)
    start = torch.arange(n_shots, dtype=torch.float64)[:, None] / (n_petals * n_shots)
    radius = math.pi * torch.sin(2 * math.pi * n_oscillations * time)
    return _as_trajectory(_polar(radius, 2 * math.pi * (n_rotations * time + start)))


def stack_of_stars(n_partitions: int, n_spokes: int, n_samples: int, *, golden: bool = False) -> torch.Tensor:
    """The same radial scan in every Cartesian partition kz = 2π (partition − n_partitions//2)/n_partitions.

    Parameters
    ----------
    n_partitions
        Number of positions along kz.
    n_spokes, n_samples, golden
        The scan in the plane, see `radial`.

    Returns
    -------
    torch.Tensor
        Float32 ``(n_partitions * n_spokes * n_samples, 3)`` in radians per pixel, partition after partition and in
        each spoke after spoke, axes ``(kz, ky, kx)``.

    Raises
    ------
    ValueError
        If a count is too small.

    Examples
    --------
    >>> stack_of_stars(2, 3, 4).shape
    torch.Size([24, 3])
    """
    _require(n_partitions=(n_partitions, 1))
    plane = radial(n_spokes, n_samples, golden=golden).double()
    kz = _centred_positions(n_partitions)
    return _as_trajectory(torch.cat((kz.repeat_interleave(len(plane))[:, None], plane.repeat(n_partitions, 1)), -1))


def epi(n_lines: int, n_samples: int, *, n_shots: int = 1) -> torch.Tensor:
    """Cartesian lines read alternately forwards and backwards after one excitation.

    The samples are those of the Cartesian grid, 2π (i − n//2)/n along each axis. Shot s reads the lines s,
    s + n_shots, s + 2 n_shots …; the first of each is read towards positive kx.

    Parameters
    ----------
    n_lines
        Number of phase-encoding lines.
    n_samples
        Number of samples of each, at least 2.
    n_shots
        Number of excitations, at most ``n_lines``.

    Returns
    -------
    torch.Tensor
        Float32 ``(n_lines * n_samples, 2)`` in radians per pixel, shot after shot and in each line after line, axes
        ``(ky, kx)``.

    Raises
    ------
    ValueError
        If a count is too small, or there are more shots than lines.

    Examples
    --------
    >>> epi(2, 2)[:, 1]
    tensor([-3.1416,  0.0000,  0.0000, -3.1416])
    """
    _require(n_lines=(n_lines, 1), n_samples=(n_samples, 2), n_shots=(n_shots, 1))
    if n_shots > n_lines:
        raise ValueError(f"{n_shots} shots cannot share {n_lines} lines; give at most one shot per line.")
    ky, kx = _centred_positions(n_lines), _centred_positions(n_samples)
    shots = [torch.arange(shot, n_lines, n_shots) for shot in range(n_shots)]
    lines = [
        torch.stack((ky[line].expand(n_samples), kx.flip(0) if i % 2 else kx), -1)
        for shot in shots
        for i, line in enumerate(shot)
    ]
    return _as_trajectory(torch.stack(lines))


def as_stack(trajectory: torch.Tensor, image_shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Recognise a three-dimensional scan that repeats one plane in Cartesian partitions, partition after partition.

    Parameters
    ----------
    trajectory
        Real, ``(sample, 3)``, radians per pixel, axes ``(kz, ky, kx)``.
    image_shape
        Pixels of the image, ``(z, y, x)``.

    Returns
    -------
    tuple of torch.Tensor or None
        The plane ``(sample of a partition, 2)`` and the index of each measured partition on the grid of kz, int64, in
        the order of the samples; ``None`` if this is no such scan.

    Examples
    --------
    >>> plane, partitions = as_stack(stack_of_stars(2, 3, 4), (2, 4, 4))
    >>> plane.shape, partitions
    (torch.Size([12, 2]), tensor([0, 1]))
    """
    n_z = image_shape[0]
    kz = trajectory[:, 0].double() * (n_z / (2 * math.pi))
    index = kz.round()
    n_partitions = 1 + int((index.diff() != 0).sum())
    if len(trajectory) % n_partitions or bool(((kz - index).abs() > _ROUNDING).any()):
        return None
    index = index.reshape(n_partitions, -1)
    planes = trajectory[:, 1:].reshape(n_partitions, -1, 2)
    partitions = (index[:, 0].long() + n_z // 2) % n_z
    alike = bool((index == index[:, :1]).all()) and bool(((planes - planes[0]).abs() < _ROUNDING).all())
    return (planes[0], partitions) if alike else None


def non_uniform_fourier(
    trajectory: torch.Tensor, image_shape: Sequence[int], *, n_coils: int, accuracy: float
) -> NonUniformFourier | StackedNonUniformFourier:
    """The transform of a scan along a trajectory; of a plane in every partition where it is a stack.

    In three dimensions FINUFFT makes it where that is installed and the trajectory is on the CPU: it is faster there.

    Parameters
    ----------
    trajectory
        Real, ``(*batch, sample, dim)``, radians per pixel, axes ``([kz,] ky, kx)``.
    image_shape
        Pixels of the image, ``([z,] y, x)``.
    n_coils
        Number of coils.
    accuracy
        Relative error that is asked for.
    """
    stack = as_stack(trajectory, image_shape) if trajectory.ndim == 2 and len(image_shape) == 3 else None
    if stack is None:
        faster = len(image_shape) == 3 and trajectory.device.type == "cpu" and find_spec("finufft") is not None
        backend: Backend = "finufft" if faster else "gridding"
        return NonUniformFourier(trajectory, image_shape, n_coils=n_coils, accuracy=accuracy, backend=backend)
    plane, partitions = stack
    return StackedNonUniformFourier(plane, image_shape, partitions=partitions, n_coils=n_coils, accuracy=accuracy)


def in_radians_per_pixel(
    trajectory: torch.Tensor,
    image_shape: Sequence[int],
    fov_mm: Sequence[float] | None,
    *,
    unit: TrajectoryUnit | None = None,
) -> tuple[torch.Tensor, Decision]:
    """Convert a trajectory from a file, whose unit no format fixes, to radians per pixel.

    The unit is decided by the largest coordinate k, in this order: up to 0.5 it is cycles per pixel (× 2π), up to π
    radians per pixel, up to n/2 on every axis the index of a grid of n (× 2π/n), and beyond that 1/m
    (× 2π · field of view/n). A coordinate at +π, or past a limit by rounding, becomes the nearest number inside
    [−π, π).

    Parameters
    ----------
    trajectory
        Real, ``(*batch, sample, dim)``, axes in the order of ``image_shape``: (…, ky, kx).
    image_shape
        Pixels of the image, ``([z,] y, x)``.
    fov_mm
        Field of view of that image in mm, in the same order; only 1/m needs it.
    unit
        The unit, where it is known: nothing is decided then.

    Returns
    -------
    trajectory
        Float64, of the same shape, radians per pixel in [−π, π).
    decision
        The unit, with a warning if k-space is filled to less than half, where the decision is doubtful.

    Raises
    ------
    TypeError
        If the trajectory is not of floating-point numbers.
    ValueError
        If the shapes do not match, or the unit is unknown.
    operators.errors.InputError
        If the trajectory is empty, all zero or not finite, if it reaches beyond what the image can show, or if a field
        of view is needed and missing.

    Examples
    --------
    >>> k, decision = in_radians_per_pixel(torch.tensor([[-0.5, 0.0], [0.25, 0.0]]), (64, 64), None)
    >>> k[:, 0], decision.value
    (tensor([-3.1416,  1.5708], dtype=torch.float64), 'cycles-per-pixel')
    """
    _check_given(trajectory, image_shape, fov_mm, unit)
    reach = _reach(trajectory)
    known = unit is not None
    unit = unit or _decide_unit(reach, image_shape)
    scale = _radians_per_unit(unit, image_shape, fov_mm)
    reach_rad = reach * scale
    if bool((reach_rad > math.pi * (1 + _ROUNDING)).any()):
        needed = [
            math.ceil(n * float(r) / (math.pi * (1 + _ROUNDING))) for n, r in zip(image_shape, reach_rad, strict=True)
        ]
        raise InputError(
            f"The trajectory, read in {unit}, reaches {float(reach_rad.max()):.4g} rad per pixel, beyond π; "
            f"give another unit or field of view, or an image of at least {_by(needed)} pixels."
        )
    largest = math.nextafter(math.pi, 0)
    converted = (trajectory.double() * scale.to(trajectory.device)).clamp(-largest, largest)
    return converted, _decision(unit, known, float(reach.max()), float(reach_rad.max()))


def _check_given(
    trajectory: torch.Tensor, image_shape: Sequence[int], fov_mm: Sequence[float] | None, unit: str | None
) -> None:
    if not trajectory.is_floating_point():
        raise TypeError(f"The trajectory has dtype {trajectory.dtype}; expected real floating-point numbers.")
    n_dims = len(image_shape)
    if n_dims not in (2, 3) or min(image_shape) < 1:
        raise ValueError(f"image_shape is {tuple(image_shape)}; expected two or three positive sizes.")
    if trajectory.ndim < 2 or trajectory.shape[-1] != n_dims:
        raise ValueError(f"The trajectory has shape {tuple(trajectory.shape)}; expected (*batch, sample, {n_dims}).")
    if fov_mm is not None and len(fov_mm) != n_dims:
        raise ValueError(f"fov_mm has {len(fov_mm)} entries; expected {n_dims}, one per axis of the image.")
    if unit is not None and unit not in get_args(TrajectoryUnit):
        raise ValueError(f"The trajectory's unit is {unit!r}; expected one of {', '.join(get_args(TrajectoryUnit))}.")


def _reach(trajectory: torch.Tensor) -> torch.Tensor:
    """Largest absolute coordinate of each axis, float64 ``(dim,)``."""
    if not trajectory.numel() or not bool(trajectory.isfinite().all()):
        problem = "holds values that are not finite" if trajectory.numel() else "is empty"
        raise InputError(f"The trajectory {problem}; read the file again or give the trajectory separately.")
    reach = trajectory.detach().double().abs().flatten(0, -2).amax(0).cpu()
    if not bool(reach.any()):
        raise InputError(
            "The trajectory is zero everywhere, so the file does not say where its samples lie; "
            "ignore it for a Cartesian scan, or give the trajectory separately."
        )
    return reach


def _decide_unit(reach: torch.Tensor, image_shape: Sequence[int]) -> TrajectoryUnit:
    allowed = reach / (1 + _ROUNDING)
    if bool((allowed <= 0.5).all()):
        return "cycles-per-pixel"
    if bool((allowed <= math.pi).all()):
        return "radians-per-pixel"
    return "index" if bool((allowed <= torch.tensor(image_shape) / 2).all()) else "1/m"


def _radians_per_unit(unit: TrajectoryUnit, image_shape: Sequence[int], fov_mm: Sequence[float] | None) -> torch.Tensor:
    """Factor of each axis, float64 ``(dim,)``."""
    per_index = 2 * math.pi / torch.tensor(image_shape, dtype=torch.float64)
    if unit == "cycles-per-pixel":
        return torch.full_like(per_index, 2 * math.pi)
    if unit == "radians-per-pixel":
        return torch.ones_like(per_index)
    if unit == "index":
        return per_index
    if fov_mm is None or not all(size > 0 and math.isfinite(size) for size in fov_mm):
        raise InputError(
            f"The trajectory is in 1/m, which needs a positive field of view, but that is {fov_mm}; give the "
            "voxel size (--voxel-mm), or name another unit."
        )
    return per_index * torch.tensor(fov_mm, dtype=torch.float64) / 1000


def _decision(unit: TrajectoryUnit, known: bool, largest: float, largest_rad: float) -> Decision:
    filled = f"k-space is filled to {100 * largest_rad / math.pi:.3g} %"
    reason = f"Given; the largest coordinate is {largest:.4g}, {filled}."
    if not known:
        rule = {
            "cycles-per-pixel": "not above 0.5",
            "radians-per-pixel": "above 0.5 and not above π",
            "index": "above π and not above half the matrix",
            "1/m": "above half the matrix",
        }[unit]
        reason = f"The largest coordinate is {largest:.4g}, {rule}; {filled}."
    return Decision("trajectory_unit", unit, reason, "--trajectory-unit", warning=largest_rad < math.pi / 2)


def _golden_means_directions(spoke: torch.Tensor) -> torch.Tensor:
    """Unit vectors (z, y, x) on the upper half of the sphere, float64 ``(spoke, 3)``."""
    z = (spoke * _GOLDEN_MEANS[0]) % 1
    in_plane = _polar((1 - z.square()).sqrt(), 2 * math.pi * ((spoke * _GOLDEN_MEANS[1]) % 1))
    return torch.cat((z[:, None], in_plane), -1)


def _polar(radius: torch.Tensor, angle_rad: torch.Tensor) -> torch.Tensor:
    """(ky, kx) of polar coordinates, ``(*broadcast, 2)``."""
    return torch.stack((radius * angle_rad.sin(), radius * angle_rad.cos()), -1)


def _at_equal_lengths(n_samples: int, n_turns: float, density: float) -> torch.Tensor:
    """τ of the samples of a spiral arm; its length grows by π τ^(d − 1) √(d² + (2π n_turns τ)²) dτ."""
    # In u = τ^d, dτ τ^(d − 1) = du/d: the integrand stays finite at the centre.
    u = torch.linspace(0, 1, 64 * n_samples + 1, dtype=torch.float64)
    speed = (density**2 + (2 * math.pi * n_turns * u ** (1 / density)).square()).sqrt()
    length = torch.cumulative_trapezoid(speed, u)
    length = torch.cat((length.new_zeros(1), length / length[-1]))
    wanted = _unit_time(n_samples)
    after = torch.searchsorted(length, wanted, right=True).clamp(1, len(u) - 1)
    share = (wanted - length[after - 1]) / (length[after] - length[after - 1])
    return (u[after - 1] + share * (u[after] - u[after - 1])) ** (1 / density)


def _centred_positions(n: int) -> torch.Tensor:
    return 2 * math.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n


def _unit_time(n_samples: int) -> torch.Tensor:
    return torch.arange(n_samples, dtype=torch.float64) / n_samples


def _as_trajectory(positions: torch.Tensor) -> torch.Tensor:
    """Float32 inside [−π, π): rounding to float32 alone would put π and −π outside."""
    return positions.flatten(0, -2).to(torch.float32).clamp(-_LARGEST_FLOAT32, _LARGEST_FLOAT32)


def _require(**counts: tuple[int, int]) -> None:
    """Refuse counts, given as (value, least), that are no integers or too small."""
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value}; expected an integer of at least {least}.")


def _by(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))
