"""The report of a study: what a reader gets, whatever names it holds, and what a browser makes of it."""

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from operators.errors import InputError
from operators.robustness import (
    Analysis,
    Checked,
    DataResidual,
    LesionInsertion,
    Level,
    Measure,
    NullSpaceChange,
    Panel,
    Score,
    Shift,
    StudiedMethod,
    Study,
    write_report,
)

METHODS = {"adjoint": (0.70, 0.02), "U-Net": (0.93, 0.30), "sparse coding": (0.91, 0.12)}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> & '",
    "$\\frac{1}{$ 日本 \x00 \ud800",
    "_truth",
    "truth",
]


def phantom(n: int = 48) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1).float() * 0.6
    return head + ((x - 0.2) ** 2 + y**2 < 0.04).float() * 0.4 - ((x + 0.3) ** 2 + (y - 0.2) ** 2 < 0.03).float() * 0.4


def study_of(names: list[str] | None = None, n: int = 48) -> Study:
    """A study of three methods, two shifts, three checks and a panel; what is called how can be changed."""
    named = dict(zip(METHODS, names or METHODS, strict=False))
    noise = Shift(
        name="noise",
        axis="noise variance",
        description="More noise than in training.",
        levels=tuple(Level(strength=s, in_distribution=0.15 < s < 0.35) for s in (0.1, 0.2, 0.3, 0.5, 1.0)),
    )
    anatomy = Shift(
        name="anatomy",
        axis=None,
        levels=(
            Level(strength=0, in_distribution=True, label="brain"),
            Level(strength=1, in_distribution=False, label="knee"),
        ),
    )
    draws = torch.Generator().manual_seed(1)
    target = phantom(n)
    measures = (
        Measure(name="ssim", definition="structural similarity, uniform window 7×7", higher_is_better=True),
        Measure(name="nrmse", definition="‖estimate − target‖ / ‖target‖", higher_is_better=False),
    )
    scores, images = [], {}
    for method, (quality, loss) in METHODS.items():
        for shift in (noise, anatomy):
            for level in shift.levels:
                for case in range(8):
                    away = abs(level.strength - 0.25) if shift is noise else level.strength / 2
                    ssim = (
                        quality - loss * away + 0.03 * math.sin(case) + 0.01 * float(torch.randn((), generator=draws))
                    )
                    scores.append(
                        Score(
                            shift=shift.name,
                            strength=level.strength,
                            method=named[method],
                            case=f"{level.label if shift is anatomy else 'head'} {case}",
                            values={"ssim": ssim, "nrmse": 1 - ssim},
                        )
                    )
        images[named[method]] = target + (1 - quality) * torch.randn(n, n, generator=draws)
    checks = tuple(
        Checked(method=named[method], case="head 0", result=result)
        for method in METHODS
        for result in (
            DataResidual(chi2_per_sample=1.2, n_samples=1000, z=4.5, p_value=2e-5),
            NullSpaceChange(share=0.25, over_minimum_norm=0.3, residual=1e-6, converged=True),
            LesionInsertion(recovered=0.8, invented=0.05, n_places=4),
        )
    )
    return Study(
        title="Robustness at low field",
        data="A phantom of two ellipses.",
        command="mrirecon robustness study.toml -o report",
        measures=measures,
        shifts=(noise, anatomy),
        methods=tuple(
            StudiedMethod(
                name=named[method],
                description="of a test",
                weights_sha256="0" * 64 if method != "adjoint" else None,
                trained_ranges={"noise_variance": (0.2, 0.3)},
            )
            for method in METHODS
        ),
        scores=tuple(scores),
        checks=checks,
        panels=(
            Panel(
                title="head 0, noise variance 0.5",
                target=target,
                images=images,
                window=(0.0, 1.0),
                error_limit=0.2,
                unit="a.u.",
                captions={named[method]: f"SSIM {quality}" for method, (quality, _) in METHODS.items()},
            ),
        ),
        facts={"device": "cpu"},
    )


