import json

import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.inspection import describe
from mrirecon.kspace import KSpace
from mrirecon.trajectory import radial, spiral

N = 32
HEADER = Acquisition((1, N, N), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))


def samples(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


def test_a_scan_on_the_grid_is_described(generator: torch.Generator) -> None:
    described = describe(KSpace(samples(3, 2, N, N, generator=generator), torch.ones(N, N), HEADER))
    assert described["encoding"]["axes"] == ["slice", "coil", "ky", "kx"]
    assert described["encoding"]["shape"] == [3, 2, N, N]
    assert described["encoding"]["fill_rate"] == 1
    assert "trajectory_reach" not in described["encoding"]
    json.dumps(described)


def test_a_scan_along_a_trajectory_is_described(generator: torch.Generator) -> None:
    k = 0.5 * spiral(8, 200, 2)
    data = samples(2, 1, 2, len(k), generator=generator)
    axes = ("repetition", "slice")
    described = describe(KSpace(data, torch.ones(len(k)), HEADER, axes, trajectory=k, readout_length=200))
    encoding = described["encoding"]
    assert encoding["axes"] == ["repetition", "slice", "coil", "sample"]
    assert encoding["shape"] == [2, 1, 2, 1600]
    assert encoding["matrix"] == [N, N]
    assert encoding["samples_per_readout"] == 200
    assert encoding["trajectory_reach"] == pytest.approx([0.5, 0.5], abs=0.02)
    # A disc of a quarter of the width of k-space.
    assert encoding["fill_rate"] == pytest.approx(torch.pi / 16, rel=0.2)
    assert described["noise"]["repeatability"] > 0
    json.dumps(described)


def test_repetitions_with_trajectories_of_their_own_have_no_repeatability(generator: torch.Generator) -> None:
    k = torch.stack((radial(50, N), radial(50, N, golden=True)))[:, None]
    data = samples(2, 1, 2, 50 * N, generator=generator)
    described = describe(KSpace(data, torch.ones(50 * N), HEADER, ("repetition", "slice"), trajectory=k))
    assert "repeatability" not in described["noise"]
    assert described["encoding"]["samples_per_readout"] is None
