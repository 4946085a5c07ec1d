"""The data of a study: points of a known mixture, images, or a table in a file.

Images have values in [-1, 1]; those of 28x28 pixels become 14x14 by averaging.  The
columns of a table are standardised: mean 0 and variance 1 over its training rows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.regression_study.settings import BUILT_IN, StudySettings
from analysis.tables import HELD_OUT, load_table
from configs.errors import InputError, choice_error
from configs.schema import DataConfig
from diffusion.closed_form import MixtureDenoiser
from diffusion.data import Split, open_archive, split_dataset, split_of, to_data_units

__all__ = ["StudyData", "load_data"]

_MNIST_SIDE = 14


class StudyData(NamedTuple):
    """What a study looks at.

    Attributes:
        name: As it was asked for.
        about: What was done to it, for the page.
        digest: sha256 of the training rows; "closed form" of a mixture.
        event: Shape of one sample.
        clean: (N, D) training rows; (0, D) where they are drawn from `truth`.
        held_out: (M, D) rows for tests; (0, D) likewise.
        truth: The mixture that the data come from, or None.
        labels: (N, k) what is regressed on the rows themselves, or None for the score.
        held_out_labels: (M, k) likewise.
    """

    name: str
    about: str
    digest: str
    event: tuple[int, ...]
    clean: NDArray[np.float64]
    held_out: NDArray[np.float64]
    truth: MixtureDenoiser | None = None
    labels: NDArray[np.float64] | None = None
    held_out_labels: NDArray[np.float64] | None = None

    @property
    def dimension(self) -> int:
        """Elements of one sample."""
        return math.prod(self.event)

    @property
    def num_outputs(self) -> int:
        """Numbers that are regressed."""
        return self.dimension if self.labels is None else self.labels.shape[1]


def load_data(name: str, settings: StudySettings) -> StudyData:
    """Load a data set.

    Args:
        name: ``"mixture2d"``, ``"digits"``, ``"mnist"``, or the path of an
            ``.npz`` with x (n, d) and maybe y, or of a ``.csv``, whose columns are x.
        settings: Where mnist is, and what is regressed.

    Raises:
        InputError: If there are no such data, they are damaged, or x or y is not as
            described.
    """
    is_file = name not in BUILT_IN
    if settings.target == "labels" and not (is_file and name.endswith(".npz")):
        raise InputError(
            f"--target labels needs a file .npz with x and y, but {name!r} was given"
        )
    if settings.data is not None and name != "mnist":
        raise InputError(f"--data names the images of mnist; {name!r} has none to name")
    if name == "mixture2d":
        return _mixture()
    if name == "digits":
        return _images(name, split_of(DataConfig("digits")))
    if name == "mnist":
        return _images(name, _mnist(settings))
    if not name.endswith((".npz", ".csv")):
        raise _unknown(name)
    return _table(name, settings)


def _mixture() -> StudyData:
    """Return the three Gaussians of `diffusion.data.builtin`, in closed form."""
    with jax.enable_x64(True):
        angle = 2 * math.pi * jnp.arange(3) / 3
        truth = MixtureDenoiser(
            log_weights=jnp.zeros(3),
            means=1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1),
            bases=jnp.zeros((3, 2, 0)),
            variances=jnp.zeros((3, 0)),
            residual_variances=jnp.full(3, 0.25**2),
        )
    return StudyData(
        "mixture2d",
        "three Gaussians of standard deviation .25 on a circle of radius 1.5 in the "
        "plane; every training set is drawn anew, and the score is known",
        "closed form",
        (2,),
        np.zeros((0, 2)),
        np.zeros((0, 2)),
        truth,
    )


def _images(name: str, split: Split) -> StudyData:
    clean, held_out = (
        _averaged(np.asarray(to_data_units(part.images), np.float64))
        for part in (split.training, split.held_out)
    )
    if not len(held_out):
        raise InputError(f"{name} has no held-out images; prepare it with some")
    event = clean.shape[1:]
    return StudyData(
        name,
        f"{len(clean)} images of {event[0]}x{event[1]} pixels to learn from and "
        f"{len(held_out)} held out, values in [-1, 1]",
        split.digest,
        event,
        clean.reshape(len(clean), -1),
        held_out.reshape(len(held_out), -1),
    )


def _averaged(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return images of 28x28 pixels as 14x14, others as they are."""
    count, height, width, channels = images.shape
    if (height, width) != (2 * _MNIST_SIDE, 2 * _MNIST_SIDE):
        return images
    shape = (count, _MNIST_SIDE, 2, _MNIST_SIDE, 2, channels)
    return images.reshape(shape).mean(axis=(2, 4))


def _mnist(settings: StudySettings) -> Split:
    if settings.data is not None:
        return split_dataset(open_archive(settings.data).read(), HELD_OUT, 0)
    try:
        return split_of(DataConfig("mnist", data_dir=settings.data_dir))
    except InputError as error:
        raise InputError(
            f"no images of mnist in {settings.data_dir}; prepare them (python -m "
            "diffusion.prepare_data mnist), or name the file: --data "
            "train-images-idx3-ubyte.gz"
        ) from error


def _table(path: str, settings: StudySettings) -> StudyData:
    regresses_labels = settings.target == "labels"
    table = load_table(path, needs_labels=regresses_labels)
    return StudyData(
        path,
        table.about,
        table.digest,
        table.event,
        table.training,
        table.held_out,
        labels=table.training_labels if regresses_labels else None,
        held_out_labels=table.held_out_labels if regresses_labels else None,
    )


def _unknown(name: str) -> InputError:
    text = str(choice_error("data set", name, BUILT_IN))
    return InputError(
        f"{text}{'' if text.endswith('?') else '.'} It may also be the path of a file "
        ".npz with x (n, d), or .csv"
    )