class Reader(HTMLParser):
    """What a page consists of: its elements with their attributes, and the text in them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@dataclass(frozen=True)
class Report:
    """A report as it was written."""

    folder: Path
    study: Study
    analysis: Analysis
    page: Reader


def report_of(folder: Path, study: Study) -> Report:
    analysis = write_report(folder, study, n_resamples=50)
    return Report(folder, study, analysis, Reader((folder / "index.html").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(tmp_path_factory.mktemp("plain"), study_of())


@pytest.fixture(scope="module", params=[None, HOSTILE[:3], HOSTILE[2:]], ids=["plain", "hostile", "strange"])
def any_report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(tmp_path_factory.mktemp("named"), study_of(request.param))


def test_a_page_asks_for_nothing_outside_of_its_folder(any_report: Report) -> None:
    page, folder = any_report.page, any_report.folder
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name, "data:")
            is_here = tag == "a" and (value.startswith("#") or (folder / value).is_file())
            assert is_here or value.startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|@import|url\(", (folder / "index.html").read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1


def test_a_page_can_be_used_without_seeing_it_and_without_a_mouse(any_report: Report) -> None:
    page = any_report.page
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in page.all("label")}
    assert {attributes["id"] for attributes in page.all("input", "select")} == labelled
    assert all(attributes["alt"].strip() for attributes in page.all("img"))
    assert {attributes["value"] for attributes in page.all("option")} <= set(ids)
    for name in ("aria-labelledby", "href"):
        targets = [attributes[name].removeprefix("#") for tag, attributes in page.elements if name in attributes]
        assert all(target in ids for target in targets if "." not in target and "data:" not in target)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert {a["tabindex"] for a in page.all("div") if a.get("class") in ("scroll", "view")} == {"0"}


def test_names_stand_in_the_page_as_text(tmp_path: Path) -> None:
    page = report_of(tmp_path, study_of(HOSTILE[:3])).page
    for name in HOSTILE[:2]:
        assert name in page.texts
    assert "$\\frac{1}{$ 日本 \ufffd \ufffd" in page.texts
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert rows_of(tmp_path / "gaps.csv")[0]["method"] == HOSTILE[0]


def test_a_page_forbids_every_request_and_every_script_but_its_own(plain: Report) -> None:
    document = (plain.folder / "index.html").read_text(encoding="utf-8")
    policy = next(a["content"] for a in Reader(document).all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_page_says_what_every_number_is_and_where_it_is_from(plain: Report) -> None:
    study, page = plain.study, plain.page
    for measure in study.measures:
        assert measure.definition in page.text
    for checked in study.checks:
        assert checked.result.definition[1:] in page.text
        assert checked.result.meaning in page.text
    for words in (study.data, study.command, "0" * 64, "noise_variance 0.2 to 0.3", "mrctrecon", "device", "cpu"):
        assert words in page.text


def test_the_gap_table_shows_the_numbers_of_the_files(plain: Report) -> None:
    page = plain.page
    gaps = rows_of(plain.folder / "gaps.csv")
    assert len(gaps) == 3 * 2 * 2
    for gap in gaps:
        low, middle, high = (f"{float(gap[name]):+.3g}".replace("-", "−") for name in ("low", "gap", "high"))
        worse = " ▼" if float(gap["low"]) > 0 else ""
        assert f"{middle} [{low}, {high}]{worse}" in page.texts
    assert "noise (8 cases, paired)" in page.texts
    assert "anatomy (8 and 8 other cases)" in page.texts


def test_files_hold_every_score_and_every_statistic(plain: Report) -> None:
    study, analysis, folder = plain.study, plain.analysis, plain.folder
    scores = rows_of(folder / "scores.csv")
    assert len(scores) == len(study.scores)
    assert [float(row["ssim"]) for row in scores] == [score.values["ssim"] for score in study.scores]
    assert {row["in_distribution"] for row in scores if row["strength"] == "0.2"} == {"True"}
    stored = json.loads((folder / "study.json").read_text())
    assert [gap["gap"] for gap in stored["gaps"]] == [gap.gap for gap in analysis.gaps]
    assert [rank["outside"] for rank in stored["ranks"]] == [rank.outside for rank in analysis.ranks]
    assert len(rows_of(folder / "curves.csv")) == len(analysis.points)
    assert {row["number"] for row in rows_of(folder / "checks.csv") if row["check"] == "null-space change"} == {
        *("share", "over_minimum_norm", "residual", "converged")
    }
    assert all(check["meaning"] for check in stored["checks"])


def decoded(source: str) -> np.ndarray:
    return imread(io.BytesIO(base64.b64decode(source.split(",", 1)[1])), format="jpeg")


def test_pictures_share_their_window_and_errors_have_a_sign(plain: Report, tmp_path: Path) -> None:
    target = torch.full((20, 30), 0.5)
    target[:, 15:] = 2.0
    estimate = target.clone()
    estimate[:10] += 0.1
    estimate[10:] -= 0.1
    panel = Panel(title="p", target=target, images={"U-Net": estimate}, window=(0.0, 1.0), error_limit=0.1)
    page = report_of(tmp_path, replace(plain.study, shifts=(), scores=(), panels=(panel,))).page
    by_alt = {attributes["alt"]: decoded(attributes["src"]) for attributes in page.all("img") if "id" in attributes}
    truth, error = by_alt["truth"], by_alt["error of U-Net"]
    assert truth.shape == (20, 30, 3)
    assert truth[10, 4].mean() == pytest.approx(127, abs=3)
    assert truth[10, 26].mean() == pytest.approx(255, abs=3)
    assert by_alt["U-Net"][3, 4].mean() == pytest.approx(0.6 * 255, abs=3)
    assert error[3, 10, 0] > error[3, 10, 2] + 50
    assert error[16, 10, 2] > error[16, 10, 0] + 50


def test_large_images_are_made_smaller_and_the_page_stays_small(tmp_path: Path) -> None:
    page = report_of(tmp_path, replace(study_of(n=600), shifts=(), scores=())).page
    assert {decoded(a["src"]).shape for a in page.all("img") if "id" in a} == {(256, 256, 3)}
    assert (tmp_path / "index.html").stat().st_size < 3 * 10**5


def test_a_study_without_shifts_or_pictures_still_has_a_page(tmp_path: Path) -> None:
    page = report_of(tmp_path, replace(study_of(), shifts=(), scores=(), panels=())).page
    assert "pictures" not in [attributes.get("id") for attributes in page.all("section")]
    assert not (tmp_path / "gaps.csv").exists()
    assert len(rows_of(tmp_path / "checks.csv")) == 3 * (4 + 4 + 3)


def test_a_report_is_the_same_every_time_and_replaces_an_earlier_one(plain: Report, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("earlier")
    report_of(tmp_path, plain.study)
    assert (tmp_path / "index.html").read_bytes() == (plain.folder / "index.html").read_bytes()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be the folder of a report"):
        write_report(tmp_path / "file" / "report", study_of())


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")
PROBE = """
addEventListener("load", () => {
  const find = (name) => document.querySelector(".comparison ." + name);
  const [left, divider, zoom, view] = ["left", "divider", "zoom", "view"].map(find);
  const over = find("over");
  const states = [];
  const note = () => states.push({
    clip: getComputedStyle(over).clipPath, value: divider.value, pressed: zoom.getAttribute("aria-pressed"),
    picture: over.src.length, alt: over.alt, status: find("status").textContent,
    width: find("stack").clientWidth, wide: document.documentElement.scrollWidth > innerWidth, across: innerWidth,
  });
  const press = (key) => view.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  note();
  divider.value = 10; divider.dispatchEvent(new Event("input")); note();
  press("ArrowRight"); note();
  left.value = left.options[1].value; left.dispatchEvent(new Event("change")); note();
  press("Enter"); note();
  press("Enter"); note();
  zoom.click(); note();
  parent.postMessage(JSON.stringify(states), "*");
});
"""
# A window has a smallest width, a frame has not.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><pre id="probed"></pre>
<script>addEventListener("message", (event) => {{ probed.textContent = event.data; }});</script>
<iframe src="probed.html" width="{width}" height="900"></iframe>"""


