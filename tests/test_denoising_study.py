"""The study of denoising: its contestants are what they are called, and its numbers are what they are said to be."""

import argparse
import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from operators.errors import InputError
from operators.priors.group_matching import Matching
from operators.priors.shrinkers import Groups, LowRankShrinker

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("deepgsr_denoise")


@pytest.fixture(scope="module")
def study(script: Any) -> Any:
    return script.read_config(script.CONFIG, script.Study)


@pytest.fixture
def groups(generator: torch.Generator) -> Groups:
    tokens = torch.randn(2, 4, 9, 5, generator=generator, dtype=torch.float64)
    return Matching(5, 6).double()(tokens, torch.tensor([0.1, 0.2], dtype=torch.float64))


def of_name(study: Any, name: str) -> Any:
    return next(contestant for contestant in study.contestants if contestant.name == name)


def test_every_network_of_the_study_denoises_images_of_any_size(script: Any, study: Any) -> None:
    x, noise_std = torch.rand(2, 34, 37, generator=torch.Generator().manual_seed(0)), torch.tensor([0.05, 0.2])
    networks = [contestant for contestant in study.contestants if contestant.is_trained]
    assert len(networks) > 15
    for contestant in networks:
        with torch.no_grad():
            estimate = script.built(contestant, 0).eval()(x, noise_std)
        assert estimate.shape == x.shape, contestant.name
        assert estimate.isfinite().all(), contestant.name
        assert not torch.equal(estimate, x), contestant.name


