"""The XML header of ISMRMRD and fastMRI files, read tolerantly: what is missing is unknown, what is wrong a warning."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from operators.errors import InputError

LARMOR_HZ_PER_T = 42.577478518e6
_LONGEST_BYTES = 2**24
_LARGEST_SIZE = 2**31 - 1
_SMALLEST_MM, _LARGEST_MM = 1e-3, 1e5
_COUNTERS = (
    "kspace_encoding_step_0",
    "kspace_encoding_step_1",
    "kspace_encoding_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
    "segment",
)

OptionalSizes = tuple[int | None, int | None, int | None]
OptionalTriple = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Limit:
    """Range and k-space centre of one encoding counter; ``None`` where the header does not say."""

    minimum: int | None = None
    maximum: int | None = None
    center: int | None = None


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What a header says, with ``None`` for what it does not say; triples are in the order (z, y, x).

    Parameters
    ----------
    encoded_shape, recon_shape
        Matrix of the encoded and of the reconstructed space.
    encoded_fov_mm, recon_fov_mm
        Their fields of view, in mm; values that no scan has, such as 0, count as missing.
    trajectory
        Lower case, such as ``"cartesian"``.
    limits
        Ranges of the encoding counters by name, such as ``"kspace_encoding_step_1"``.
    field_strength_t, repetition_time_ms, echo_time_ms, inversion_time_ms, flip_angle_deg
        Protocol; of several echoes the first.
    vendor, model, sequence_name, protocol_name
        Names of device and protocol.
    n_receivers
        Number of receiver channels.
    n_encodings
        Number of encoding spaces; the facts are those of the first.
    patient
        Identifiers of the person.
    warnings
        What was wrong with the header, one sentence each.
    """

    encoded_shape: OptionalSizes = (None, None, None)
    encoded_fov_mm: OptionalTriple = (None, None, None)
    recon_shape: OptionalSizes = (None, None, None)
    recon_fov_mm: OptionalTriple = (None, None, None)
    trajectory: str | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)
    field_strength_t: float | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    vendor: str | None = None
    model: str | None = None
    sequence_name: str | None = None
    protocol_name: str | None = None
    n_receivers: int | None = None
    n_encodings: int = 0
    patient: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def limit(self, counter: str) -> Limit:
        """Range of a counter, all unknown where the header has none."""
        return self.limits.get(counter, Limit())


