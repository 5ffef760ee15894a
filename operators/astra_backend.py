"""Projection on the CPU with the ASTRA toolbox, for scans whose system matrix would not fit into memory."""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from operators.beam_geometry import BeamGeometry, FanBeam
from operators.system_matrix import Model

_PARALLEL_NAMES: dict[Model, str] = {"line": "line", "joseph": "linear", "strip": "strip"}


class AstraProjector:
    """Matched projection and back-projection by ASTRA's CPU projectors, without copies, in threads.

    Every process makes its own ASTRA objects at its first call (they do not survive a fork), and they are deleted with
    this one. A pickled or copied projector starts without any.

    Parameters
    ----------
    geometry
        The scan.
    shape
        Rows and columns of an image.
    model
        ``"line"``; for parallel beams also ``"joseph"`` and ``"strip"``.

    Raises
    ------
    ValueError
        If ASTRA has no such projector on the CPU.
    """

    def __init__(self, geometry: BeamGeometry, shape: tuple[int, int], model: Model) -> None:
        if isinstance(geometry, FanBeam) and model != "line":
            raise ValueError(
                f"ASTRA has no {model!r} model for fan beams on the CPU; pass model='line', or a memory_limit_bytes "
                "that holds the matrix."
            )
        self._name = "line_fanflat" if isinstance(geometry, FanBeam) else _PARALLEL_NAMES[model]
        self._made_of = (geometry, shape, model)
        self._objects = _AstraObjects()
        weakref.finalize(self, self._objects.delete)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Project images.

        Parameters
        ----------
        images
            Attenuation, ``(image, y, x)``, float32 on the CPU, in 1/mm.

        Returns
        -------
        torch.Tensor
            Line integrals, ``(image, view, detector)``, float32, dimensionless.
        """
        from astra.experimental import direct_FP2D

        geometry, _, _ = self._made_of
        images = images.contiguous()
        sinograms = images.new_zeros(len(images), geometry.n_views, geometry.n_detectors)

        def work(index: int, views: slice) -> None:
            projector, shape = self._projector(views)
            direct_FP2D(projector, images[index], sinograms[index, views].view(shape))

        _in_threads(work, len(images), geometry.n_views)
        return sinograms

    def back_project(self, sinograms: torch.Tensor) -> torch.Tensor:
        """Apply the exact adjoint of `project`.

        Parameters
        ----------
        sinograms
            ``(image, view, detector)``, float32 on the CPU.

        Returns
        -------
        torch.Tensor
            ``(image, y, x)``, float32.
        """
        from astra.experimental import direct_BP2D

        geometry, image_shape, _ = self._made_of
        sinograms = sinograms.contiguous()
        images = sinograms.new_zeros(len(sinograms), *image_shape)
        adding = threading.Lock()

        def work(index: int, views: slice) -> None:
            projector, shape = self._projector(views)
            part = torch.zeros_like(images[index])
            direct_BP2D(projector, part, sinograms[index, views].view(shape))
            with adding:
                images[index] += part

        _in_threads(work, len(sinograms), geometry.n_views)
        return images

    def _projector(self, views: slice) -> tuple[int, tuple[int, int]]:
        """ASTRA's number for the projector of some views, and the shape of its sinograms."""
        geometry, shape, _ = self._made_of
        one_view_per_ray = isinstance(geometry, FanBeam) and geometry.curved
        n_views = views.stop - views.start
        sinogram = (n_views * geometry.n_detectors, 1) if one_view_per_ray else (n_views, geometry.n_detectors)
        return self._objects.get(
            (views.start, views.stop), lambda: _create(geometry[views], shape, self._name)
        ), sinogram


class _AstraObjects:
    """ASTRA's numbers of the objects of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._ids: dict[Any, int] = {}

    def get(self, key: Any, create: Callable[[], int]) -> int:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._ids = os.getpid(), {}
            if key not in self._ids:
                self._ids[key] = create()
            return self._ids[key]

    def delete(self) -> None:
        import astra

        if self._ids and self._process == os.getpid():
            astra.projector.delete(list(self._ids.values()))
        self._ids = {}


def _create(geometry: BeamGeometry, shape: tuple[int, int], name: str) -> int:
    import astra

    half_y, half_x = (n * geometry.pixel_spacing_mm / 2 for n in shape)
    volume = astra.create_vol_geom(*shape, -half_x, half_x, -half_y, half_y)
    number: int = astra.create_projector(name, _astra_geometry(geometry), volume)
    return number


def _astra_geometry(geometry: BeamGeometry) -> dict[str, Any]:
    """Vectors of ASTRA: ray or source, middle of the detector, step between bins; one line per view, in mm."""
    import astra

    t = np.asarray(geometry.angles_rad)
    along, across = np.stack((np.sin(t), -np.cos(t)), axis=-1), np.stack((np.cos(t), np.sin(t)), axis=-1)
    step = geometry.detector_spacing_mm * across
    if not isinstance(geometry, FanBeam):
        middle = geometry.detector_offset_mm * across
        return dict(astra.create_proj_geom("parallel_vec", geometry.n_detectors, np.hstack((along, middle, step))))
    if not geometry.curved:
        source = geometry.source_to_center_mm * along
        middle = geometry.detector_offset_mm * across - geometry.center_to_detector_mm * along
        return dict(astra.create_proj_geom("fanflat_vec", geometry.n_detectors, np.hstack((source, middle, step))))
    source, directions = (table.reshape(-1, 2) for table in geometry.rays())
    bins = source + geometry.source_to_detector_mm * directions
    step = np.stack((-directions[:, 1], directions[:, 0]), axis=-1) * geometry.detector_spacing_mm
    return dict(astra.create_proj_geom("fanflat_vec", 1, np.hstack((source, bins, step))))


def _in_threads(work: Callable[[int, slice], None], n_images: int, n_views: int) -> None:
    """Call ``work`` for every image, and for parts of the views where there are fewer images than threads."""
    n_threads = torch.get_num_threads()
    n_parts = min(n_views, -(-n_threads // max(n_images, 1)))
    edges = [n_views * part // n_parts for part in range(n_parts + 1)]
    tasks = [(index, slice(*ends)) for index in range(n_images) for ends in pairwise(edges)]
    with ThreadPoolExecutor(n_threads) as pool:
        for task in [pool.submit(work, *task) for task in tasks]:
            task.result()
