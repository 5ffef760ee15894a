import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from operators import checkpoint as module
from operators.checkpoint import Checkpoint, Metric, load_checkpoint, save_checkpoint
from operators.errors import InputError

METRIC = Metric("ssim", "mean over slices, 7 x 7 window, magnitude", 0.91)


class _Model(nn.Module):
    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, n, 3)
        self.beta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.filters = nn.Parameter(torch.tensor([1 + 2j, -0.5j]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0, 4))


def _checkpoint(state: dict[str, Any], **changes: Any) -> Checkpoint:
    words: dict[str, Any] = {
        "kind": "csc",
        "config": {"n_filters": 3, "sizes": [5, 7], "boundary": None},
        "data": "brain images of three people",
        "licence": "CC-BY-4.0",
        "seed": 7,
        "n_steps": 100,
        "metric": METRIC,
        "version": "0.1.0",
        "trained_ranges": {"noise_variance": (0.15, 0.3)},
    }
    return Checkpoint(state=state, **words | changes)


@pytest.fixture
def model(generator: torch.Generator) -> _Model:
    model = _Model()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator))
    return model


@pytest.fixture
def saved(model: _Model, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    save_checkpoint(path, _checkpoint(model.state_dict()))
    return path


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def _resaved(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def test_a_checkpoint_comes_back_as_it_was(model: _Model, saved: Path) -> None:
    loaded, original = load_checkpoint(saved, kind="csc"), _checkpoint(model.state_dict())
    assert _equal(loaded.state, dict(model.state_dict()))
    for name in ("kind", "config", "data", "licence", "seed", "n_steps", "metric", "version", "trained_ranges"):
        assert getattr(loaded, name) == getattr(original, name)
    assert loaded.sha256 == original.sha256
    fresh = _Model()
    loaded.load_into(fresh)
    assert _equal(fresh.state_dict(), model.state_dict())


def test_the_same_checkpoint_gives_the_same_bytes(model: _Model, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, _checkpoint(model.state_dict()))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_training_on_leaves_a_checkpoint_as_it_was(model: _Model) -> None:
    checkpoint = _checkpoint(model.state_dict())
    with torch.no_grad():
        model.convolution.weight.zero_()
    assert checkpoint.state["convolution.weight"].abs().sum() > 0


def test_views_are_stored_alone(tmp_path: Path) -> None:
    weight = torch.arange(10**5, dtype=torch.float64)[::2][:3]
    save_checkpoint(tmp_path / "w.pt", _checkpoint({"weight": weight, "conjugate": torch.tensor([1j]).conj()}))
    assert (tmp_path / "w.pt").stat().st_size < 5000
    loaded = load_checkpoint(tmp_path / "w.pt").state
    assert torch.equal(loaded["weight"], weight)
    assert torch.equal(loaded["conjugate"], torch.tensor([-1j]))


def test_the_digest_changes_with_every_part(model: _Model) -> None:
    state = dict(model.state_dict())
    variants = [
        _checkpoint(state),
        _checkpoint(state, kind="unet"),
        _checkpoint(state, config={}),
        _checkpoint(state, metric=Metric("ssim", METRIC.definition, 0.92)),
        _checkpoint(state, trained_ranges={}),
        _checkpoint(state | {"beta": state["beta"] * 2}),
        _checkpoint(state | {"beta": state["beta"].reshape(1)}),
        _checkpoint({f"x.{name}": tensor for name, tensor in state.items()}),
    ]
    assert len({variant.sha256 for variant in variants}) == len(variants)


def test_an_existing_file_is_replaced_only_on_request(model: _Model, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save_checkpoint(saved, _checkpoint(model.state_dict(), kind="unet"))
    assert saved.read_bytes() == before
    save_checkpoint(saved, _checkpoint(model.state_dict(), kind="unet"), overwrite=True)
    assert load_checkpoint(saved).kind == "unet"


def test_a_file_truncated_anywhere_is_refused(saved: Path, tmp_path: Path) -> None:
    content, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    for length in {*range(0, len(content), 61), len(content) - 1}:
        damaged.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged"):
            load_checkpoint(damaged)


def test_a_flipped_bit_is_refused_or_does_not_matter(model: _Model, saved: Path, tmp_path: Path) -> None:
    content, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    n_refused = 0
    for position in range(0, len(content), 23):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            assert _equal(load_checkpoint(damaged).state, dict(model.state_dict()))
        except InputError:
            n_refused += 1
    assert n_refused > 50


def _archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_pickle_that_runs_code_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'attacked'}",)

    attack = pickle.dumps({"state": Attack()}, protocol=2)
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for content in (attack, _archive(entries | {"archive/data.pkl": attack})):
        saved.write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*weights\.pt[^\n]*$"):
            load_checkpoint(saved)
    assert not (tmp_path / "attacked").exists()


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    npz, legacy = io.BytesIO(), io.BytesIO()
    np.savez(npz, weight=np.ones(3))
    torch.save({"weight": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    contents = {
        "empty": b"",
        "text": b"kind = csc\n",
        "npz": npz.getvalue(),
        "legacy torch": legacy.getvalue(),
        "empty archive": _archive({}),
    }
    for name, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*other\.pt[^\n]*$") as refusal:
            load_checkpoint(path)
        assert ("is empty" in str(refusal.value)) == (name == "empty")
    for missing in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match="is no file"):
            load_checkpoint(missing)


def test_members_that_claim_more_than_the_file_has_are_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    saved.write_bytes(content)
    with pytest.raises(InputError, match="claim more bytes"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.ones(3), "does not say what they are"),
        ({"weight": torch.ones(3)}, "does not say what they are"),
        ({"format_version": torch.ones(3)}, "does not say what they are"),
        ({"format_version": 99}, "format version 99"),
        ({"format_version": 1}, "not those of a checkpoint"),
        ({"format_version": 1, "header": "[" * 10**5, "sha256": "", "state": {}}, "damaged"),
        ({"format_version": 1, "header": "{}", "sha256": "", "state": {}}, "damaged"),
        ({"format_version": 1, "header": torch.ones(1), "sha256": "", "state": {}}, "not those"),
    ],
)
def test_tensors_that_are_no_checkpoint_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=match):
        load_checkpoint(tmp_path / "w.pt")


