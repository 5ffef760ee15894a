"""Projection: line integrals in mm, the same from every backend, with symmetries, subsets, cache and limits."""

import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.utils.data import DataLoader, Dataset

from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.beam_symmetry import ray_orbits
from operators.errors import InputError
from operators.projection import Projection
from operators.space import Space, inner
from operators.system_matrix import count_entries, rays_in_pixels, system_matrix
from tests.reference import tomography
from tests.reference.rays import projection_matrix


def circle(n_views: int, start: float = 0.5, turn_rad: float = 2 * math.pi) -> tuple[float, ...]:
    return tuple((view + start) * turn_rad / n_views for view in range(n_views))


def fan(angles_rad: tuple[float, ...], pixel_mm: float = 0.7, offset_mm: float = 0.0, curved: bool = False) -> FanBeam:
    return FanBeam(angles_rad, 41, 0.9, pixel_mm, offset_mm, 60.0, 30.0, curved)


def parallel(angles_rad: tuple[float, ...], pixel_mm: float = 0.7, offset_mm: float = 0.0) -> ParallelBeam:
    return ParallelBeam(angles_rad, 31, 0.8, pixel_mm, offset_mm)


def whole_matrix(geometry: BeamGeometry, shape: tuple[int, int], model: str = "line", dtype=np.float64) -> csr_array:
    """The matrix without symmetries, rows and columns in their plain order."""
    width = geometry.detector_spacing_mm / geometry.pixel_spacing_mm
    rays = rays_in_pixels(geometry, shape)
    table = system_matrix(rays, shape, geometry.pixel_spacing_mm, model, strip_width=width, dtype=dtype)
    return csr_array((table.values, table.columns, table.starts), (table.n_rows, table.n_columns))


GEOMETRIES: dict[str, BeamGeometry] = {
    "parallel": parallel(circle(7, 0.3, math.pi)),
    "parallel_offset": parallel(circle(5, 0.3, math.pi), offset_mm=0.3),
    "flat": fan(circle(9, 0.37)),
    "flat_offset": fan(circle(9, 0.37), offset_mm=-0.3),
    "curved": fan(circle(9, 0.37), curved=True),
    "curved_offset": fan(circle(9, 0.37), offset_mm=0.3, curved=True),
}
EVERY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


@EVERY
def test_sinograms_of_discs_are_their_chords_in_mm_and_converge(geometry):
    # Off centre and different, so that a wrong turn, mirror or shift could not go unnoticed.
    discs = [tomography.disc(3.0, (2.5, 1.0), 0.02), tomography.disc(1.5, (-3.0, 3.5), 0.05)]
    expected = tomography.sinogram(geometry, discs)
    errors = []
    for n, pixel_mm in ((20, 0.8), (40, 0.4), (80, 0.2)):
        finer = geometry.__class__(**{**_fields(geometry), "pixel_spacing_mm": pixel_mm})
        result = Projection(finer, (n, n), precision=torch.float64)(tomography.image(finer, (n, n), discs))
        errors.append(float((result - expected).norm() / expected.norm()))
    assert errors[0] < 0.15
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.35 * errors[0]


def _fields(geometry: BeamGeometry) -> dict:
    return {name: getattr(geometry, name) for name in geometry.__dataclass_fields__}


@pytest.mark.parametrize("model", ["line", "joseph", "strip"])
def test_models_agree_on_a_smooth_object(model):
    geometry = ParallelBeam(circle(5, 0.3, math.pi), 33, 0.4, 0.4)
    y, x = torch.meshgrid(*(torch.linspace(-6, 6, 31, dtype=torch.float64) for _ in range(2)), indexing="ij")
    image = torch.exp(-((x - 1) ** 2 + (y + 0.5) ** 2) / 4)
    exact = math.sqrt(4 * math.pi) * torch.exp(
        -(
            (
                torch.from_numpy(geometry.detector_mm)
                - torch.tensor([math.cos(t) + 0.5 * math.sin(t) for t in geometry.angles_rad])[:, None]
            )
            ** 2
        )
        / 4
    )
    assert exact.shape == (5, 33)
    result = Projection(geometry, (31, 31), model=model, precision=torch.float64)(image)
    assert float((result - exact).norm() / exact.norm()) < 0.01


