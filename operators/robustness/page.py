"""The page of a report: one HTML file with all that it shows, which asks nothing of any network.

It is built as a tree, so that names and captions stand in it as text, whatever characters they have.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from operators.robustness.checks import Check
from operators.robustness.pictures import curves, error_image, grey_image, printable, shown_size
from operators.robustness.statistics import DEFINITIONS, Analysis, CurvePoint, Gap, Rank, Slope
from operators.robustness.study import Checked, Measure, Panel, Shift, Study

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_TRUTH = "truth"
_WORSE = "▼"
_Record = TypeVar("_Record", Gap, Rank, Slope)


def page(study: Study, analysis: Analysis, facts: Mapping[str, str], files: Sequence[str]) -> str:
    """The report as an HTML document.

    Parameters
    ----------
    study
        What was measured.
    analysis
        Its statistics.
    facts
        By name, what else there is to know, such as versions.
    files
        Names of files beside the page with its numbers.

    Returns
    -------
    str
        The document.
    """
    builder = _Page(study, analysis)
    sections = {
        "gaps": ("Gap between in and out of distribution", builder.gaps()),
        "ranks": ("Ranks", builder.ranks()),
        "curves": ("Curves", builder.curves()),
        "slopes": ("Slopes", builder.slopes()),
        "pictures": ("Pictures", builder.pictures()),
        "checks": ("Checks without ground truth", builder.checks()),
        "definitions": ("Definitions", [builder.definitions()]),
        "facts": ("Methods, data, versions", builder.facts(facts, files)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = [_tag("li", _tag("a", heading, href=f"#{name}")) for name, (heading, _) in shown.items()]
    body = _tag(
        "body",
        _tag("a", "Skip to the results", href="#main", class_="skip"),
        _tag("header", _tag("h1", study.title), _tag("p", study.data)),
        _tag("nav", _tag("ul", *links), aria_label="Contents"),
        _tag(
            "main",
            *(
                _tag("section", _tag("h2", heading, id=f"{name}-heading"), *content, id=name)
                for name, (heading, content) in shown.items()
            ),
            id="main",
        ),
        _tag("script", _SCRIPT),
    )
    document = _tag("html", _head(study.title), body, lang="en")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(document, encoding="unicode", method="html") + "\n"


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a table: a text, and whether it is a number that must not be broken."""

    text: str
    is_number: bool = True


