"""Trajectories of sequences written by pypulseq, against what their gradients were designed for."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mrirecon.io.pulseq
from mrirecon.io.pulseq import read_pulseq_trajectory
from mrirecon.trajectory import in_radians_per_pixel
from operators.errors import InputError

pp = pytest.importorskip("pypulseq", minversion="1.5")

N, FOV_M, DWELL_S = 16, 0.2, 20e-6
ROUNDING = 1e-5  # of the six digits in the file
INDEX = torch.arange(N, dtype=torch.float64) + 0.5 - N // 2  # of a sample, which lies in the middle of its dwell time


def system() -> Any:
    return pp.Opts(max_grad=40, grad_unit="mT/m", max_slew=150, slew_unit="T/m/s", rf_dead_time=100e-6)


def excitation(use: str = "excitation", flip_rad: float = 0.2, duration: float = 1e-4) -> Any:
    return pp.make_block_pulse(flip_rad, duration=duration, delay=100e-6, system=system(), use=use)


def along(axis: str, per_metre: float, duration: float = 1e-3) -> Any:
    """A gradient that moves k-space by so much."""
    return pp.make_trapezoid(axis, area=per_metre, duration=duration, system=system())


def readout(axis: str, length_per_metre: float, n: int = N) -> Any:
    """A gradient that is flat while n samples cross so much of k-space, with fixed ramps."""
    return pp.make_trapezoid(
        axis, flat_area=length_per_metre, flat_time=n * DWELL_S, rise_time=2e-4, fall_time=2e-4, system=system()
    )


def receiver(n: int = N) -> Any:
    return pp.make_adc(n, duration=n * DWELL_S, delay=2e-4, system=system())


def radial(n_spokes: int = 5) -> Any:
    sequence = pp.Sequence(system())
    for spoke in range(n_spokes):
        direction = {"x": math.cos(math.pi * spoke / n_spokes), "y": math.sin(math.pi * spoke / n_spokes)}
        gradients = [readout(axis, share * N / FOV_M) for axis, share in direction.items()]
        sequence.add_block(excitation())
        sequence.add_block(*[along(g.channel, -g.area / 2) for g in gradients])
        sequence.add_block(*gradients, receiver())
        sequence.add_block(along("z", 3000, 3e-3))
    return sequence


def cartesian(lines: tuple[int, ...] = (-2, -1, 0, 1), phase: tuple[str, ...] = ("y",)) -> Any:
    """Lines of a slice, with the slice selection and its rewinder."""
    sequence = pp.Sequence(system())
    rf, select, rewind = pp.make_sinc_pulse(
        0.3, duration=1e-3, slice_thickness=5e-3, delay=100e-6, system=system(), return_gz=True, use="excitation"
    )
    gradient = readout("x", N / FOV_M)
    for line in lines:
        sequence.add_block(rf, select)
        if "z" in phase:
            sequence.add_block(rewind)
        steps = [along(axis, line / FOV_M) for axis in phase]
        sequence.add_block(along("x", -gradient.area / 2), *steps, *([] if "z" in phase else [rewind]))
        sequence.add_block(gradient, receiver())
        sequence.add_block(pp.make_delay(1e-3))
    return sequence


def written(sequence: Any, folder: Path, *, signed: bool = True) -> Path:
    path = folder / "scan.seq"
    sequence.write(str(path), create_signature=signed)
    return path


def edited(path: Path, edit: Callable[[str], str]) -> Path:
    path.write_text(edit(path.read_text()))
    return path


def assert_positions(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def test_radial_spokes_lie_where_they_were_designed(tmp_path):
    trajectory, time_s, decision = read_pulseq_trajectory(written(radial(), tmp_path))
    angle_rad = math.pi * torch.arange(5, dtype=torch.float64) / 5
    direction = torch.stack((angle_rad.sin(), angle_rad.cos()), -1)  # (ky, kx)
    assert trajectory.dtype == torch.float64
    assert_positions(trajectory, INDEX[:, None] / FOV_M * direction[:, None])
    # Half the pulse, the prephaser, the ramp and half a sample lie between the excitation and the first sample.
    first = 0.5e-4 + 1e-3 + 2e-4 + DWELL_S / 2
    expected = (first + DWELL_S * torch.arange(N, dtype=torch.float64)).expand(5, N)
    torch.testing.assert_close(time_s, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(time_s.diff(dim=-1), torch.full((5, N - 1), DWELL_S, dtype=torch.float64))
    assert "Sampled along ky and kx" in decision.reason
    assert decision.value == "5 readouts of 16 samples"
    assert not decision.warning


def test_radians_per_pixel_follow_from_the_field_of_view(tmp_path):
    trajectory, _, _ = read_pulseq_trajectory(written(radial(), tmp_path))
    for unit in ("1/m", None):
        k, decision = in_radians_per_pixel(trajectory, (N, N), (1e3 * FOV_M, 1e3 * FOV_M), unit=unit)
        assert decision.value == "1/m"
        angle_rad = math.pi * torch.arange(5, dtype=torch.float64) / 5
        expected = 2 * math.pi * INDEX / N * torch.stack((angle_rad.sin(), angle_rad.cos()), -1)[..., None]
        torch.testing.assert_close(k, expected.mT.double(), rtol=0, atol=4e-5)


def test_cartesian_lines_of_a_slice_have_two_axes(tmp_path):
    trajectory, _, decision = read_pulseq_trajectory(written(cartesian(), tmp_path))
    expected = torch.empty(4, N, 2, dtype=torch.float64)
    expected[..., 0] = torch.arange(-2, 2, dtype=torch.float64)[:, None] / FOV_M
    expected[..., 1] = INDEX / FOV_M
    assert_positions(trajectory, expected)
    assert re.search(r"kz, which stays within [\d.e-]+ per metre, left out", decision.reason)


def test_three_axes_come_in_the_order_of_the_image(tmp_path):
    trajectory, _, decision = read_pulseq_trajectory(written(cartesian((-1, 1), ("y", "z")), tmp_path))
    expected = torch.empty(2, N, 3, dtype=torch.float64)
    expected[..., 0] = expected[..., 1] = torch.tensor([[-1.0], [1.0]]) / FOV_M
    expected[..., 2] = INDEX / FOV_M
    torch.testing.assert_close(trajectory, expected, rtol=0, atol=2e-3)  # the slice selection is much larger
    assert "Sampled along kz and ky and kx" in decision.reason


def test_refocusing_reverses_what_was_gathered_before(tmp_path):
    sequence = pp.Sequence(system())
    gradient = readout("x", N / FOV_M)
    for line in (-1, 1):
        sequence.add_block(excitation(flip_rad=math.pi / 2))
        sequence.add_block(along("x", gradient.area / 2), along("y", -line / FOV_M))
        sequence.add_block(excitation("refocusing", math.pi, 2e-4))
        sequence.add_block(gradient, receiver())
        sequence.add_block(pp.make_delay(1e-3))
    trajectory, _, decision = read_pulseq_trajectory(written(sequence, tmp_path))
    assert_positions(trajectory[..., 0], torch.tensor([[-1.0], [1.0]]).double().expand(2, N) / FOV_M)
    assert_positions(trajectory[..., 1], (INDEX / FOV_M).expand(2, N))
    assert not decision.warning


def test_readouts_before_the_first_excitation_are_noise(tmp_path):
    sequence = pp.Sequence(system())
    sequence.add_block(receiver(7))
    for block in range(1, 1 + len(radial(2).block_events)):
        sequence.add_block(radial(2).get_block(block))
    trajectory, _, decision = read_pulseq_trajectory(written(sequence, tmp_path))
    clean, _, _ = read_pulseq_trajectory(written(radial(2), tmp_path))
    assert_positions(trajectory, clean)
    assert "1 readouts before the first excitation left out" in decision.reason


def test_what_the_file_does_not_tell_is_said(tmp_path):
    sequence = pp.Sequence(system())
    for block in range(1, 1 + len(radial(2).block_events)):
        sequence.add_block(radial(2).get_block(block))
    path = edited(written(sequence, tmp_path, signed=False), lambda text: text.replace(" 0 0 0 0 e\n", " 0 0 0 0 u\n"))
    _, _, decision = read_pulseq_trajectory(path)
    assert decision.warning
    assert "1 pulses of no stated use are taken to excite" in decision.reason
    assert "the file carries no signature" in decision.reason


def test_line_ends_and_comments_may_be_of_another_system(tmp_path):
    path = written(radial(2), tmp_path)
    expected, _, _ = read_pulseq_trajectory(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    torch.testing.assert_close(read_pulseq_trajectory(path)[0], expected)
    path = written(radial(2), tmp_path, signed=False)
    path.write_bytes(b"# Gr\xf6\xdfe\n" + path.read_bytes().rstrip())
    torch.testing.assert_close(read_pulseq_trajectory(path)[0], expected)


def test_an_edited_file_contradicts_its_signature(tmp_path):
    path = edited(written(radial(2), tmp_path), lambda text: text.replace("16 20000", "16 30000"))
    with pytest.raises(InputError, match="does not match the signature at its end"):
        read_pulseq_trajectory(path)


def test_a_truncated_file_is_refused_or_complete(tmp_path):
    path = written(cartesian((0, 1)), tmp_path)
    whole, complete = path.read_bytes(), read_pulseq_trajectory(path)[0]
    sections = [match.start() for match in re.finditer(rb"^\[", whole, re.MULTILINE)]
    cuts = {*range(0, len(whole), len(whole) // 60), *(at + more for at in sections for more in (0, 3, 20, 60))}
    messages = []
    for cut in sorted(cuts - {len(whole)}):
        path.write_bytes(whole[:cut])
        try:
            trajectory, _, decision = read_pulseq_trajectory(path)
        except InputError as error:
            messages.append(str(error))
        else:
            assert decision.warning
            torch.testing.assert_close(trajectory, complete)
    assert len(messages) > 0.9 * len(cuts)
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        (r"(\[ADC\]\n1) 16", r"\1 1e13", "it is damaged"),
        (r"(\[ADC\]\n1) 16", r"\1 sixteen", "could not be read as Pulseq"),
        (r"(\[ADC\]\n)1 16", r"\g<1>2 16", "could not be read as Pulseq"),
        (r"(\[TRAP\]\n *1 +)\S+", r"\1nan", "could not be read as Pulseq"),
        (r"\[TRAP\]", "[TRIP]", "could not be read as Pulseq"),
        (r"major 1", "major 0", "could not be read as Pulseq"),
    ],
)
def test_a_damaged_file_is_refused(was, becomes, message, tmp_path):
    def damage(text: str) -> str:
        damaged, n_places = re.subn(was, becomes, text)
        assert n_places == 1
        return damaged

    path = edited(written(radial(2), tmp_path, signed=False), damage)
    with pytest.raises(InputError, match=message):
        read_pulseq_trajectory(path)


def test_other_files_are_told_apart(tmp_path):
    for content, message in (
        (b"", "is empty"),
        (b"\x93NUMPY" + bytes(100), "is no Pulseq file"),
        (b"# Pulseq sequence file\n", "is no Pulseq file"),
    ):
        path = tmp_path / "other.seq"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_pulseq_trajectory(path)
    with pytest.raises(InputError, match="does not exist"):
        read_pulseq_trajectory(tmp_path / "missing.seq")


def _deaf() -> Any:
    sequence = pp.Sequence(system())
    sequence.add_block(excitation())
    sequence.add_block(readout("x", N / FOV_M))
    return sequence


def _unexcited() -> Any:
    sequence = pp.Sequence(system())
    sequence.add_block(readout("x", N / FOV_M), receiver())
    return sequence


def _ragged() -> Any:
    sequence = radial(2)
    sequence.add_block(receiver(12))
    return sequence


def _pulse_in_a_readout() -> Any:
    """A sample falls on the microsecond before the centre of the pulse."""
    sequence = radial(2)
    receiving = pp.make_adc(N, dwell=10e-6, delay=104e-6, system=system())
    sequence.add_block(excitation(), readout("x", N / FOV_M), receiving)
    return sequence


def _still() -> Any:
    sequence = pp.Sequence(system())
    sequence.add_block(excitation())
    sequence.add_block(receiver())
    return sequence


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_deaf, "never switches the receiver on"),
        (_unexcited, "excites nothing before it samples"),
        (_ragged, "readouts of 12 to 16 samples; expected all of the same length"),
        (_pulse_in_a_readout, "positions that are not finite"),
        (_still, "moves nowhere in k-space"),
        (lambda: cartesian((0,)), "moves along kx only"),
    ],
)
def test_sequences_that_make_no_image_are_refused(make, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_pulseq_trajectory(written(make(), tmp_path))


def test_without_pypulseq_the_extra_is_named(tmp_path, monkeypatch):
    path = written(radial(2), tmp_path)
    monkeypatch.setitem(sys.modules, "pypulseq", None)
    with pytest.raises(InputError, match=re.escape("pip install 'mrctrecon[pulseq]'")):
        read_pulseq_trajectory(path)
    assert not hasattr(mrirecon.io.pulseq, "pypulseq")
