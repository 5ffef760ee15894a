"""Shared settings: one thread, no global randomness, and the measured data where they exist."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for every test, always the same."""
    return torch.Generator().manual_seed(20260222)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with measured data; the test is skipped where it is absent."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("MRCTRECON_DATA", default))
    if not folder.is_dir():
        pytest.skip("no measured data: set MRCTRECON_DATA to a folder that holds them")
    return folder.resolve()