class _Page:
    """The sections of a page; what it hands out has ids that are given once."""

    def __init__(self, study: Study, analysis: Analysis) -> None:
        self._study = study
        self._analysis = analysis
        self._numbers = count(1)

    def gaps(self) -> list[Element]:
        found = _by_measure(self._analysis.gaps)
        if not found:
            return []
        percent = 100 * self._analysis.gaps[0].confidence
        explained = _sentence(
            f"{DEFINITIONS['gap']}. In brackets its {percent:g} % confidence interval: {DEFINITIONS['interval']}. "
            f"{_WORSE}: the whole interval is above zero."
        )
        heads = {gap.shift: f"{gap.shift} ({_cases(gap)})" for gap in self._analysis.gaps}
        return [
            _tag("p", explained),
            *self._grids(
                found, {key: _Cell(_gap_text(gap)) for key, gap in found.items()}, heads, "Gap of {}, method by shift"
            ),
        ]

    def ranks(self) -> list[Element]:
        found = _by_measure(self._analysis.ranks)
        if not found:
            return []
        cells = {key: _Cell(f"{rank.outside} (in: {rank.inside})") for key, rank in found.items()}
        return [
            _tag("p", _sentence(f"{DEFINITIONS['rank']}.")),
            *self._grids(found, cells, {shift.name: shift.name for shift in self._study.shifts}, "Rank by {}"),
        ]

    def slopes(self) -> list[Element]:
        found = _by_measure(self._analysis.slopes)
        if not found:
            return []
        cells = {key: _Cell(_slope_text(slope)) for key, slope in found.items()}
        heads = {shift.name: f"{shift.name}, per unit of {shift.axis}" for shift in self._study.shifts if shift.axis}
        explained = _sentence(f"{DEFINITIONS['slope']}. In brackets the relative slope.")
        return [_tag("p", explained), *self._grids(found, cells, heads, "Slope of {}, method by shift")]

    def curves(self) -> list[Element]:
        if not self._study.shifts:
            return []
        note = _sentence(f"{DEFINITIONS['curve']}. Grey: in distribution.")
        return [_tag("p", note), *(element for shift in self._study.shifts for element in self._curves_of(shift))]

    def pictures(self) -> list[Element]:
        return [self._panel(panel) for panel in self._study.panels]

    def checks(self) -> list[Element]:
        kinds: dict[str, list[Checked]] = {}
        for checked in self._study.checks:
            kinds.setdefault(checked.result.name, []).append(checked)
        sections = []
        for name, own in kinds.items():
            numbers = number_names(own[0].result)
            rows = [
                [
                    _Cell(checked.case, is_number=False),
                    *(_Cell(_plain(getattr(checked.result, number))) for number in numbers),
                    _Cell(checked.result.meaning, is_number=False),
                ]
                for checked in own
            ]
            head = ["method", "case", *(number.replace("_", " ") for number in numbers), "meaning"]
            table = self._table(
                f"{name.capitalize()} of each method and case", head, [checked.method for checked in own], rows
            )
            sections += [_tag("h3", name.capitalize()), _tag("p", _sentence(f"{own[0].result.definition}.")), table]
        return sections

    def definitions(self) -> Element:
        directions = {True: "higher is better", False: "lower is better"}
        described = {m.name: f"{m.definition} ({directions[m.higher_is_better]})" for m in self._study.measures}
        return _description_list({**described, **DEFINITIONS})

    def facts(self, facts: Mapping[str, str], files: Sequence[str]) -> list[Element]:
        methods = self._study.methods
        rows = [
            [
                _Cell(method.description, is_number=False),
                _Cell(method.weights_sha256 or "no weights", is_number=False),
                _Cell("; ".join(f"{n} {low:g} to {high:g}" for n, (low, high) in method.trained_ranges.items()), False),
            ]
            for method in methods
        ]
        head = ["method", "what it is", "SHA-256 of its weights", "trained on"]
        links = _tag("ul", *(_tag("li", _tag("a", file, href=file)) for file in files))
        return [
            self._table("Methods", head, [method.name for method in methods], rows),
            _description_list({"data": self._study.data, **facts}),
            _tag("p", "Command: ", _tag("code", self._study.command)),
            _tag("p", "All numbers as files beside this page:"),
            links,
        ]

    def _grids(
        self,
        found: Mapping[tuple[str, str, str], object],
        cells: Mapping[tuple[str, str, str], _Cell],
        heads: Mapping[str, str],
        caption: str,
    ) -> list[Element]:
        """For each measure a table of methods by shifts; the first is open."""
        methods = [method.name for method in self._study.methods]
        elements = []
        for number, measure in enumerate(self._study.measures):
            rows = [[cells[measure.name, method, shift] for shift in heads] for method in methods]
            table = self._table(caption.format(_directed(measure)), ["method", *heads.values()], methods, rows)
            elements.append(_foldable(measure.name, [table], is_open=number == 0))
        return elements

    def _curves_of(self, shift: Shift) -> list[Element]:
        by_measure: dict[str, list[CurvePoint]] = {}
        for point in self._analysis.points:
            if point.shift == shift.name:
                by_measure.setdefault(point.measure, []).append(point)
        first, *rest = (self._chart(points, shift) for points in by_measure.values())
        elements = [_tag("h3", shift.name)]
        if shift.description:
            elements.append(_tag("p", shift.description))
        elements.append(_tag("div", *first, class_="charts"))
        if rest:
            others = _tag("div", *(element for chart in rest for element in chart), class_="charts")
            elements.append(_foldable(f"Other metrics on {shift.name}", [others]))
        tables = [self._curve_table(points, shift) for points in by_measure.values()]
        elements.append(_foldable(f"Numbers of the curves on {shift.name}", tables))
        return elements

    def _chart(self, points: Sequence[CurvePoint], shift: Shift) -> list[Element]:
        measure = points[0].measure
        text = f"Mean {measure} of each method on {shift.name}; the numbers are in the tables below."
        picture = _tag("img", src=curves(points, shift), alt=text)
        return [_tag("figure", picture, _tag("figcaption", f"{measure} on {shift.name}"))]

    def _curve_table(self, points: Sequence[CurvePoint], shift: Shift) -> Element:
        stored = {(point.method, point.strength): point for point in points}
        methods = list(dict.fromkeys(point.method for point in points))
        rows = [
            [_Cell(f"{p.mean:.4g} ± {p.sd:.2g}") for level in shift.levels for p in [stored[method, level.strength]]]
            for method in methods
        ]
        where = {True: "in distribution", False: "out"}
        head = [f"{level.label} ({where[level.in_distribution]})" for level in shift.levels]
        n_cases = stored[methods[0], shift.levels[0].strength].n_cases
        axis = f" by {shift.axis}" if shift.axis else ""
        return self._table(
            f"{points[0].measure}{axis}, {n_cases} cases at the first level", ["method", *head], methods, rows
        )

    def _panel(self, panel: Panel) -> Element:
        key = f"panel-{next(self._numbers)}"
        images = {_TRUTH: panel.target, **{_own(name): image for name, image in panel.images.items()}}
        grey = {name: f"{key}-image-{number}" for number, name in enumerate(images)}
        error = {name: f"{key}-error-{number}" for number, name in enumerate(images) if name != _TRUTH}
        low, high = panel.window
        unit = f" (in {panel.unit})" if panel.unit else ""
        note = (
            f"All images have one window: black is {low:.4g} and white is {high:.4g}{unit}. Errors are estimate minus "
            f"truth: black is none, blue too low, red too high, brightest from {panel.error_limit:.4g} on."
        )
        captions = {_own(name): caption for name, caption in panel.captions.items()}
        figures = []
        for name, image in images.items():
            height, width = shown_size(image)
            size = {"width": width, "height": height}
            shown = [_tag("img", src=grey_image(image, panel.window), alt=f"{name}", id=grey[name], **size)]
            if name in error:
                source = error_image(image - panel.target, panel.error_limit)
                shown.append(_tag("img", src=source, alt=f"error of {name}", id=error[name], **size))
            lines = [name, *([captions[name]] if name in captions else [])]
            figures.append(_tag("figure", *shown, _tag("figcaption", " · ".join(lines))))
        return _tag(
            "section",
            _tag("h3", panel.title),
            _tag("p", note, class_="note"),
            self._comparison(key, grey, error),
            _tag("div", *figures, class_="pictures"),
        )

    def _comparison(self, key: str, grey: Mapping[str, str], error: Mapping[str, str]) -> Element:
        """Two images over each other with a divider; the script fills and shows it."""

        def choice(side: str, chosen: str) -> Element:
            groups = [
                _tag("optgroup", *(_option(name, value, chosen) for name, value in own.items()), label=label)
                for label, own in (("images", grey), ("errors", error))
                if own
            ]
            label = _tag("label", f"{side.capitalize()} of the divider", for_=f"{key}-{side}")
            return _tag("div", label, _tag("select", *groups, id=f"{key}-{side}", class_=side))

        names = list(grey.values())
        slider = {"type": "range", "min": 0, "max": 100, "value": 50, "step": 1}
        return _tag(
            "div",
            _tag(
                "div",
                choice("left", names[-1]),
                choice("right", names[0]),
                _tag(
                    "div",
                    _tag("label", "Divider", for_=f"{key}-divider"),
                    _tag("input", id=f"{key}-divider", class_="divider", **slider),
                    class_="wide",
                ),
                _tag("button", "Magnify 3×", type="button", class_="zoom", aria_pressed="false"),
                class_="controls",
            ),
            _tag(
                "div",
                _tag("div", class_="stack"),
                class_="view",
                tabindex=0,
                role="group",
                aria_label="Two images over each other; left and right move the divider, Enter magnifies",
            ),
            _tag("p", class_="status note", aria_live="polite"),
            class_="comparison",
            hidden="hidden",
        )

    def _table(
        self, caption: str, head: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[_Cell]]
    ) -> Element:
        key = f"table-{next(self._numbers)}"
        lines = [
            _tag("tr", _tag("th", name, scope="row"), *map(_data_cell, row))
            for name, row in zip(names, rows, strict=True)
        ]
        table = _tag(
            "table",
            _tag("caption", caption, id=key),
            _tag("thead", _tag("tr", *(_tag("th", text, scope="col") for text in head))),
            _tag("tbody", *lines),
        )
        return _tag("div", table, class_="scroll", tabindex=0, role="region", aria_labelledby=key)