def test_a_part_that_was_changed_missed_or_added_is_refused(saved: Path, model: _Model) -> None:
    content = torch.load(saved, weights_only=True)
    other = json.dumps(json.loads(content["header"]) | {"n_steps": 5})
    extra = json.dumps(json.loads(content["header"]) | {"more": 1})
    state = content["state"]
    for changes, match in [
        ({"header": other}, "digest differs"),
        ({"header": extra}, "more"),
        ({"header": None}, "not those"),
        ({"more": 1}, "not those"),
        ({"sha256": "0" * 64}, "digest differs"),
        ({"state": state | {"beta": state["beta"] + 1}}, "digest differs"),
        ({"state": [1, 2]}, "expected tensors"),
        ({"state": state | {"beta": [1, 2]}}, "expected tensors"),
        ({"state": state | {"beta": torch.eye(2).to_sparse()}}, "dense"),
        ({"state": state | {"beta": torch.tensor(float("nan"))}}, "'beta' is not finite"),
        ({"state": state | {"beta": torch.zeros(1).expand(2**40)}}, "500 MB"),
    ]:
        save_checkpoint(saved, _checkpoint(model.state_dict()), overwrite=True)
        with pytest.raises(InputError, match=match):
            load_checkpoint(_resaved(saved, **changes))


def test_a_larger_file_is_refused_before_it_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with saved.open("ab") as stream:
        stream.truncate(600 * 10**6)  # takes no space on disk
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(InputError, match="has 600 MB, and at most"):
        load_checkpoint(saved)


def test_a_larger_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_STATE_BYTES", 100)
    with pytest.raises(InputError, match="at most 500 MB"):
        _checkpoint({"weight": torch.zeros(26)})


def test_another_kind_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="kind 'csc'; expected 'unet'"):
        load_checkpoint(saved, kind="unet")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("beta"), "beta missing"),
        (lambda state: state.update(gamma=torch.zeros(2)), "gamma not in the model"),
        (lambda state: state.update({"convolution.bias": torch.zeros(4)}), r"shape \(4,\) and the model's \(3,\)"),
        (lambda state: state.update({"convolution.bias": torch.zeros(3).double()}), "float32 holds less"),
        (lambda state: state.update({"convolution.bias": torch.zeros(3) + 0j}), "float32 holds less"),
        (lambda state: state.update(filters=torch.zeros(2)), "complex64 holds less"),
    ],
)
def test_weights_go_only_into_a_model_that_they_fit(model: _Model, change: Any, match: str) -> None:
    state = dict(model.state_dict())
    change(state)
    target = _Model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(InputError, match=match):
        _checkpoint(state).load_into(target)
    assert _equal(target.state_dict(), before)


def test_weights_go_into_a_model_of_higher_precision(model: _Model) -> None:
    target = _Model().double()
    _checkpoint(model.state_dict()).load_into(target)
    assert torch.equal(target.convolution.weight, model.convolution.weight.double())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": " "}, "kind is ' '"),
        ({"data": 3}, "data is 3"),
        ({"seed": -1}, "seed is -1"),
        ({"n_steps": 1.5}, "n_steps is 1.5"),
        ({"config": {"f": print}}, "config cannot be written as JSON"),
        ({"config": {"x": float("nan")}}, "config cannot be written as JSON"),
        ({"config": [1]}, "config is list"),
        ({"metric": 0.9}, "expected a Metric"),
        ({"trained_ranges": {"v": (0.3, 0.1)}}, "range of 'v'"),
        ({"trained_ranges": {"v": (0.3,)}}, "range of 'v'"),
    ],
)
def test_a_description_that_says_nothing_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        _checkpoint({"weight": torch.zeros(2)}, **changes)


def test_a_metric_is_a_number_with_a_definition() -> None:
    with pytest.raises(InputError, match="finite"):
        Metric("psnr", "of the magnitude", float("inf"))
    with pytest.raises(InputError, match="definition"):
        Metric("psnr", "", 30.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), complex(0, float("nan"))])
def test_weights_that_are_not_finite_are_refused(value: complex) -> None:
    with pytest.raises(InputError, match="'weight' is not finite"):
        _checkpoint({"weight": torch.tensor([1.0, value])})
