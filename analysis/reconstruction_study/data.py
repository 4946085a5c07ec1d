"""The data of an auto-encoder study: laws that are known, images, tables in files.

Of known laws every study draws its own points, and scores are compared with the truth.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.autoencoder.datasets import (
    SPIRAL_SIGMA,
    mixture_manifold,
    sample_spiral,
    spiral_denoiser,
    spiral_point,
    two_bumps,
)
from analysis.reconstruction_study.reference import DensityDenoiser
from analysis.reconstruction_study.settings import BUILT_IN, StudySettings
from analysis.tables import load_table
from configs.errors import InputError, choice_error
from configs.schema import DataConfig
from diffusion.closed_form import EmpiricalDenoiser, MixtureDenoiser
from diffusion.data import Split, split_of, to_data_units
from diffusion.training.record import read_record
from samplers.statistics_run import read_training_images

__all__ = ["StudyData", "Window", "load_data"]

_IMAGE_SIGMA, _TABLE_SIGMA, _MANIFOLD_SIGMA = 0.3, 0.3, 0.1
_DENSE = 8000


class Window(NamedTuple):
    """A square of the plane.

    Attributes:
        centre: (x_1, x_2), data units.
        reach: Half of its side, data units.
    """

    centre: tuple[float, float]
    reach: float


class StudyData(NamedTuple):
    """What a study looks at.

    Attributes:
        name: As it was asked for.
        about: What it is, for the page.
        digest: sha256 of the training samples; "closed form" of a known law.
        event: Shape of one sample.
        sigma: Noise level where none is asked for, data units.
        squash: c of the direct tanh network's output c tanh(.).
        draw: (key, n) -> (n, *event) clean samples of a known law, or None.
        law: Makes the known law, or None.
        clean: (N, *event) float32 samples to learn from; none where they are drawn.
        held_out: (M, *event) float32 samples for tests; likewise.
        curve: (P, 2) points of a curve that the data lie on, or None.
        tangents: (n, 2) -> unit vectors along that curve, or None.
        windows: Of the plane, to draw fields in.
        network: A run that came with the data, or None.
    """

    name: str
    about: str
    digest: str
    event: tuple[int, ...]
    sigma: float
    squash: float = 2.0
    draw: Callable[[Array, int], Array] | None = None
    law: Callable[[], MixtureDenoiser] | None = None
    clean: NDArray[np.float32] | None = None
    held_out: NDArray[np.float32] | None = None
    curve: NDArray[np.float64] | None = None
    tangents: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    windows: tuple[Window, ...] = ()
    network: str | None = None

    @property
    def dimension(self) -> int:
        """Elements of one sample."""
        return math.prod(self.event)

    def law_of(self, points: NDArray[np.float32]) -> Callable[[], DensityDenoiser]:
        """Return what makes the known law, or else the points' own."""
        if self.law is not None:
            return self.law
        return lambda: EmpiricalDenoiser(jnp.asarray(points))


def load_data(name: str, settings: StudySettings) -> StudyData:
    """Load a data set.

    Args:
        name: ``"spiral"``, ``"two-bumps"``, ``"mixture10d"``, ``"digits"``, the folder
            of a run, or the path of an ``.npz`` with x (n, d) or of a ``.csv``.
        settings: Of these the noise level is looked at.

    Raises:
        InputError: If there are no such data or they are damaged.
    """
    if name == "spiral":
        return _spiral(settings)
    if name == "two-bumps":
        return _two_bumps()
    if name == "mixture10d":
        return _mixture()
    if name == "digits":
        return _images(name, split_of(DataConfig("digits")))
    if Path(name).is_dir() and read_record(name) is not None:
        return _images(name, read_training_images(name))._replace(network=name)
    if name.endswith((".npz", ".csv")):
        return _table(name)
    text = str(choice_error("data set", name, BUILT_IN))
    raise InputError(
        f"{text}{'' if text.endswith('?') else '.'} It may also be the folder of a "
        "run, or the path of a file .npz with x (n, d), or .csv"
    )


def _spiral(settings: StudySettings) -> StudyData:
    sigma = SPIRAL_SIGMA if settings.sigma is None else settings.sigma
    # One law serves all noise levels from the lowest on, and refuses too low ones.
    lowest = min((sigma, *(settings.sigmas or ())))
    spiral_denoiser(lowest)
    t = 3 + 12 * (np.arange(_DENSE) + 0.5) / _DENSE
    zoom = Window((0.02, -0.12), 0.02)
    return StudyData(
        "spiral",
        "points .04 t (sin t, cos t), t uniform in [3, 15]; every density and score is "
        "known by quadrature along the curve",
        "closed form",
        (2,),
        SPIRAL_SIGMA,
        squash=2.0,
        draw=sample_spiral,
        law=lambda: spiral_denoiser(lowest),
        curve=np.asarray(spiral_point(t), np.float64),
        tangents=_spiral_tangents,
        windows=(*(Window((0.0, 0.0), reach) for reach in (1.0, 0.5, 0.3)), zoom),
    )


def _spiral_tangents(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit vectors along the spiral at points on it, (n, 2)."""
    t = np.linalg.norm(points, axis=1) / 0.04
    velocity = np.stack([np.sin(t) + t * np.cos(t), np.cos(t) - t * np.sin(t)], axis=1)
    return velocity / np.linalg.norm(velocity, axis=1, keepdims=True)


def _two_bumps() -> StudyData:
    windows = (
        Window((0.0, 0.0), 10.0),
        Window((0.0, 0.0), 5.0),
        Window((5.0, 0.0), 2.0),
    )
    return StudyData(
        "two-bumps",
        "two Gaussians of variance 1 in the plane, at (-5, 0) and (5, 0)",
        "closed form",
        (2,),
        1.0,
        squash=40.0,
        draw=lambda key, n: two_bumps().sample(key, n),
        law=two_bumps,
        windows=windows,
    )


def _mixture() -> StudyData:
    return StudyData(
        "mixture10d",
        "25 Gaussians along a curve in ten dimensions, ten times longer than wide",
        "closed form",
        (10,),
        _MANIFOLD_SIGMA,
        squash=4.0,
        draw=lambda key, n: mixture_manifold().sample(key, n),
        law=mixture_manifold,
    )


def _images(name: str, split: Split) -> StudyData:
    clean, held_out = (
        np.asarray(to_data_units(part.images), np.float32)
        for part in (split.training, split.held_out)
    )
    if len(held_out) < 16:
        raise InputError(
            f"{name} has {len(held_out)} held-out samples; at least 16 are needed to "
            "measure errors on"
        )
    shape = "x".join(map(str, clean.shape[1:]))
    return StudyData(
        name,
        f"{len(clean)} samples of {shape} values to learn from and {len(held_out)} "
        "held out, values in [-1, 1]",
        split.digest,
        clean.shape[1:],
        _IMAGE_SIGMA,
        clean=clean,
        held_out=held_out,
    )


def _table(path: str) -> StudyData:
    table = load_table(path)
    clean, held_out = (
        part.astype(np.float32).reshape(-1, *table.event)
        for part in (table.training, table.held_out)
    )
    digest = hashlib.sha256(np.ascontiguousarray(clean).data).hexdigest()
    return StudyData(
        path,
        table.about,
        digest,
        table.event,
        _TABLE_SIGMA,
        squash=2 * float(np.abs(clean).max()),
        clean=clean,
        held_out=held_out,
    )