def number_names(check: Check) -> list[str]:
    """Names of what a check holds."""
    return [entry.name for entry in fields(check)]  # type: ignore[arg-type]  # all checks are dataclasses


def _by_measure(records: Iterable[_Record]) -> dict[tuple[str, str, str], _Record]:
    return {(record.measure, record.method, record.shift): record for record in records}


def _head(title: str) -> Element:
    # No request leaves the page, and no script but its own runs in it.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(_STYLE)}'; script-src '{_digest(_SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", http_equiv="Content-Security-Policy", content=policy),
        _tag("title", title),
        _tag("link", rel="icon", href="data:,"),
        _tag("style", _STYLE),
    )


def _tag(name: str, /, *children: str | Element, **attributes: object) -> Element:
    """An element; ``class_`` and ``aria_label`` are the attributes class and aria-label."""
    element = Element(name, {key.rstrip("_").replace("_", "-"): printable(str(v)) for key, v in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + printable(child)
        else:
            last.tail = (last.tail or "") + printable(child)
    return element


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _foldable(summary: str, content: Sequence[Element], *, is_open: bool = False) -> Element:
    opened = {"open": "open"} if is_open else {}
    return _tag("details", _tag("summary", summary), *content, **opened)


def _description_list(entries: Mapping[str, str]) -> Element:
    return _tag("dl", *(part for name, text in entries.items() for part in (_tag("dt", name), _tag("dd", text))))


def _data_cell(cell: _Cell) -> Element:
    return _tag("td", cell.text, **({"class_": "number"} if cell.is_number else {}))


def _option(name: str, value: str, chosen: str) -> Element:
    return _tag("option", name, value=value, **({"selected": "selected"} if value == chosen else {}))


def _own(name: str) -> str:
    """The name of a method beside the truth."""
    return f"{name} (method)" if name == _TRUTH else name


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _directed(measure: Measure) -> str:
    return f"{measure.name} ({'higher' if measure.higher_is_better else 'lower'} is better)"


def _cases(gap: Gap) -> str:
    return f"{gap.n_inside} cases, paired" if gap.paired else f"{gap.n_inside} and {gap.n_outside} other cases"


def _gap_text(gap: Gap) -> str:
    if gap.low is None or gap.high is None:
        return f"{_signed(gap.gap)} [one case]"
    return f"{_signed(gap.gap)} [{_signed(gap.low)}, {_signed(gap.high)}]{f' {_WORSE}' if gap.low > 0 else ''}"


def _slope_text(slope: Slope) -> str:
    relative = "" if slope.relative is None else f" ({_signed(100 * slope.relative)} %)"
    return f"{_signed(slope.slope)}{relative}"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