def browse(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars")
    offline = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run")
    return subprocess.run(
        [BROWSER, *quiet, *offline, *arguments], capture_output=True, text=True, timeout=120, check=True
    )


def with_script(page: Path, script: str) -> Path:
    """A copy of a page with another script, which its policy lets run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    document = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ")
    copy = page.with_name("probed.html")
    copy.write_text(document.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


@needs_browser
@pytest.mark.parametrize("width", [1200, 360])
def test_in_a_browser_the_divider_moves_and_pictures_change(tmp_path: Path, width: int) -> None:
    write_report(tmp_path, study_of(HOSTILE[:3]), n_resamples=50)
    with_script(tmp_path / "index.html", PROBE)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = browse(profile, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    assert "CONSOLE" not in shown.stderr
    probed = re.search(r'<pre id="probed">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert probed is not None
    reader = Reader(probed[0])
    start, moved, pressed, other, large, small, zoomed = json.loads("".join(reader.texts))
    assert (start["value"], moved["value"], pressed["value"]) == ("50", "10", "12")
    assert len({start["clip"], moved["clip"], pressed["clip"]}) == 3
    assert other["picture"] != pressed["picture"]
    assert other["alt"] == HOSTILE[0]
    assert other["alt"] in other["status"]
    assert [state["pressed"] for state in (other, large, small, zoomed)] == ["false", "true", "false", "true"]
    assert large["width"] == pytest.approx(3 * small["width"], abs=2)
    assert (start["across"], start["wide"]) == (width, False)


@needs_browser
def test_in_a_browser_another_divider_is_another_picture(tmp_path: Path) -> None:
    write_report(tmp_path, study_of(), n_resamples=50)
    pictures = []
    for position in (10, 90):
        script = (
            'addEventListener("load", () => {'
            f'const d = document.querySelector(".divider"); d.value = {position}; d.dispatchEvent(new Event("input"));'
            'document.body.replaceChildren(document.querySelector(".view")); });'
        )
        page = with_script(tmp_path / "index.html", script)
        picture = tmp_path / f"{position}.png"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        browse(profile, "--window-size=400,400", f"--screenshot={picture}", page.as_uri())
        pictures.append(imread(picture))
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.01
