"""The data of a study: points of a known mixture, images, or a table in a file.

Images have values in [-1, 1]; those of 28x28 pixels become 14x14 by averaging.  The
columns of a table are standardised: mean 0 and variance 1 over its training rows.
"""

import hashlib
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from analysis.kernels.checks import check_data, check_finite
from analysis.regression_study.settings import BUILT_IN, StudySettings
from configs.errors import InputError, choice_error
from configs.schema import DataConfig
from diffusion.closed_form import MixtureDenoiser
from diffusion.data import Split, open_archive, split_dataset, split_of, to_data_units

__all__ = ["StudyData", "load_data"]

_HELD_OUT = 0.2
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
        return split_dataset(open_archive(settings.data).read(), _HELD_OUT, 0)
    try:
        return split_of(DataConfig("mnist", data_dir=settings.data_dir))
    except InputError as error:
        raise InputError(
            f"no images of mnist in {settings.data_dir}; prepare them (python -m "
            "diffusion.prepare_data mnist), or name the file: --data "
            "train-images-idx3-ubyte.gz"
        ) from error


def _table(path: str, settings: StudySettings) -> StudyData:
    x, y = _read_npz(path) if path.endswith(".npz") else (_read_csv(path), None)
    if x.ndim < 2 or len(x) < 20 or not math.prod(x.shape[1:]):
        raise InputError(f"x of {path!r} has shape {x.shape}; give (n, d), n >= 20")
    event, rows = x.shape[1:], x.reshape(len(x), -1)
    if y is None and settings.target == "labels":
        raise InputError(f"{path!r} has no y to regress; leave out --target labels")
    labels = None if y is None else _checked_labels(path, rows, y)
    check_finite("x", rows)
    order = np.random.default_rng(0).permutation(len(rows))
    held_out, training = np.split(order, [round(_HELD_OUT * len(rows))])
    mean, deviation = rows[training].mean(axis=0), rows[training].std(axis=0)
    rows = (rows - mean) / np.where(deviation > 0, deviation, 1)
    use = labels if settings.target == "labels" else None
    return StudyData(
        path,
        f"{len(training)} rows to learn from and {len(held_out)} held out, "
        f"{rows.shape[1]} columns brought to mean 0 and variance 1",
        hashlib.sha256(np.ascontiguousarray(rows[training]).data).hexdigest(),
        event,
        rows[training],
        rows[held_out],
        labels=None if use is None else use[training],
        held_out_labels=None if use is None else use[held_out],
    )


def _checked_labels(path: str, rows: NDArray, y: NDArray) -> NDArray[np.float64]:
    if y.ndim not in (1, 2) or len(y) != len(rows):
        raise InputError(
            f"y of {path!r} has shape {y.shape}; give ({len(rows)},) or "
            f"({len(rows)}, k), a row for each of x"
        )
    labels = y.reshape(len(y), -1)
    check_data(rows, labels)
    return labels


def _read_npz(path: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    try:
        with np.load(_existing(path), allow_pickle=False) as file:
            if "x" not in file.files:
                found = ", ".join(file.files) or "nothing"
                raise InputError(
                    f"{path!r} has no array 'x' but {found:.200}; write it with "
                    "np.savez(path, x=...), y=... if there are labels"
                )
            x, y = file["x"], file["y"] if "y" in file.files else None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path!r} is no npz file of numbers: {error}") from error
    return _numbers(path, "x", x), None if y is None else _numbers(path, "y", y)


def _read_csv(path: str) -> NDArray[np.float64]:
    text = _existing(path).read_text(errors="replace").splitlines()
    try:
        has_header = bool(text) and not _is_number(text[0].split(",")[0])
        return np.loadtxt(text[has_header:], delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"{path!r} is no table of numbers with commas between them: {error}"
        ) from error


def _numbers(path: str, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "iufb":
        raise InputError(f"{name} of {path!r} is {values.dtype}; give numbers")
    return values.astype(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path!r}")
    return Path(path)


def _unknown(name: str) -> InputError:
    text = str(choice_error("data set", name, BUILT_IN))
    return InputError(
        f"{text}{'' if text.endswith('?') else '.'} It may also be the path of a file "
        ".npz with x (n, d), or .csv"
    )
