from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from operators.errors import InputError
from operators.io.picture import write_comparison, write_preview
from operators.voxel_grid import VoxelGrid
from tests.grids import ramp


def _bright(picture: np.ndarray) -> np.ndarray:
    """Bounding box (top, bottom, left, right) of what is white and not text."""
    rows, columns = np.nonzero(picture[..., :3].min(axis=-1) > 0.97)
    return np.array([rows.min(), rows.max(), columns.min(), columns.max()])


def test_a_preview_has_row_0_on_top_column_0_left_and_the_right_aspect(tmp_path: Path) -> None:
    image = torch.zeros(1, 40, 40)
    image[0, 5:15, 20:40] = 1.0
    grid = VoxelGrid((1, 40, 40), (5.0, 1.0, 2.0))
    write_preview(tmp_path / "image.png", image, grid=grid, titles=[""])
    picture = imread(tmp_path / "image.png")
    height, width = picture.shape[:2]
    assert width / height == pytest.approx(2, rel=0.05)
    top, bottom, left, right = _bright(picture) / [height, height, width, width]
    assert (top, bottom) == (pytest.approx(5 / 40, abs=0.04), pytest.approx(15 / 40, abs=0.04))
    assert (left, right) == (pytest.approx(0.5, abs=0.04), pytest.approx(1.0, abs=0.04))


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 8, 6), (7, 300, 2), (2, 3, 30, 40), (60, 9, 9), (8, 8)])
def test_any_number_of_slices_fits_on_a_sheet(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_preview(tmp_path / "image.png", ramp(*shape) * 1j)
    height, width = imread(tmp_path / "image.png").shape[:2]
    assert 60 < height < 2400
    assert 60 < width < 2400


def test_a_comparison_shows_errors_against_the_target(tmp_path: Path) -> None:
    target = torch.ones(3, 50, 50, dtype=torch.complex64)
    worse = target * 0.9
    options = {"target": "truth", "metrics": {"worse": "PSNR $20 dB\nSSIM 0.5"}, "window": (0.0, 1.0)}
    write_comparison(tmp_path / "both.png", {"worse": worse, "truth": target}, **options)  # type: ignore[arg-type]
    write_comparison(tmp_path / "same.png", {"worse": target, "truth": target}, **options)  # type: ignore[arg-type]
    both, same = imread(tmp_path / "both.png"), imread(tmp_path / "same.png")
    height, width = both.shape[:2]
    row, column = round(height * 0.75), round(width * 0.25)
    np.testing.assert_allclose(both[row, column, :3], [0.736, 0.216, 0.330], atol=0.02)  # inferno at 5 · 0.1 of 1
    np.testing.assert_allclose(same[row, column, :3], 0, atol=0.02)
    assert both[round(height * 0.35), round(width * 0.75), :3].min() == 1


def _grey(path: Path, row: float, column: float) -> float:
    """Grey value, 0 … 1, at a place given as fractions of height and width."""
    picture = imread(path)
    pixel = picture[round(row * picture.shape[0]), round(column * picture.shape[1]), :3]
    assert np.ptp(pixel) < 0.01
    return float(pixel.mean())


def test_a_preview_shows_signed_values_through_a_given_window(tmp_path: Path) -> None:
    image = torch.full((1, 40, 40), -1000.0)
    image[0, :, 20:30] = 40.0
    image[0, :, 30:] = 3000.0
    write_preview(tmp_path / "image.png", image, window=(-160.0, 240.0), titles=[""])
    greys = [_grey(tmp_path / "image.png", 0.5, column) for column in (0.25, 0.625, 0.875)]
    np.testing.assert_allclose(greys, [0, 0.5, 1], atol=0.01)
    write_preview(tmp_path / "plain.png", image, titles=[""])
    assert _grey(tmp_path / "plain.png", 0.5, 0.25) == 0


def test_a_caption_stands_above_the_slices_and_covers_none(tmp_path: Path) -> None:
    image = torch.zeros(1, 40, 40)
    write_preview(tmp_path / "without.png", image, titles=[""])
    write_preview(tmp_path / "with.png", image, titles=[""], caption="soft tissue: −160 … 240 HU")
    without, with_caption = imread(tmp_path / "without.png"), imread(tmp_path / "with.png")
    n_added = with_caption.shape[0] - without.shape[0]
    assert 15 < n_added < 40
    np.testing.assert_array_equal(with_caption[n_added:], without)
    assert with_caption[:n_added, :, :3].max() > 0.8


def test_errors_with_a_limit_keep_their_sign(tmp_path: Path) -> None:
    target = torch.full((1, 50, 50), -100.0)
    columns = {"low": target - 50, "truth": target, "high": target + 50}
    write_comparison(tmp_path / "a.png", columns, target="truth", window=(-160.0, 240.0), error_limit=100.0)
    picture = imread(tmp_path / "a.png")
    row = round(picture.shape[0] * 0.75)
    low, high = (picture[row, round(picture.shape[1] * column), :3] for column in (0.2, 0.85))
    np.testing.assert_allclose(low, [0.169, 0.482, 0.839], atol=0.02)  # half of the limit below: blue
    np.testing.assert_allclose(high, [0.839, 0.271, 0.169], atol=0.02)  # half of the limit above: red
    same = {"low": target, "truth": target, "high": target}
    write_comparison(tmp_path / "b.png", same, target="truth", window=(-160.0, 240.0), error_limit=100.0)
    assert _grey(tmp_path / "b.png", 0.75, 0.2) < 0.01


def test_a_unit_brings_a_scale_from_white_to_black_beside_every_row(tmp_path: Path) -> None:
    image = torch.zeros(1, 50, 50)
    columns = {"a": image, "b": image}
    write_comparison(tmp_path / "without.png", columns, window=(-1.0, 1.0))
    write_comparison(tmp_path / "with.png", columns, window=(-1.0, 1.0), unit="HU")
    width = imread(tmp_path / "without.png").shape[1]
    picture = imread(tmp_path / "with.png")[:, :, :3]
    assert picture.shape[1] > width + 40
    bar = picture[:, width + 4]  # within the scale, which begins where the sheet without it ends
    greys = bar[np.ptp(bar, axis=1) == 0].mean(axis=-1)
    assert greys.max() > 0.98
    assert greys.min() < 0.02
    assert np.count_nonzero(np.diff(greys) > 0) <= 1  # falls from top to bottom


def test_constant_images_and_text_of_any_kind_make_pictures(tmp_path: Path) -> None:
    image = torch.zeros(2, 8, 8)
    write_preview(tmp_path / "image.png", image, titles=["$\\frac$", "a_b^{"], caption="$x_")
    write_preview(tmp_path / "negative.png", image - 5)
    write_comparison(tmp_path / "columns.png", {"$x": image, "λ = 0.01": image}, metrics={"$x": "100 %"})
    assert len(list(tmp_path.iterdir())) == 3


def test_pictures_are_deterministic_and_change_no_global_setting(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        write_preview(tmp_path / name, ramp(3, 8, 8))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_pictures_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    image, path = ramp(2, 8, 8), tmp_path / "image.png"
    with pytest.raises(InputError, match=r"does not end in \.png"):
        write_preview(tmp_path / "image.jpg", image)
    with pytest.raises(InputError, match="image holds voxels that are not finite"):
        write_preview(path, image * float("nan"))
    with pytest.raises(ValueError, match="1 titles for 2 slices"):
        write_preview(path, image, titles=["one"])
    with pytest.raises(ValueError, match=r"image has shape \(8,\)"):
        write_preview(path, image[0, 0])
    with pytest.raises(ValueError, match="images of one shape"):
        write_comparison(path, {"a": image, "b": image[:1]})
    with pytest.raises(ValueError, match="images of one shape"):
        write_comparison(path, {})
    with pytest.raises(ValueError, match="no column 'truth'"):
        write_comparison(path, {"a": image}, target="truth")
    with pytest.raises(ValueError, match="no column 'b'"):
        write_comparison(path, {"a": image}, metrics={"b": ""})
    with pytest.raises(ValueError, match="expected a lower and a larger"):
        write_comparison(path, {"a": image}, window=(1.0, 1.0))
    with pytest.raises(ValueError, match="expected a lower and a larger"):
        write_preview(path, image, window=(0.0, float("inf")))
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"error_limit is {limit}"):
            write_comparison(path, {"a": image}, target="a", error_limit=limit)
    assert list(tmp_path.iterdir()) == []