def test_a_ray_through_one_pixel_has_its_chord():
    geometry = ParallelBeam((0.0, math.pi / 4), 1, 1.0, 2.0)
    values = Projection(geometry, (1, 1), precision=torch.float64)(torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(values[:, 0], torch.tensor([2.0, 2.0 * math.sqrt(2)], dtype=torch.float64))


@pytest.mark.parametrize("t", [0.0, math.pi / 2, math.pi, 3 * math.pi / 2])
def test_a_ray_along_a_grid_line_belongs_to_both_sides_by_half(t):
    geometry = ParallelBeam((t,), 3, 1.0, 1.0)  # on a 2 × 2 grid its rays run along the middle and the two borders
    matrix = Projection(geometry, (2, 2), precision=torch.float64).adjoint(torch.eye(3, dtype=torch.float64)[:, None])
    torch.testing.assert_close(matrix[1], torch.full((2, 2), 0.5, dtype=torch.float64))
    assert float(matrix[0].sum()) == pytest.approx(1.0)
    assert float(matrix[2].sum()) == pytest.approx(1.0)


def test_rays_that_miss_give_zero_and_take_no_memory():
    geometry = ParallelBeam((0.3, 1.0), 4, 1.0, 1.0, detector_offset_mm=100.0)
    projection = Projection(geometry, (3, 4))
    assert not projection(torch.ones(3, 4)).any()
    assert not projection.adjoint(torch.ones(2, 4)).any()
    assert projection._values.numel() == 0


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, model) for name in GEOMETRIES for model in ("line", "joseph")]
    + [(name, "strip") for name in ("parallel", "parallel_offset")],
)
def test_the_builder_agrees_with_the_definition_ray_by_ray(name, model):
    geometry = GEOMETRIES[name]
    few = geometry[:2]
    np.testing.assert_allclose(
        whole_matrix(few, (8, 6), model).toarray(), projection_matrix(few, (8, 6), model), atol=1e-12
    )


@pytest.mark.parametrize("curved", [False, True])
def test_an_offset_of_one_bin_shifts_the_sinogram_by_one_bin_towards_smaller_numbers(curved, generator):
    x = Space((20, 20), "real").randn(generator=generator, dtype=torch.float64)
    angles = circle(5, 0.3)
    for centred, offset in (
        (fan(angles, curved=curved), fan(angles, offset_mm=0.9, curved=curved)),
        (parallel(angles), parallel(angles, offset_mm=0.8)),
    ):
        before, after = (Projection(g, (20, 20), precision=torch.float64)(x) for g in (centred, offset))
        torch.testing.assert_close(after[:, :-1], before[:, 1:])


def test_position_and_orientation():
    image = torch.zeros(9, 9)
    image[1, 6] = 1  # 2 mm to the right, 3 mm up
    geometry = ParallelBeam((0.0, math.pi / 2), 9, 1.0, 1.0)
    sinogram = Projection(geometry, (9, 9))(image)
    assert sinogram[0].argmax() == 4 + 2  # from below, u runs to the right
    assert sinogram[1].argmax() == 4 + 3  # from the right, u runs upwards
    from_below = FanBeam((0.0,), 9, 2.0, 1.0, 0.0, 100.0, 100.0)  # magnified by two at the detector
    assert Projection(from_below, (9, 9))(image).argmax() == 4 + 2


SYMMETRIC: dict[str, tuple[BeamGeometry, tuple[int, int], int]] = {
    "fan_half_step": (fan(circle(64)), (20, 20), 8),
    "fan_from_zero": (fan(circle(72, 0.0)), (20, 20), 8),
    "fan_both_ends": (fan((*circle(72), circle(72)[0] + 2 * math.pi)), (20, 20), 8),
    "fan_curved": (fan(circle(64), curved=True), (19, 19), 8),
    "fan_any_start": (fan(circle(28, 0.37)), (20, 20), 4),
    "fan_offset": (fan(circle(64), offset_mm=0.225), (20, 20), 4),
    "fan_backwards": (fan(circle(64)[::-1]), (20, 20), 8),
    "fan_even": (fan(circle(22)), (20, 20), 4),
    "fan_not_square": (fan(circle(64)), (20, 14), 4),
    "fan_limited": (fan(tuple(np.linspace(-0.6, 0.6, 8))), (20, 20), 2),
    "fan_few": (fan(circle(8)), (20, 20), 2),
    "fan_odd": (fan(circle(9, 0.37)), (20, 20), 1),
    "parallel_half_circle": (parallel(circle(80, 0.5, math.pi)), (20, 20), 8),
    "parallel_from_zero": (parallel(circle(84, 0.0, math.pi)), (20, 20), 8),
    "parallel_offset": (parallel(circle(8, 0.2, math.pi), offset_mm=0.1), (20, 20), 2),
    "parallel_circle": (ParallelBeam(circle(96, 0.0), 30, 0.7, 0.7), (20, 20), 8),
}


