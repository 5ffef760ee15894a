"""The metal trace against analytic shadows, the masked data operator, and interpolation across the trace."""

import math

import numpy as np
import pytest
import torch

from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.elementary import Diagonal, Identity
from operators.metal import MetalTrace, interpolate_trace, masked, metal_trace
from operators.projection import Projection
from operators.space import Space
from tests.contract.contracts import CONTRACTS
from tests.reference.tomography import disc, image, sinogram

SHAPE = (48, 48)
TURN = tuple(0.1 + 2 * math.pi * k / 24 for k in range(24))
SCANS: dict[str, BeamGeometry] = {
    "parallel": ParallelBeam(TURN, 61, 1.3, 1.5),
    "flat": FanBeam(TURN, 61, 2.4, 1.5, 0.6, 200.0, 160.0),
    "curved": FanBeam(TURN, 61, 2.4, 1.5, 0.0, 200.0, 160.0, True),
}
every_scan = pytest.mark.parametrize("geometry", SCANS.values(), ids=SCANS.keys())
METAL = [disc(6.0, (12.0, -7.0)), disc(4.0, (-15.0, 3.0))]


def draw(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@every_scan
def test_the_trace_is_the_shadow_of_the_metal(geometry: BeamGeometry) -> None:
    """Rays that pass inside each disc by a pixel's diagonal are corrupted, rays that pass outside by one are not."""
    mask = image(geometry, SHAPE, METAL, n_sub=1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    trace = metal_trace(mask, Projection(geometry, SHAPE, precision=torch.float64))
    assert trace.dtype == torch.float64
    diagonal = 1.5 * 2**0.5
    shadow, core, halo = (
        sinogram(geometry, [disc(e.semi_axes_mm[0] + margin, e.center_mm) for e in METAL]) > 0
        for margin in (0.0, -diagonal, diagonal)
    )
    assert bool((trace[core] == 1).all())
    assert bool((trace[~halo] == 0).all())
    assert float((trace != shadow).double().mean()) < 0.15 * float(shadow.double().mean())


@every_scan
def test_a_batch_of_masks_gives_a_batch_of_traces(geometry: BeamGeometry) -> None:
    projection = Projection(geometry, SHAPE)
    masks = torch.stack([image(geometry, SHAPE, [metal], n_sub=1) for metal in METAL]).bool()
    traces = metal_trace(masks, projection)
    assert traces.shape == (2, 24, 61)
    assert traces.dtype == torch.get_default_dtype()
    for mask, trace in zip(masks, traces, strict=True):
        assert torch.equal(metal_trace(mask, projection), trace)
    both = metal_trace(masks.any(dim=0), projection)
    assert torch.equal(both, traces.amax(dim=0))


def test_the_threshold_is_a_length() -> None:
    geometry = ParallelBeam((0.0,), 5, 1.0, 1.0)
    mask = torch.zeros(5, 5, dtype=torch.float64)
    mask[1:4, 1], mask[2, 3] = 1, 1
    projection = Projection(geometry, (5, 5), precision=torch.float64)
    for threshold, expected in ((1e-3, [0, 1, 0, 1, 0]), (0.9, [0, 1, 0, 1, 0]), (1.1, [0, 1, 0, 0, 0])):
        assert metal_trace(mask, projection, threshold_mm=threshold).tolist() == [expected]


def test_no_metal_leaves_no_trace() -> None:
    projection = Projection(SCANS["flat"], SHAPE)
    assert not metal_trace(torch.zeros(SHAPE), projection).any()


@every_scan
@pytest.mark.parametrize("weighted", [False, True])
def test_the_masked_data_operator_is_an_exact_pair(
    weighted: bool, geometry: BeamGeometry, generator: torch.Generator
) -> None:
    projection = Projection(geometry, SHAPE, precision=torch.float64)
    trace = metal_trace(image(geometry, SHAPE, METAL, n_sub=1), projection)
    weights = torch.rand(24, 61, generator=generator, dtype=torch.float64) if weighted else None
    A = masked(projection, trace, weights)
    CONTRACTS["adjoint"](A, generator)
    x = draw(*SHAPE, generator=generator)
    expected = (1 - trace) * projection(x)
    torch.testing.assert_close(A(x), expected if weights is None else weights.sqrt() * expected)


def test_corrupted_rays_have_no_influence(generator: torch.Generator) -> None:
    projection = Projection(SCANS["flat"], SHAPE, precision=torch.float64)
    trace = metal_trace(image(SCANS["flat"], SHAPE, METAL, n_sub=1), projection)
    A = masked(projection, trace)
    y = draw(24, 61, generator=generator)
    assert torch.equal(A.adjoint(y + 1e6 * trace), A.adjoint(y))


def test_weighted_least_squares_has_the_statistical_weights(generator: torch.Generator) -> None:
    """‖W(y − x)‖² = Σ weights (1 − trace)(y − x)²."""
    space = Space((3, 4), "real")
    trace = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    weights = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    W = MetalTrace(trace, space, weights)
    assert isinstance(W, Diagonal)
    r = draw(3, 4, generator=generator)
    torch.testing.assert_close(W(r).square().sum(), ((1 - trace) * weights * r**2).sum())
    torch.testing.assert_close((W @ Identity(space)).gram(r), (1 - trace) * weights * r)


# interpolation


def test_linear_data_are_restored_exactly(generator: torch.Generator) -> None:
    slope, offset = draw(2, 5, 1, generator=generator), draw(2, 5, 1, generator=generator)
    line = offset + slope * torch.arange(17, dtype=torch.float64)
    trace = (torch.rand(2, 5, 17, generator=generator) > 0.4).double()
    trace[..., 0] = trace[..., -1] = 0
    damaged = line + 100 * trace * torch.randn(line.shape, generator=generator)
    torch.testing.assert_close(interpolate_trace(damaged, trace), line, rtol=1e-12, atol=1e-12)


def test_each_view_is_interpolated_as_numpy_does(generator: torch.Generator) -> None:
    y, trace = draw(2, 6, 15, generator=generator), torch.rand(6, 15, generator=generator) > 0.5
    trace[0] = False
    trace[1, :3] = trace[2, -4:] = True
    trace[:, 7] = False
    trace[3] = True
    trace[3, 9] = False
    found = interpolate_trace(y, trace)
    bins = np.arange(15)
    for sample in range(2):
        for view in range(6):
            kept = ~trace[view].numpy()
            expected = np.interp(bins, bins[kept], y[sample, view].numpy()[kept])
            np.testing.assert_allclose(found[sample, view].numpy(), expected, rtol=1e-13, atol=1e-14)
    assert torch.equal(found[:, ~trace], y[:, ~trace])


def test_interpolation_keeps_precision_and_leaves_its_input_alone(generator: torch.Generator) -> None:
    y = torch.randn(3, 9, generator=generator)
    before = y.clone()
    trace = torch.zeros(3, 9, dtype=torch.int64)
    assert torch.equal(interpolate_trace(y, trace), y)
    trace[:, 4] = 1
    assert interpolate_trace(y, trace).dtype == torch.float32
    assert torch.equal(y, before)


def test_corrupted_values_may_be_anything() -> None:
    y = torch.tensor([[1.0, float("nan"), float("inf"), 4.0]])
    trace = torch.tensor([[0, 1, 1, 0]])
    torch.testing.assert_close(interpolate_trace(y, trace), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))


# refusals


def test_what_does_not_fit_is_refused() -> None:
    space, y = Space((2, 3), "real"), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="trace holds values other than 0 and 1"):
        MetalTrace(torch.full((2, 3), 0.5), space)
    with pytest.raises(ValueError, match="trace holds values other than 0 and 1"):
        interpolate_trace(y, torch.full((2, 3), 2))
    with pytest.raises(ValueError, match=r"weights go down to -1; expected no negative"):
        MetalTrace(torch.zeros(2, 3), space, torch.tensor([1.0, -1.0, 0.0]))
    with pytest.raises(ValueError, match=r"has shape \(2, 4\), which does not broadcast to \(2, 3\)"):
        MetalTrace(torch.zeros(2, 4), space)
    with pytest.raises(ValueError, match=r"trace has shape \(4, 3\), which does not broadcast to the sinogram's"):
        interpolate_trace(y, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="trace covers a whole view"):
        interpolate_trace(y, torch.tensor([[0, 0, 0], [1, 1, 1]]))
    with pytest.raises(TypeError, match=r"sinogram is torch\.int64"):
        interpolate_trace(y.long(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"Projection forward input has shape \(5, 5\)"):
        metal_trace(torch.zeros(5, 5), Projection(SCANS["flat"], SHAPE))