def test_those_with_the_same_parameters_have_them(script: Any, study: Any) -> None:
    def n_parameters(name: str) -> int:
        return sum(p.numel() for p in script.built(of_name(study, name), 0).parameters())

    wanted = n_parameters("groups")
    assert 120_000 <= wanted <= 160_000
    for name in ("convolutions, same parameters", "no groups, same parameters", "U-Net", "published"):
        assert abs(n_parameters(name) / wanted - 1) < 0.03, name


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(script: Any, study: Any) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (script.built(study.contestants[0], seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_groups_is_the_group_prior_before_groups_have_come_in(script: Any, study: Any) -> None:
    ours, without = (script.built(of_name(study, name), 3).double() for name in ("groups", "no groups"))
    x, noise_std = torch.rand(2, 31, 40, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    torch.testing.assert_close(without(x, noise_std), ours(x, noise_std))
    torch.nn.init.normal_(ours.prior.blocks[0].back)
    assert not torch.allclose(without(x, noise_std), ours(x, noise_std))


def test_without_haar_blocks_see_the_sampling_phases(script: Any) -> None:
    features = torch.randn(1, 3, 8, 10, dtype=torch.float64)
    phases = torch.stack([features[..., y::2, x::2] for y in (0, 1) for x in (0, 1)], dim=1)
    matrix = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
    bands = torch.einsum("bp,npcyx->nbcyx", matrix, phases).flatten(1, 2)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor, grid: Any, noise_std: torch.Tensor) -> tuple[torch.Tensor, None]:
            seen.append(x)
            return x, None

    change, _ = script.OnPhases(Spy()).double()(bands, None, torch.ones(1))
    torch.testing.assert_close(seen[0], phases.flatten(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(change, bands, atol=1e-6, rtol=0)


def test_own_shrinkers_are_the_attention_that_they_say(script: Any, groups: Groups) -> None:
    nothing, gates = script.NoShrinkage(), script.ConstantGates(6).double()
    members = groups.gathered()
    torch.testing.assert_close(nothing(groups), (groups.weights.unsqueeze(-1) * members).sum(dim=-2))
    with torch.no_grad():
        gates.logits.copy_(torch.linspace(-2, 2, 6))
    gated = gates.logits.sigmoid().unsqueeze(-1) * members
    torch.testing.assert_close(gates(groups), (groups.weights.unsqueeze(-1) * gated).sum(dim=-2))
    torch.testing.assert_close(gates.shrunk(groups), gated)


def test_a_band_that_matches_for_itself_does_not_see_the_others(script: Any, generator: torch.Generator) -> None:
    tokens = torch.randn(2, 4, 9, 5, generator=generator)
    changed = tokens.clone()
    changed[:, 2] = torch.randn(2, 9, 5, generator=generator)
    noise_std = torch.tensor([0.1, 0.2])
    matching = script.MatchingByBand(5, 4)
    before, after = matching(tokens, noise_std), matching(changed, noise_std)
    same = [torch.equal(a.members, b.members) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, True]
    n_shared = sum(p.numel() for p in Matching(5, 4).parameters())
    assert sum(p.numel() for p in matching.parameters()) == n_shared


def test_shrinking_band_by_band_shrinks_like_all_at_once(script: Any, groups: Groups) -> None:
    by_band = [
        replace(groups, tokens=groups.tokens[:, i : i + 1], weights=groups.weights[:, i : i + 1]) for i in range(4)
    ]
    together = LowRankShrinker(6, 4, rank=3).double()
    torch.testing.assert_close(script.LowRankByBand(6, 3).double()(by_band), together(groups))


def test_random_matching_does_not_learn_but_the_rest_does(script: Any, study: Any) -> None:
    model = script.built(of_name(study, "random matching"), 0)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"prior.blocks.{i}.matching.embed.weight" for i in range(4)}


def test_crops_have_the_noise_that_networks_are_told(script: Any, generator: torch.Generator) -> None:
    images = {"flat": [torch.zeros(70, 80)], "busy": [torch.rand(90, 70, generator=generator)]}
    crops = script.Crops(images, 6, 64, 0.2)
    noisy, noise_std, clean = crops(0, torch.Generator().manual_seed(5))
    again = crops(1, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip((noisy, noise_std, clean), again, strict=True))
    assert noisy.shape == clean.shape == (6, 64, 64)
    assert 0 <= noise_std.min() < noise_std.max() <= 0.2
    torch.testing.assert_close((noisy - clean).std(dim=(1, 2)), noise_std, rtol=0.06, atol=0)
    assert (clean.std(dim=(1, 2)) > 0.2).all()  # those of the flat image are drawn again


def test_a_mean_has_a_deviation_over_seeds_and_one_over_images(script: Any) -> None:
    spread = script.Spread.of([[1.0, 2.0], [3.0, 6.0]])
    assert spread.mean == 3
    assert spread.over_seeds == pytest.approx(3 / 2**0.5)
    assert spread.over_images == pytest.approx(2 / 2**0.5)
    assert script.Spread.of([[1.0, 2.0]]).over_seeds is None


def test_nobody_in_training_can_be_in_the_test(script: Any, study: Any) -> None:
    wrong = replace(study.tests[0], images=("lidc-0314",))
    with pytest.raises(InputError, match="lidc-0314, whom training sees"):
        script.load_images(replace(study, tests=(wrong,)), script.CONFIG)


def test_a_study_tells_what_is_missing_and_goes_on_where_it_was(
    script: Any, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = script.quick(study)
    small = replace(small, contestants=(small.contestants[0], of_name(study, "wavelet")))
    costs = script.Costs(small, tmp_path, image_side=32, n_rounds=1)

    def work() -> Any:
        return script.Work(small, tmp_path, costs, lambda: script.phantom_images(40))

    def options(**chosen: Any) -> argparse.Namespace:
        return argparse.Namespace(**({"seeds": None, "only": None, "report": False} | chosen))

    nothing = script.run(small, work(), options(report=True))
    assert nothing.missing == ["groups-seed-0", "wavelet"]
    first = script.run(small, work(), options(only=["groups"]))
    assert first.missing == ["wavelet"]
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "Missing so far: wavelet." in summary
    assert (tmp_path / "example.jpg").stat().st_size > 0
    everything = script.run(small, work(), options())
    assert everything.missing == []
    assert [row["contestant"] for row in everything.full()] == ["groups", "wavelet"]
    assert everything.full()[0] == first.full()[0]
    monkeypatch.setattr(script, "fit", None)  # nothing is trained or measured twice
    assert script.run(small, work(), options()).full() == everything.full()


def test_a_network_takes_the_learning_rate_that_is_best_in_its_pilot(
    script: Any, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = script.quick(study)
    ours = small.contestants[0]
    small = replace(small, contestants=(ours,), learning_rates=(1e-3, 3e-3, 2e-3))
    costs = script.Costs(small, tmp_path, image_side=32, n_rounds=1)
    work = script.Work(small, tmp_path, costs, lambda: script.phantom_images(40))
    tried = []

    def fit(model: Any, loss: Any, sample: Any, plan: Any, *args: Any, validate: Any, **others: Any) -> Any:
        tried.append(plan.learning_rate)
        assert plan.n_steps == small.n_pilot_steps
        with torch.no_grad():
            assert validate(model)["psnr_db"] > 0
        return argparse.Namespace(metrics={"psnr_db": 20 + plan.learning_rate})

    monkeypatch.setattr(script, "fit", fit)
    assert work.learning_rate(ours) is None
    assert work.learning_rate(ours, train=True) == 3e-3
    assert work.learning_rate(ours) == 3e-3
    assert tried == [1e-3, 3e-3, 2e-3]


def test_costs_are_measured_once_and_decide_the_steps_of_the_same_seconds(
    script: Any, study: Any, tmp_path: Path
) -> None:
    small = script.quick(study)
    timed = replace(small.contestants[0], name="as long", same="seconds", arguments={"n_blocks": 1, "width": 4})
    small = replace(small, contestants=(small.contestants[0], timed))
    costs = script.Costs(small, tmp_path, image_side=32, n_rounds=1)
    stored = json.loads((tmp_path / "costs.json").read_text())
    for key, n_ms in zip(stored, (30.0, 10.0), strict=True):
        stored[key]["step_ms"] = n_ms
    (tmp_path / "costs.json").write_text(json.dumps(stored))
    again = script.Costs(small, tmp_path, image_side=32, n_rounds=1)
    assert again[timed].n_parameters == costs[timed].n_parameters
    assert again[timed].step_ms == 10
    assert [again.n_steps(contestant) for contestant in small.contestants] == [2, 6]
