"""Training stage by stage: what the priors see, that it learns, and that it goes on as if never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from operators.consistency import FilteredStep
from operators.elementary import Diagonal
from operators.errors import InputError
from operators.learning import TrainingPlan
from operators.priors.denoiser import UNetDenoiser
from operators.priors.networks import ImageUNet, varnet
from operators.space import Space
from operators.staged_training import Scan, Stages, fit_stages
from operators.unrolled import Unrolled

_SHAPE = (24, 20)
_NOISE_STD = 0.2


def draw_scan(index: int, generator: torch.Generator) -> Scan:
    """A disc somewhere, its left half not measured; index is not needed."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in _SHAPE), indexing="ij")
    place = 6 + 8 * torch.rand(2, generator=generator)
    target = 1.0 * ((y - place[0]).square() + (x - place[1]).square() < 25)
    A = Diagonal(torch.where(x < 10, 0.5, 1.0), Space(_SHAPE, "real"))
    data = A(target) + _NOISE_STD * torch.randn(_SHAPE, generator=generator)
    return Scan(data, A, target, _NOISE_STD)


def unrolled(n_iterations: int = 2) -> Unrolled:
    torch.manual_seed(0)
    denoiser = UNetDenoiser(n_channels=1, base=4, n_stages=2)
    levels = [0.3] * n_iterations
    return Unrolled(denoiser, FilteredStep(0.7), n_iterations, noise_levels=levels, data_first=True)


def plan(n_steps: int = 6, **options: Any) -> TrainingPlan:
    return TrainingPlan(n_steps=n_steps, learning_rate=3e-3, **options)


STAGES = Stages(n_rounds=2, n_scans=3, crop=16, margin=2)


def error_of(model: torch.nn.Module) -> float:
    scans = [draw_scan(i, torch.Generator().manual_seed(100 + i)) for i in range(8)]
    with torch.no_grad():
        errors = [(model(s.y, s.A, s.noise_std) - s.target).square().mean() for s in scans]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("data_first", [True, False])
def test_what_priors_see_leads_to_what_a_call_returns(data_first: bool) -> None:
    scan = draw_scan(0, torch.Generator().manual_seed(1))
    steps = [FilteredStep(0.3), FilteredStep(0.9), FilteredStep(0.5)]
    torch.manual_seed(0)
    model = Unrolled(UNetDenoiser(n_channels=1, base=4), steps, 3, data_first=data_first)
    seen = model.stage_inputs(scan.y, scan.A, scan.noise_std)
    last = model.prior_step(2, seen.images[2], seen.noise_std, seen.undersampling) * seen.scale
    if not data_first:
        last = steps[2](last, scan.y, scan.A)
    assert seen.images.shape == (3, *_SHAPE)
    torch.testing.assert_close(last, model(scan.y, scan.A, scan.noise_std))


def test_rounds_train_what_whole_images_are_reconstructed_with(tmp_path: Path) -> None:
    model = unrolled()
    before = error_of(model)
    result = fit_stages(model, draw_scan, STAGES, plan(60), tmp_path, batch_size=4)
    assert error_of(model) < 0.6 * before
    assert result.step == 120
    torch.testing.assert_close(dict(model.state_dict()), result.state)


def test_a_network_that_sees_no_data_has_one_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ImageUNet(n_channels=1, base=4, n_stages=2)
    before = error_of(model)
    fit_stages(model, draw_scan, Stages(n_rounds=1, n_scans=3, crop=16, margin=2), plan(60), tmp_path)
    assert error_of(model) < 0.8 * before


def test_noise_levels_are_trained_and_data_steps_are_not(tmp_path: Path) -> None:
    model = unrolled()

    class Told(UNetDenoiser):
        """A denoiser that uses its noise level."""

        def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            strength = state.reshape(*state.shape, 1, 1)
            return x + strength * (super().forward(x, state)[0] - x), state

    model.priors[0] = Told(n_channels=1, base=4, n_stages=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit_stages(model, draw_scan, STAGES, plan(), tmp_path)
    assert (model.log_noise_levels != before["log_noise_levels"]).all()
    assert torch.equal(model.consistencies[0].log_step, before["consistencies.0.log_step"])


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = fit_stages(unrolled(), draw_scan, STAGES, plan(), tmp_path / "whole")

    class Stop(Exception):
        """Where the training is killed."""

    def stop_at(limit: int) -> Any:
        def progress(n_done: int, n_all: int) -> None:
            if n_done == limit:
                raise Stop

        return progress

    for limit in (2, 7, 9 + 5):  # among the scans and the steps of the first round, and in the second one
        with pytest.raises(Stop):
            fit_stages(
                unrolled(),
                draw_scan,
                STAGES,
                plan(checkpoint_every_s=0),
                tmp_path / "stopped",
                progress=stop_at(limit),
            )
    stopped = fit_stages(unrolled(), draw_scan, STAGES, plan(checkpoint_every_s=0), tmp_path / "stopped")
    for name, value in whole.state.items():
        assert torch.equal(stopped.state[name], value), name


def test_progress_ends_with_everything_done(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fit_stages(unrolled(), draw_scan, STAGES, plan(), tmp_path, progress=lambda *n: seen.append(n))
    assert seen[-1] == (18, 18)
    assert seen == sorted(seen)


def test_no_loss_is_taken_where_a_scan_says_so(tmp_path: Path) -> None:
    def wrong_inside(index: int, generator: torch.Generator) -> Scan:
        scan = draw_scan(index, generator)
        ignored = torch.rand(_SHAPE, generator=generator) < 0.5
        return scan._replace(target=torch.where(ignored, 1e6, scan.target), ignored=ignored)

    model = ImageUNet(n_channels=1, base=4, n_stages=2)
    stages = Stages(n_rounds=1, n_scans=2, crop=16, margin=2)
    fit_stages(model, wrong_inside, stages, plan(20), tmp_path)
    assert error_of(model) < 1


def test_a_start_of_its_own_is_used(tmp_path: Path) -> None:
    starts: list[torch.Tensor] = []

    class Watching(ImageUNet):
        """Keeps what the network sees."""

        def prior_step(
            self, i: int, x: torch.Tensor, noise_std: torch.Tensor, undersampling: torch.Tensor
        ) -> torch.Tensor:
            starts.append(x.detach())
            return super().prior_step(i, x, noise_std, undersampling)

    def from_a_start(index: int, generator: torch.Generator) -> Scan:
        return draw_scan(index, generator)._replace(x0=torch.full(_SHAPE, 3.0))

    stages = Stages(n_rounds=1, n_scans=1, crop=16, margin=2)
    fit_stages(Watching(n_channels=1, base=4), from_a_start, stages, plan(1), tmp_path)
    torch.testing.assert_close(starts[0], torch.ones(4, 16, 16))  # divided by its root mean square


def test_what_cannot_be_trained_in_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="VariationalNetwork has no stages"):
        fit_stages(varnet(n_channels=1, n_cascades=1), draw_scan, STAGES, plan(), tmp_path)
    with pytest.raises(InputError, match="2 rounds for 3 stages"):
        fit_stages(unrolled(3), draw_scan, STAGES, plan(), tmp_path)
    with pytest.raises(InputError, match="no crops of 96"):
        fit_stages(unrolled(), draw_scan, Stages(n_rounds=2), plan(), tmp_path)
    with pytest.raises(InputError, match="leaves nothing"):
        Stages(n_rounds=1, crop=16, margin=8)
    with pytest.raises(InputError, match="n_rounds is 0"):
        Stages(n_rounds=0)
