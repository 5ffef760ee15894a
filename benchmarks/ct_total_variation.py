"""Which solver and which weights total variation of a CT scan should have: error after so many projections.

Run ``python benchmarks/ct_total_variation.py``. The scan is simulated from the built-in abdomen: 60 views of the
sparse-view geometry at 256², 1e5 photons. All start from filtered back-projection and use the same strength.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import arguments, report_quality

from ctrecon.hounsfield import to_hu
from ctrecon.metrics import rmse_hu
from ctrecon.simulation import Scenario, Simulation, simulate_scenario
from operators import (
    Diagonal,
    FiniteDifference,
    LinearOperator,
    Projection,
    TotalVariationProx,
    filtered_back_projection,
    fista,
    pdhg,
    project_dual_ball,
    project_nonnegative,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """½‖A x − y‖² + strength · TV(x) over x ≥ 0, with its start."""

    A: LinearOperator
    y: torch.Tensor
    strength: float
    start: torch.Tensor


def problem(scan: Simulation, power: float) -> Problem:
    """The problem with the statistical weights raised to ``power``; strength 1 in units of the weighted noise."""
    sinogram = scan.sinogram
    A: LinearOperator = Projection(sinogram.geometry, sinogram.image_shape)
    start = filtered_back_projection(sinogram.data, sinogram.geometry, sinogram.image_shape)
    assert sinogram.weights is not None
    weights = sinogram.weights**power
    weights = weights / weights.mean()
    variance = 1 / (PHOTONS * sinogram.weights)
    noise = float((variance * weights).mean().sqrt())
    y = weights.sqrt() * sinogram.data
    A = Diagonal(weights.sqrt()[0], A.codomain) @ A
    probe = torch.randint(0, 2, (8, *A.domain.shape), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    column = float((A(probe).square().sum(dim=(-2, -1)).mean() / A.domain.size).sqrt())
    return Problem(A, y, noise * column, start)


def by_fista(p: Problem, n_iterations: int) -> torch.Tensor:
    """Accelerated proximal gradients with a warm-started inner proximal map."""
    prox = TotalVariationProx(p.A.domain, p.strength, project=project_nonnegative)
    step = 1 / (1.02 * p.A.norm().square())
    return fista(p.A, p.y, prox, step=step, x0=p.start, n_iterations=n_iterations, restart=True).value


def by_pdhg(p: Problem, n_iterations: int) -> torch.Tensor:
    """The primal-dual method in the form of Condat and Vũ, with its default steps."""
    difference = FiniteDifference(p.A.domain)
    back_projected = p.A.adjoint(p.y)
    return pdhg(
        difference,
        lambda q, _: project_dual_ball(q, p.strength, dim=-3),
        lambda x, _: project_nonnegative(x),
        x0=p.start,
        gradient=lambda x: p.A.gram(x) - back_projected,
        lipschitz=1.02 * p.A.norm().square(),
        n_iterations=n_iterations,
    ).value


PHOTONS = 1e5
SOLVERS: dict[str, Callable[[Problem, int], torch.Tensor]] = {"fista": by_fista, "pdhg": by_pdhg}


def main() -> None:
    """Run every solver with every weighting."""
    options = arguments(__doc__ or "")
    matrix, steps = (64, (10, 30)) if options.quick else (256, (50, 100, 300, 1000))
    scan = simulate_scenario(Scenario(preset="sparse-view-60", matrix=matrix, n_photons=PHOTONS))
    outside = scan.target_hu <= -500
    rows = []
    for power in (0.0, 0.25, 0.5, 1.0):
        posed = problem(scan, power)
        for name, solve in SOLVERS.items():
            for n_iterations in steps:
                began = time.process_time()
                hu = to_hu(solve(posed, n_iterations), scan.sinogram.mu_water_per_mm)
                rows.append(
                    {
                        "case": f"weights^{power:g}",
                        "what": f"{n_iterations} iterations",
                        "candidate": name,
                        "rmse_hu": round(float(rmse_hu(hu, scan.target_hu, outside).mean()), 1),
                        "seconds": round(time.process_time() - began, 2),
                    }
                )
    report_quality("ct_total_variation", rows)


if __name__ == "__main__":
    main()
