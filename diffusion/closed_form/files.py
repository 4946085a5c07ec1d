"""Closed-form models on disk: one ``.npz`` without pickles.

Beside the arrays of the model lie its kind and its provenance: how many images it was
fitted to, which (sha256), what their pixels 0 and 255 became, with which settings and
versions.  A reader refuses what does not match what it is to be used on.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.atomic import write_atomically
from diffusion.closed_form.edgeworth import EdgeworthDenoiser
from diffusion.closed_form.empirical import EmpiricalDenoiser
from diffusion.closed_form.gaussian import GaussianDenoiser
from diffusion.closed_form.mixture import MixtureDenoiser
from diffusion.versions import versions

__all__ = [
    "ClosedForm",
    "Provenance",
    "load_closed_form",
    "load_gaussian",
    "save_closed_form",
    "save_gaussian",
]

ClosedFormDenoiser = (
    GaussianDenoiser | MixtureDenoiser | EmpiricalDenoiser | EdgeworthDenoiser
)

_FORMAT = "scorelab closed form 1"
_GAUSSIAN_FORMAT = "scorelab gaussian 1"  # of earlier workdirs
_VALUE_RANGE = (-1.0, 1.0)
_GAUSSIAN = ("mean", "basis", "variances", "residual_variance")
_ARRAYS = {
    "gaussian": _GAUSSIAN,
    "mixture": (
        "log_weights",
        "means",
        "bases",
        "variances",
        "residual_variances",
    ),
    "empirical": ("points",),
    "edgeworth": (*_GAUSSIAN, "third_cumulant"),
}
_NON_NEGATIVE = ("variances", "residual_variance", "residual_variances")


class Provenance(NamedTuple):
    """Where a closed form comes from.

    Attributes:
        num_images: Images it was fitted to; 0 when unknown.
        data_digest: sha256 of those images; empty when unknown.
        value_range: What pixels 0 and 255 became.
        settings: How it was fitted, ready for JSON.
        versions: Packages it was fitted with.
    """

    num_images: int = 0
    data_digest: str = ""
    value_range: tuple[float, float] = _VALUE_RANGE
    settings: dict[str, Any] = {}  # noqa: RUF012, never written to
    versions: dict[str, str] = {}  # noqa: RUF012, never written to


class ClosedForm(NamedTuple):
    """A model read from a file.

    Attributes:
        denoiser: The model.
        kind: gaussian, mixture, empirical or edgeworth.
        provenance: Where it comes from.
    """

    denoiser: ClosedFormDenoiser
    kind: str
    provenance: Provenance

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return event_shape(self.denoiser)


def event_shape(denoiser: ClosedFormDenoiser) -> tuple[int, ...]:
    """Return the shape of one sample of a closed form."""
    if isinstance(denoiser, EdgeworthDenoiser):
        return jnp.shape(denoiser.gaussian.mean)
    if isinstance(denoiser, GaussianDenoiser):
        return jnp.shape(denoiser.mean)
    arrays = (
        denoiser.means if isinstance(denoiser, MixtureDenoiser) else denoiser.points
    )
    return jnp.shape(arrays)[1:]


def save_closed_form(
    path: str | Path, denoiser: ClosedFormDenoiser, provenance: Provenance
) -> None:
    """Write a closed form to one ``.npz``, atomically.

    Args:
        path: Destination, written exactly so (no suffix is added).
        denoiser: The model.
        provenance: Where it comes from; empty versions become those at hand.

    Raises:
        OSError: If the file cannot be written.
    """
    kind, arrays = _arrays(denoiser)
    values = provenance._replace(versions=provenance.versions or versions())._asdict()
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            format=np.asarray(_FORMAT),
            kind=np.asarray(kind),
            provenance=np.asarray(json.dumps(values)),
            **arrays,
        ),
    )


def load_closed_form(
    path: str | Path,
    *,
    event_shape: tuple[int, ...] | None = None,
    data_digest: str | None = None,
) -> ClosedForm:
    """Read a closed form and check that it is what it says.

    Args:
        path: A file of `save_closed_form`.
        event_shape: Shape that its samples must have; None for any.
        data_digest: sha256 of the images it must have been fitted to; None for any.

    Returns:
        The model, float32 (float64 under `jax.enable_x64`), with its provenance.

    Raises:
        InputError: If the file is missing, damaged, of another kind, of another value
            range, shape or data set, or holds values that make no such model.
    """
    kind, provenance, arrays = _read(Path(path))
    _check_values(path, kind, arrays)
    low, high = provenance.value_range
    if (low, high) != _VALUE_RANGE:
        raise InputError(
            f"{path} was fitted to pixels in [{low:g}, {high:g}]; this project's lie "
            "in [-1, 1]: fit it again to x / 127.5 - 1"
        )
    found = ClosedForm(_denoiser(kind, arrays), kind, provenance)
    if event_shape is not None and found.event_shape != tuple(event_shape):
        raise InputError(
            f"{path} is over samples of shape {found.event_shape}, but "
            f"{tuple(event_shape)} is needed; fit one to those images"
        )
    digest = provenance.data_digest
    if data_digest and digest and digest != data_digest:
        raise InputError(
            f"{path} was fitted to other images (sha256 {digest[:12]}... instead of "
            f"{data_digest[:12]}...); fit it again or name another file"
        )
    return found


def save_gaussian(
    path: str | Path,
    gaussian: GaussianDenoiser,
    *,
    num_images: int = 0,
    data_digest: str = "",
) -> None:
    """Write a Gaussian to one ``.npz``; see `save_closed_form`.

    Args:
        path: Destination, written exactly so.
        gaussian: The Gaussian.
        num_images: Number of images it was fitted to; 0 when unknown.
        data_digest: sha256 of those images; empty when unknown.

    Raises:
        OSError: If the file cannot be written.
    """
    save_closed_form(path, gaussian, Provenance(num_images, data_digest))


def load_gaussian(
    path: str | Path,
    *,
    event_shape: tuple[int, ...] | None = None,
    data_digest: str | None = None,
) -> GaussianDenoiser:
    """Read a Gaussian; see `load_closed_form`.

    Args:
        path: The ``.npz`` file.
        event_shape: Shape that its samples must have; None for any.
        data_digest: sha256 of the images it must have been fitted to; None for any.

    Returns:
        The Gaussian, float32 (float64 under `jax.enable_x64`).

    Raises:
        InputError: If the file is missing, holds no Gaussian or does not match.
    """
    if not Path(path).is_file():
        raise InputError(
            f"no Gaussian at {path}; diffusion.train writes gaussian.npz into its "
            "workdir, and diffusion.fit_closed_form writes one for any data set"
        )
    found = load_closed_form(path, event_shape=event_shape, data_digest=data_digest)
    if not isinstance(found.denoiser, GaussianDenoiser):
        raise InputError(
            f"{path} holds a model of kind {found.kind}, but a Gaussian is needed; fit "
            "one with diffusion.fit_closed_form --kind gaussian"
        )
    return found.denoiser


def _arrays(denoiser: ClosedFormDenoiser) -> tuple[str, dict[str, Any]]:
    """Return the kind of a model and its arrays by name."""
    if isinstance(denoiser, EdgeworthDenoiser):
        arrays = {name: getattr(denoiser.gaussian, name) for name in _GAUSSIAN}
        arrays["third_cumulant"] = denoiser.third_cumulant
        kind = "edgeworth"
    else:
        kinds = {
            GaussianDenoiser: "gaussian",
            MixtureDenoiser: "mixture",
            EmpiricalDenoiser: "empirical",
        }
        kind = kinds[type(denoiser)]
        arrays = {name: getattr(denoiser, name) for name in _ARRAYS[kind]}
    return kind, {name: np.asarray(value) for name, value in arrays.items()}


def _denoiser(kind: str, arrays: dict[str, NDArray[Any]]) -> ClosedFormDenoiser:
    values: dict[str, Array] = {n: jnp.asarray(a) for n, a in arrays.items()}
    if kind == "edgeworth":
        cumulant = values.pop("third_cumulant")
        return EdgeworthDenoiser(GaussianDenoiser(**values), cumulant)
    classes = {
        "gaussian": GaussianDenoiser,
        "mixture": MixtureDenoiser,
        "empirical": EmpiricalDenoiser,
    }
    return classes[kind](**values)


def _read(path: Path) -> tuple[str, Provenance, dict[str, NDArray[Any]]]:
    """Return kind, provenance and arrays of a file, whatever their values."""
    if not path.is_file():
        raise InputError(
            f"there is no file {path}; python -m diffusion.fit_closed_form writes one"
        )
    try:
        # What this module writes is stored as it is: a small file cannot grow.
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as file:
            kind, provenance = _header(file)
            return kind, provenance, {name: file[name] for name in _ARRAYS[kind]}
    except (
        *(KeyError, ValueError, TypeError, EOFError, OSError, MemoryError),
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a closed form of this project or is damaged ({reason}); "
            "write it again with python -m diffusion.fit_closed_form"
        ) from error


def _header(file: Any) -> tuple[str, Provenance]:
    found = str(file["format"])
    if found == _GAUSSIAN_FORMAT:
        return "gaussian", Provenance(int(file["num_images"]), str(file["data_digest"]))
    if found != _FORMAT:
        raise ValueError(f"its format is {found!r}")
    values = json.loads(str(file["provenance"]))
    values["value_range"] = tuple(values["value_range"])
    kind = str(file["kind"])
    if kind not in _ARRAYS:
        raise ValueError(f"its kind is {kind!r}")
    return kind, Provenance(**values)


def _check_values(path: str | Path, kind: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Refuse arrays that make no model of this kind."""
    shapes = {name: array.shape for name, array in arrays.items()}
    if not _shapes_fit(kind, shapes):
        raise InputError(f"{path} holds arrays that make no {kind}: shapes {shapes}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{path} holds NaN or infinite values in {name}")
        if name in _NON_NEGATIVE and array.min(initial=0) < 0:
            raise InputError(
                f"{path} holds a negative variance, {array.min():g} in {name}; every "
                "variance must be >= 0"
            )
    for name in ("basis", "bases"):
        if name in arrays and not _orthonormal(arrays[name]):
            raise InputError(f"{path} holds a basis whose columns are not orthonormal")


