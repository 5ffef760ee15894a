"""Three people made of formulas, in files, with the description of a study of them."""

from pathlib import Path
from typing import Any

import numpy as np

from ctrecon.config import Data
from ctrecon.datasets import Source
from ctrecon.phantom import body_phantom

PEOPLE = ("a", "b", "c")
FINE = 48  # pixels along each side of the files
SECTIONS = ("thorax", "abdomen", "pelvis")


def write_people(folder: Path) -> None:
    """Write ``a.npz``, ``b.npz`` and ``c.npz``, each with three sections of one body in an image of 360 mm."""
    for seed, person in enumerate(PEOPLE):
        slices = np.stack([body_phantom((FINE, FINE), section=section, seed=seed)[0].numpy() for section in SECTIONS])
        np.savez(folder / f"{person}.npz", hu=slices, pixel_spacing_mm=np.full(2, 360 / FINE))


def data_in(folder: Path, **changed: Any) -> Data:
    """The description of these people: a trains, b validates, c is for the test."""
    words: dict[str, Any] = {
        "description": "bodies made of formulas",
        "licence": "CC0-1.0",
        "matrix": 24,
        "train": ("a",),
        "validation": ("b",),
        "test": ("c",),
        "sources": tuple(Source(path=f"{person}.npz", patient=person, kernel="soft") for person in PEOPLE),
        "folder": str(folder),
    }
    return Data(**words | changed)