@pytest.mark.parametrize("model", ["line", "joseph"])
@pytest.mark.parametrize(("geometry", "shape", "n_symmetries"), SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_symmetric_scans_equal_the_full_matrix_to_the_stated_deviation(geometry, shape, n_symmetries, model, generator):
    matrix = whole_matrix(geometry, shape, model)
    x = Space(shape, "real").randn(3, generator=generator, dtype=torch.float64)
    y = Space((geometry.n_views, geometry.n_detectors), "real").randn(3, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy((matrix @ x.reshape(3, -1).numpy().T).T).view(y.shape)
    back = torch.from_numpy((matrix.T @ y.reshape(3, -1).numpy().T).T).view(x.shape)
    for precision, deviation in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        projection = Projection(geometry, shape, model=model, precision=precision)
        result, adjoint = projection(x.to(precision)).double(), projection.adjoint(y.to(precision)).double()
        assert float((result - expected).norm() / expected.norm()) < deviation
        assert float((adjoint - back).norm() / back.norm()) < deviation
    orbits = ray_orbits(geometry, shape)
    assert len(orbits.symmetries) == n_symmetries
    n_rays = geometry.n_views * geometry.n_detectors
    assert sorted(ray for ray in orbits.rays().ravel() if ray < n_rays) == list(range(n_rays))
    if model == "line":
        assert len(projection._values) < 1.25 * matrix.nnz / n_symmetries


def test_angles_read_in_single_precision_keep_their_symmetry():
    rounded = tuple(np.float32(circle(720, 0.5)).tolist())
    assert len(ray_orbits(fan(rounded), (8, 8)).symmetries) == 8
    moved = (*circle(64)[:-1], circle(64)[-1] + 1e-4)
    orbits = ray_orbits(fan(moved), (8, 8))
    assert 63 in orbits.stored_views  # nothing generates the view that is off
    assert (orbits.views == 63).sum() == 1


@pytest.mark.parametrize("views", [slice(1, None), slice(0, None, 3), slice(None, None, -1), [3], [5, 2, 2, 7]])
@pytest.mark.parametrize(
    "name", ["fan_half_step", "fan_any_start", "fan_odd", "parallel_half_circle", "parallel_offset"]
)
def test_view_subsets_are_rows_of_the_whole(name, views, generator):
    geometry, shape, _ = SYMMETRIC[name]
    whole = Projection(geometry, shape, precision=torch.float64)
    part = whole[views]
    assert part.geometry == geometry[views]
    x = Space(shape, "real").randn(2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        part(x), whole(x)[:, views if isinstance(views, list) else range(geometry.n_views)[views]]
    )
    y = part.codomain.randn(generator=generator, dtype=torch.float64)
    padded = whole.codomain.randn(dtype=torch.float64, generator=generator) * 0
    padded.index_put_((torch.arange(geometry.n_views)[_index(views, geometry.n_views)],), y, accumulate=True)
    torch.testing.assert_close(part.adjoint(y), whole.adjoint(padded))


def _index(views: slice | list[int], n_views: int) -> list[int]:
    return views if isinstance(views, list) else list(range(n_views)[views])


def test_subsets_of_a_subset_and_impossible_views():
    geometry, shape, _ = SYMMETRIC["fan_half_step"]
    whole = Projection(geometry, shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(whole[1::2][1::3](x), whole(x)[1::2][1::3])
    with pytest.raises(ValueError, match="angles_rad is empty"):
        whole[3:3]
    with pytest.raises(IndexError, match="64"):
        whole[[64]]


@pytest.mark.parametrize("n_columns", [1, 2, 8, 9, 33])
def test_every_product_kernel_gives_the_same(n_columns, generator):
    geometry = GEOMETRIES["flat_offset"]
    matrix = whole_matrix(geometry, (14, 12))
    x = Space((14, 12), "real").randn(n_columns, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy((matrix @ x.reshape(n_columns, -1).numpy().T).T)
    projection = Projection(geometry, (14, 12), precision=torch.float64)
    torch.testing.assert_close(projection(x).view(n_columns, -1), expected)
    single = Projection(geometry, (14, 12))
    torch.testing.assert_close(single(x.float()).view(n_columns, -1).double(), expected, rtol=1e-5, atol=1e-5)


def test_an_empty_batch_stays_empty():
    projection = Projection(GEOMETRIES["flat"], (6, 6))
    assert projection(torch.zeros(0, 2, 6, 6)).shape == (0, 2, 9, 41)
    assert projection.adjoint(torch.zeros(3, 0, 9, 41)).shape == (3, 0, 6, 6)


@pytest.mark.parametrize("backend", ["matrix", "astra"])
@EVERY
def test_single_precision_is_adjoint_to_1e_7(geometry, backend, generator):
    projection = Projection(geometry, (24, 20), backend=backend)
    x, y = projection.domain.randn(2, generator=generator), projection.codomain.randn(2, generator=generator)
    image, back = projection(x).double(), projection.adjoint(y).double()
    left, right = inner(image, y.double(), 2), inner(x.double(), back, 2)
    size = image.flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    assert float(((left - right).abs() / size).max()) < 1e-7


@pytest.mark.parametrize("model", ["line", "joseph", "strip"])
@EVERY
def test_astra_backend_and_matrix_agree_to_1e_5(geometry, model, generator):
    if model != "line" and isinstance(geometry, FanBeam):
        with pytest.raises(ValueError, match=r"ASTRA has no|strip"):
            Projection(geometry, (24, 20), backend="astra", model=model)
        return
    matrix = Projection(geometry, (24, 20), model=model, precision=torch.float64)
    astra = Projection(geometry, (24, 20), backend="astra", model=model)
    assert (matrix.backend, astra.backend) == ("matrix", "astra")
    x = 0.5 + torch.rand(2, 24, 20, generator=generator)
    y = 0.5 + torch.rand(2, geometry.n_views, geometry.n_detectors, generator=generator)
    for result, expected in ((astra(x), matrix(x.double())), (astra.adjoint(y), matrix.adjoint(y.double()))):
        assert result.dtype == torch.float32
        assert float((result.double() - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(astra.norm().double(), matrix.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(astra[1:](x), astra(x)[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "model", "kernel"),
    [("parallel", "line", "line"), ("parallel", "joseph", "linear"), ("flat", "line", "line_fanflat")],
)
def test_the_builder_agrees_with_the_matrix_that_astra_builds(name, model, kernel):
    astra = pytest.importorskip("astra")
    geometry = GEOMETRIES[name]
    angles, spacing = np.array(geometry.angles_rad), geometry.detector_spacing_mm
    if isinstance(geometry, FanBeam):
        scan = astra.create_proj_geom("fanflat", spacing, geometry.n_detectors, angles, 60.0, 30.0)
    else:
        scan = astra.create_proj_geom("parallel", spacing, geometry.n_detectors, angles)
    volume = astra.create_vol_geom(24, 20, -7.0, 7.0, -8.4, 8.4)
    projector = astra.create_projector(kernel, scan, volume)
    number = astra.projector.matrix(projector)
    expected = astra.matrix.get(number)
    astra.matrix.delete(number)
    astra.projector.delete(projector)
    difference = whole_matrix(geometry, (24, 20), model) - expected
    # ASTRA computes in single precision, which shows most where a ray barely touches a pixel.
    assert np.linalg.norm(difference.data) < 2e-5 * np.linalg.norm(expected.data)
    assert abs(difference).max() < 2e-4 * expected.max()
    assert abs(difference.sum(axis=1)).max() < 2e-5 * expected.sum(axis=1).max()


def test_astra_in_threads_gives_the_same_bits_and_leaves_nothing_behind(generator):
    geometry = GEOMETRIES["curved"]
    x = torch.rand(3, 24, 20, generator=generator)
    astra = pytest.importorskip("astra")
    projection = Projection(geometry, (24, 20), backend="astra")
    alone = projection(x), projection.adjoint(projection(x))
    try:
        torch.set_num_threads(4)
        together = projection(x), projection.adjoint(projection(x))
        one = projection(x[0])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(together[0], alone[0])
    assert torch.equal(one, alone[0][0])
    torch.testing.assert_close(together[1], alone[1], rtol=1e-5, atol=1e-5)
    twin = pickle.loads(pickle.dumps(projection))
    assert torch.equal(twin(x), alone[0])
    assert torch.equal(copy.deepcopy(projection)(x), alone[0])
    numbers = list(projection._astra._objects._ids.values())
    assert numbers
    del projection
    with pytest.raises(Exception, match=r"not a valid|not found|not initialized|Invalid"):
        astra.projector.matrix(numbers[0])


def test_astra_prints_nothing(capfd):
    projection = Projection(GEOMETRIES["curved"], (6, 6), backend="astra")
    projection.adjoint(projection(torch.ones(6, 6)))
    del projection
    assert capfd.readouterr() == ("", "")


class _Sinograms(Dataset):
    def __init__(self, projection: Projection) -> None:
        self.projection = projection

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.projection(torch.full((12, 12), float(index)))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # newer Pythons warn of every fork with threads
@pytest.mark.parametrize("backend", ["matrix", "astra"])
def test_projections_work_in_forked_data_loader_workers(backend):
    dataset = _Sinograms(Projection(GEOMETRIES["flat"], (12, 12), backend=backend))
    expected = torch.stack([dataset[i] for i in range(4)])  # also in the parent, before the fork
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    torch.testing.assert_close(torch.cat(list(loader)), expected)


def test_the_memory_limit_is_kept_before_anything_is_built():
    geometry = FanBeam(circle(1500, 0.3, 6.0), 1500, 1.0, 0.5, 0.2, 1000.0, 500.0)  # about 20 GB
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"needs about \d{5} MiB.*allows 2048 MiB.*backend='astra'"):
            Projection(geometry, (1024, 1024), backend="matrix")
        automatic = Projection(geometry, (1024, 1024))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert automatic.backend == "astra"
    assert peak < 50e6
    with pytest.raises(ValueError, match="single precision"):
        Projection(geometry, (1024, 1024), precision=torch.float64)


@pytest.mark.parametrize("model", ["line", "joseph", "strip"])
@pytest.mark.parametrize("offset_mm", [0.0, 5.0])
def test_the_estimate_is_close_to_and_not_below_the_truth(model, offset_mm):
    for geometry in (parallel(circle(40, 0.3, math.pi), 0.1, offset_mm), fan(circle(40, 0.3), 0.1, offset_mm)):
        if model == "strip" and isinstance(geometry, FanBeam):
            continue
        width = geometry.detector_spacing_mm / geometry.pixel_spacing_mm
        estimate = count_entries(rays_in_pixels(geometry, (128, 100)), (128, 100), model, width)
        truth = whole_matrix(geometry, (128, 100), model).nnz
        assert truth <= estimate <= 1.35 * truth


def test_limits_decide_between_the_backends():
    geometry = GEOMETRIES["flat"]
    assert Projection(geometry, (12, 12), memory_limit_bytes=10_000).backend == "astra"
    assert Projection(geometry, (12, 12)).backend == "matrix"
    with pytest.raises(ValueError, match=r"ASTRA has no 'joseph' model for fan beams.*memory_limit_bytes"):
        Projection(geometry, (12, 12), memory_limit_bytes=10_000, model="joseph")


def test_the_cache_is_written_once_read_again_and_replaced_when_damaged(tmp_path, monkeypatch, generator):
    geometry = GEOMETRIES["flat_offset"]
    x = torch.rand(3, 12, 12, generator=generator)
    expected = Projection(geometry, (12, 12), cache_folder=tmp_path)(x)
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("operators.projection_tables.system_matrix", None)  # would fail if it were called
        assert torch.equal(Projection(geometry, (12, 12), cache_folder=tmp_path)(x), expected)
    middle = len(written) // 2
    for damaged in (b"", b"nonsense", written[:middle], written[:middle] + b"\xff\x00\xff" + written[middle + 3 :]):
        path.write_bytes(damaged)
        assert torch.equal(Projection(geometry, (12, 12), cache_folder=str(tmp_path))(x), expected)
        assert path.read_bytes() == written
    for other in (
        Projection(geometry[1:], (12, 12), cache_folder=tmp_path),
        Projection(geometry, (12, 11), cache_folder=tmp_path),
        Projection(geometry, (12, 12), cache_folder=tmp_path, model="joseph"),
        Projection(geometry, (12, 12), cache_folder=tmp_path, precision=torch.float64),
    ):
        assert other.codomain.shape[1] == 41
    assert len(list(tmp_path.iterdir())) == 5


def test_tables_of_another_matrix_in_the_cache_are_not_used(tmp_path):
    geometry = GEOMETRIES["flat_offset"]
    expected = Projection(geometry, (12, 12), cache_folder=tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        tables = dict(file)
    for changes in (
        {"columns0": tables["columns0"] + 1000},
        {"starts0": tables["starts0"][::-1].copy()},
        {"values1": tables["values1"].astype(np.float64)},
        {"starts1": tables["starts1"][:-1]},
    ):
        np.savez(path, **{**tables, **changes})
        again = Projection(geometry, (12, 12), cache_folder=tmp_path)
        assert torch.equal(again._columns, expected._columns)
        assert torch.equal(again._transposed_values, expected._transposed_values)


def test_a_cache_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Projection(GEOMETRIES["flat"], (6, 6), cache_folder=tmp_path / "missing")


def test_checkpoints_hold_no_tables():
    assert not Projection(GEOMETRIES["flat"], (6, 6)).state_dict()


@pytest.mark.parametrize(
    ("geometry", "domain", "options", "error", "message"),
    [
        ("flat", (6, 6), {}, TypeError, "geometry is a str; expected a ParallelBeam or a FanBeam"),
        (GEOMETRIES["flat"], Space((6, 6)), {}, TypeError, "domain is complex"),
        (GEOMETRIES["flat"], (6,), {}, ValueError, r"shape \(6,\); expected an image \(y, x\)"),
        (GEOMETRIES["flat"], (2, 6, 6), {}, ValueError, "image"),
        (GEOMETRIES["flat"], (200, 200), {}, ValueError, "source is 60 mm from the isocentre.*corners are at 98.9"),
        (GEOMETRIES["flat"], (6, 6), {"model": "strip"}, ValueError, "parallel beams only"),
        (GEOMETRIES["flat"], (6, 6), {"model": "siddon"}, ValueError, "model is 'siddon'; expected one of 'line'"),
        (GEOMETRIES["flat"], (6, 6), {"backend": "gpu"}, ValueError, "backend is 'gpu'; expected one of 'auto'"),
        (GEOMETRIES["flat"], (6, 6), {"precision": torch.float16}, TypeError, "precision is torch.float16"),
        (GEOMETRIES["flat"], (6, 6), {"backend": "astra", "precision": torch.float64}, ValueError, "single precision"),
    ],
)
def test_what_makes_no_sense_is_refused(geometry, domain, options, error, message):
    with pytest.raises(error, match=message):
        Projection(geometry, domain, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(ValueError, match="no CUDA device; pass backend='matrix'"):
        Projection(GEOMETRIES["flat"], (6, 6), backend="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_batch", [1, 5])
def test_the_matrix_on_cuda_is_the_same_pair(n_batch, generator):
    geometry, shape, _ = SYMMETRIC["fan_half_step"]
    here, there = Projection(geometry, shape), Projection(geometry, shape, backend="cuda")
    x, y = here.domain.randn(n_batch, generator=generator), here.codomain.randn(n_batch, generator=generator)
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.adjoint(y.cuda()).cpu(), here.adjoint(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there[1::2](x.cuda()).cpu(), here[1::2](x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="ASTRA projects on the CPU"):
        Projection(geometry, shape, backend="astra")(x.cuda())
