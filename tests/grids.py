"""Grids and images that tests write to files and look for again."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.voxel_grid import Triple, VoxelGrid

SHAPES = [(1, 6, 5), (4, 5, 8), (3, 7, 6), (2, 1, 3)]


def rotation(seed: int, *, left_handed: bool = False) -> tuple[Triple, Triple, Triple]:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    matrix *= np.sign(np.linalg.det(matrix)) * (-1 if left_handed else 1)
    return tuple(tuple(float(value) for value in row) for row in matrix)  # type: ignore[return-value]


def oblique_grid(shape: tuple[int, int, int], *, seed: int = 3, left_handed: bool = False) -> VoxelGrid:
    directions = rotation(seed, left_handed=left_handed)
    return VoxelGrid(shape, (5.3, 1.7, 0.9), directions, (-81.234, 40.567, 123.456))


def plain_grid(*shape: int) -> VoxelGrid:
    return VoxelGrid((shape[0], shape[1], shape[2]), (5.0, 2.0, 1.5))


def ramp(*shape: int) -> torch.Tensor:
    return torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def marked_image(shape: tuple[int, int, int]) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """A complex image with marked voxels of different brightness at asymmetric places, and their indices."""
    n_z, n_y, n_x = shape
    marks = sorted({(0, 0, 0), (n_z - 1, 0, n_x // 3), (n_z // 2, n_y // 2, n_x // 2), (0, n_y - 1, n_x - 1)})
    image = torch.zeros(shape, dtype=torch.complex64)
    for number, mark in enumerate(marks, start=1):
        image[mark] = number * torch.exp(torch.tensor(1j * number))
    return image, marks


def position_by_hand(grid: VoxelGrid, index: tuple[int, int, int]) -> np.ndarray:
    """The LPS position of a voxel, written out as the definition of the grid says it."""
    position = np.array(grid.origin_mm)
    for step, spacing, direction in zip(index, grid.spacing_mm, grid.directions, strict=True):
        position = position + step * spacing * np.array(direction)
    return position


@contextmanager
def files_at_most(n_bytes: int) -> Iterator[None]:
    """Let the kernel fail writes beyond a size, as a full disk does."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content_of(path: Path) -> dict[str, bytes]:
    return {str(entry): entry.read_bytes() for entry in sorted(path.rglob("*")) if entry.is_file()}