def _shapes_fit(kind: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    if kind == "empirical":
        return len(shapes["points"]) >= 2 and 0 not in shapes["points"]
    if kind == "mixture":
        k, event = shapes["means"][:1], shapes["means"][1:]
        basis = shapes["bases"]
        return (
            bool(event)
            and len(basis) == 3
            and basis[:2] == (*k, int(np.prod(event)))
            and shapes["variances"] == (*k, basis[2])
            and shapes["log_weights"] == shapes["residual_variances"] == k
        )
    basis, cumulant = shapes["basis"], shapes.get("third_cumulant", (1, 1, 1))
    return (
        len(basis) == 2
        and basis[0] == int(np.prod(shapes["mean"]))
        and shapes["variances"] == basis[1:]
        and shapes["residual_variance"] == ()
        and len(cumulant) == 3
        and len(set(cumulant)) == 1
        and (kind == "gaussian" or cumulant[0] <= basis[1])
    )


def _orthonormal(bases: NDArray[Any]) -> bool:
    """Tell whether the columns of (D, R) or (K, D, R) are orthonormal to 1e-3."""
    for basis in bases if bases.ndim == 3 else [bases]:
        error = basis.T @ basis - np.eye(basis.shape[1])
        if np.abs(error).max(initial=0) > 1e-3:
            return False
    return True