def parse_header(xml: bytes) -> HeaderFacts:
    """Read the header of an ISMRMRD or fastMRI file.

    Parameters
    ----------
    xml
        The document as it stands in the file.

    Returns
    -------
    HeaderFacts
        What it says. A document that is not well-formed says nothing, with a warning.

    Raises
    ------
    InputError
        If the document is hostile: longer than 16 MiB, or with a document type or entities.

    Examples
    --------
    >>> xml = b"<ismrmrdHeader><encoding><trajectory>Cartesian</trajectory></encoding></ismrmrdHeader>"
    >>> parse_header(xml).trajectory
    'cartesian'
    """
    if len(xml) > _LONGEST_BYTES:
        raise InputError(f"The header is {len(xml)} bytes long; at most {_LONGEST_BYTES} are accepted.")
    text = xml.decode("utf-8", errors="replace").strip("\x00 \t\r\n\ufeff")
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise InputError("The header declares a document type or entities, which no scanner does; it is not read.")
    try:
        root = ElementTree.fromstring(re.sub(r"^<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL))
    except (ElementTree.ParseError, ValueError) as error:
        return HeaderFacts(warnings=(f"The header is not well-formed XML ({error}); nothing in it was used.",))
    return _Header(root).facts()


class _Header:
    """One pass over the elements that collects what cannot be understood."""

    def __init__(self, root: ElementTree.Element) -> None:
        self._root = root
        self._warnings: list[str] = []

    def facts(self) -> HeaderFacts:
        if _local_name(self._root) != "ismrmrdHeader":
            self._warnings.append(f"The header's root is <{_local_name(self._root)}>, not <ismrmrdHeader>.")
        encodings = self._root.findall("{*}encoding")
        if not encodings:
            self._warnings.append("The header has no <encoding>.")
        encoding = encodings[0] if encodings else None
        trajectory = self._text(encoding, "trajectory")
        return HeaderFacts(
            encoded_shape=self._sizes(encoding, "encodedSpace"),
            encoded_fov_mm=self._fov_mm(encoding, "encodedSpace"),
            recon_shape=self._sizes(encoding, "reconSpace"),
            recon_fov_mm=self._fov_mm(encoding, "reconSpace"),
            trajectory=trajectory.lower() if trajectory else None,
            limits=self._limits(encoding),
            field_strength_t=self._field_strength_t(),
            repetition_time_ms=self._number(self._root, "sequenceParameters/TR"),
            echo_time_ms=self._number(self._root, "sequenceParameters/TE"),
            inversion_time_ms=self._number(self._root, "sequenceParameters/TI"),
            flip_angle_deg=self._number(self._root, "sequenceParameters/flipAngle_deg"),
            vendor=self._text(self._root, "acquisitionSystemInformation/systemVendor"),
            model=self._text(self._root, "acquisitionSystemInformation/systemModel"),
            sequence_name=self._text(self._root, "measurementInformation/sequenceName")
            or self._text(self._root, "sequenceParameters/sequence_type"),
            protocol_name=self._text(self._root, "measurementInformation/protocolName"),
            n_receivers=self._integer(self._root, "acquisitionSystemInformation/receiverChannels"),
            n_encodings=len(encodings),
            patient=self._patient(),
            warnings=tuple(self._warnings),
        )

    def _sizes(self, encoding: ElementTree.Element | None, space: str) -> OptionalSizes:
        z, y, x = (self._integer(encoding, f"{space}/matrixSize/{axis}") or None for axis in "zyx")
        return z, y, x

    def _fov_mm(self, encoding: ElementTree.Element | None, space: str) -> OptionalTriple:
        z, y, x = (self._extent_mm(encoding, f"{space}/fieldOfView_mm/{axis}") for axis in "zyx")
        return z, y, x

    def _extent_mm(self, encoding: ElementTree.Element | None, path: str) -> float | None:
        value = self._number(encoding, path)
        if value is not None and not _SMALLEST_MM <= value <= _LARGEST_MM:
            self._warnings.append(f"The header's {path} is {value:g} mm, which no scan has.")
            return None
        return value

    def _limits(self, encoding: ElementTree.Element | None) -> dict[str, Limit]:
        limits = {}
        for counter in _COUNTERS:
            path = f"encodingLimits/{counter}"
            if _find(encoding, path) is not None:
                limits[counter] = Limit(
                    *(self._integer(encoding, f"{path}/{bound}") for bound in ("minimum", "maximum", "center"))
                )
        return limits

    def _field_strength_t(self) -> float | None:
        stated = self._positive(self._root, "acquisitionSystemInformation/systemFieldStrength_T")
        frequency_hz = self._number(self._root, "experimentalConditions/H1resonanceFrequency_Hz")
        if stated is None and frequency_hz is not None and frequency_hz > 1e3:
            return frequency_hz / LARMOR_HZ_PER_T
        return stated

    def _patient(self) -> dict[str, str]:
        elements = {"name": "patientName", "id": "patientID", "birth_date": "patientBirthdate", "sex": "patientGender"}
        found = {key: self._text(self._root, f"subjectInformation/{name}") for key, name in elements.items()}
        return {key: value for key, value in found.items() if value}

    def _text(self, parent: ElementTree.Element | None, path: str) -> str | None:
        element = _find(parent, path)
        return (element.text or "").strip() or None if element is not None else None

    def _number(self, parent: ElementTree.Element | None, path: str) -> float | None:
        text = self._text(parent, path)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self._warnings.append(f"The header's {path} is {text[:40]!r}; expected a number.")
            return None
        return value

    def _integer(self, parent: ElementTree.Element | None, path: str) -> int | None:
        value = self._number(parent, path)
        if value is None:
            return None
        if not value.is_integer() or not 0 <= value <= _LARGEST_SIZE:
            self._warnings.append(f"The header's {path} is {value:g}; expected a whole number that is not negative.")
            return None
        return int(value)

    def _positive(self, parent: ElementTree.Element | None, path: str) -> float | None:
        value = self._number(parent, path)
        return value if value is not None and value > 0 else None


def _find(parent: ElementTree.Element | None, path: str) -> ElementTree.Element | None:
    if parent is None:
        return None
    return parent.find("/".join(f"{{*}}{name}" for name in path.split("/")))


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
