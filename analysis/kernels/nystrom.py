"""Kernel regression on very many points: Nystrom's features of M landmarks.

With K_MM = V diag(lambda) V^T of the landmarks and W = V lambda^(-1/2), cut where
lambda is rounding,

    phi(x) = k(x, landmarks) W,     k(x, x') ~ phi(x) . phi(x')   (exact on landmarks),

and kernel regression becomes that of phi: the eigenvectors of phi^T phi / n, R x R,
take the place of those of K.  phi^T phi is a sum over points, so that data of any
number go by in blocks, held by nobody; on several devices each one sums its own rows.

Accumulated is C = sum k k^T where K_MM is well conditioned, and then phi^T phi =
W^T C W, which halves the work; else phi itself block by block, since errors of C would
be multiplied by 1 / lambda_min.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.checks import as_labels, check_finite
from analysis.kernels.gram import Kernel, fill_blocks
from analysis.kernels.regression import FlowModel, Spectrum
from configs.errors import InputError, require
from diffusion.denoiser import as_pytree

__all__ = [
    "NystromFeatures",
    "NystromMap",
    "choose_landmarks",
    "decompose_features",
    "nystrom_features",
    "nystrom_map",
    "nystrom_stream",
]

_BLOCK = 2048
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
# Up to here rounding in C, times 1 / lambda_min, stays below the smallest eigenvalue.
_WELL_CONDITIONED = 1e6


class NystromMap(NamedTuple):
    """The features phi of a point: a pytree that can be called.

    Attributes:
        kernel: The kernel, as a pytree.
        landmarks: (M, *event) landmarks.
        whitening: (M, R) W = V lambda^(-1/2).
    """

    kernel: Any
    landmarks: ArrayLike
    whitening: ArrayLike

    def __call__(self, z: ArrayLike, *, block: int = _BLOCK) -> Array:
        """Return the features of some points.

        Args:
            z: (q, *event) points.
            block: Points and landmarks handled at once.

        Returns:
            (q, R), in the kernel's dtype: what `predict` takes as its rows.
        """
        points, landmarks = jnp.asarray(z), jnp.asarray(self.landmarks)
        rows = fill_blocks(self.kernel, points, landmarks.astype(points.dtype), block)
        return _dot(rows, jnp.asarray(self.whitening, rows.dtype))


class NystromFeatures(NamedTuple):
    """The training points in features, and their eigendecomposition.

    Attributes:
        phi: (n, R) features, float64.
        spectrum: Their spectrum, which `fit` takes.
    """

    phi: NDArray[np.float64]
    spectrum: Spectrum


def choose_landmarks(key: Array, points: ArrayLike, count: int) -> ArrayLike:
    """Return some of the points, drawn without replacement.

    Uniform draws: pivots of a partial Cholesky factor are no better for these kernels.

    Args:
        key: A `jax.random.key`.
        points: (n, *event) points.
        count: Landmarks, M; at most n.

    Returns:
        (M, *event), in the order of the points.

    Raises:
        InputError: If `count` is not in [1, n].
    """
    n = np.shape(points)[0]
    require(1 <= count <= n, "count", count, f"in [1, {n}], the number of points")
    chosen = np.sort(np.asarray(jax.random.choice(key, n, (count,), replace=False)))
    return points[chosen]  # type: ignore[index]


def nystrom_map(
    kernel: Kernel, landmarks: ArrayLike, rtol: float = 1e-10
) -> NystromMap:
    """Return the features of a kernel for some landmarks, computed in float64.

    Args:
        kernel: Takes (n, *event) and (q, *event) points and returns (n, q).
        landmarks: (M, *event) landmarks.
        rtol: Eigenvalues of K_MM below `rtol` times the largest are left out.

    Returns:
        A pytree that can be called on points, with float64 arrays of NumPy.

    Raises:
        InputError: If a landmark is not finite or K_MM has no eigenvalue above 0.
    """
    points = np.asarray(landmarks, np.float64)
    require(len(points) > 0, "landmarks", points.shape, "at least one point")
    check_finite("landmarks", points)
    tree = as_pytree(kernel)
    with jax.enable_x64(True):
        matrix = np.asarray(fill_blocks(tree, jnp.asarray(points), None, _BLOCK))
    check_finite("the kernel of the landmarks", matrix)
    values, vectors = np.linalg.eigh(matrix)
    require(values[-1] > 0, "the largest eigenvalue of K_MM", values[-1], "above 0")
    kept = values > rtol * values[-1]
    return NystromMap(tree, points, vectors[:, kept] / np.sqrt(values[kept]))


def nystrom_features(
    kernel: Kernel,
    Z: ArrayLike,
    landmarks: ArrayLike,
    rtol: float = 1e-10,
    *,
    block: int = _BLOCK,
) -> NystromFeatures:
    """Return the features of the training points and their spectrum.

    For predictions make the map once, ``phi = nystrom_map(kernel, landmarks)``, and
    take ``decompose_features(phi(Z))`` and ``predict(model, phi(x), s)``.

    Args:
        kernel: Takes (n, *event) and (q, *event) points and returns (n, q).
        Z: (n, *event) training points.
        landmarks: (M, *event) landmarks, such as those of `choose_landmarks`.
        rtol: See `nystrom_map`.
        block: Points and landmarks handled at once.

    Returns:
        The features, (n, R), and the spectrum, float64 arrays of NumPy.

    Raises:
        InputError: If a value is not finite.
    """
    check_finite("Z", Z)
    features = nystrom_map(kernel, landmarks, rtol)
    with jax.enable_x64(True):
        phi = np.asarray(features(np.asarray(Z, np.float64), block=block))
    return NystromFeatures(phi, decompose_features(phi))


def decompose_features(phi: ArrayLike) -> Spectrum:
    """Return the spectrum of the kernel phi phi^T.

    Arrays of NumPy are handled by NumPy, those of JAX by JAX, in their own dtype: on
    long training times float32 shows.

    Args:
        phi: (n, R) features; rows of a JAX array may be divided over devices.

    Returns:
        The R eigenvalues of phi^T phi / n, decreasing, with eigenvectors and features.

    Raises:
        InputError: If `phi` is not a matrix or not finite.
    """
    if np.ndim(phi) != 2 or not np.shape(phi)[0]:
        raise InputError(f"phi has shape {np.shape(phi)}; give (n, R) features, n >= 1")
    check_finite("phi", phi)
    on_host = isinstance(phi, np.ndarray)
    features: Any = phi if on_host else jnp.asarray(phi)
    n = features.shape[0]
    if on_host:
        values, vectors = np.linalg.eigh(features.T @ features / n)
    else:
        values, vectors = jnp.linalg.eigh(_dot(features.T, features) / n)
    return _spectrum(values, vectors, n, features)


def nystrom_stream(
    features: NystromMap,
    blocks: Iterable[tuple[ArrayLike, ArrayLike]],
    *,
    rows: int = 4096,
    mesh: Mesh | None = None,
) -> FlowModel:
    """Fit data that go by in blocks, in float64; only R x R matrices are held.

    Args:
        features: See `nystrom_map`.
        blocks: Pairs of points (b, *event) and labels (b, d), less the first guess if
            there is one; of any and of differing sizes b.
        rows: Points handled at once; each block is cut and padded to so many.
        mesh: Devices among which the rows are divided, such as
            ``make_placement(1, jax.device_count()).mesh`` of `diffusion.training.mesh`;
            None for one device.

    Returns:
        The model, with float64 arrays of NumPy and neither features nor labels:
        everything but `residuals` and `left_vectors` works on it.

    Raises:
        InputError: If there is no point, a value is not finite, a shape does not fit or
            the devices do not divide `rows`.
    """
    devices = 1 if mesh is None else mesh.size
    require(
        rows >= 1 and rows % devices == 0,
        "rows",
        rows,
        f"a multiple of the number of devices, {devices}",
    )
    fold = _condition(features) <= _WELL_CONDITIONED
    on_host = mesh is None and jax.default_backend() == "cpu"
    n, sums = 0, None
    put = _placer(mesh)
    tree = jax.tree.map(lambda leaf: put(leaf, False), features)
    # The iterator runs outside of 64 bits: its random numbers are not to change.
    for z, y, count in _cut(blocks, rows, np.shape(features.landmarks)[1:]):
        if sums is None:
            width = np.shape(features.whitening)[0 if fold else 1]
            sums = _zeros(width, y.shape[1])
            sums = sums if on_host else _Sums(*(put(zeros, False) for zeros in sums))
        with jax.enable_x64(True):
            values = _values(tree, put(z, True), fold)
            if on_host:
                _add_on_host(sums, np.asarray(values)[:count], y[:count])
            else:
                mask = put(np.arange(rows) < count, True)
                sums = _add(sums, values, put(y, True), mask)
        n += count
    if sums is None:
        raise InputError("there are no points; give at least one block of them")
    return _finish(features, jax.tree.map(np.asarray, sums), n, fold)


class _Sums(NamedTuple):
    """What is summed over points, r being features or, before whitening, kernels."""

    second: Any  # (R, R) sum r r^T
    labels: Any  # (R, d) sum r y^T
    square: Any  # () sum |y|^2


def _zeros(width: int, outputs: int) -> _Sums:
    return _Sums(np.zeros((width, width)), np.zeros((width, outputs)), np.zeros(()))


def _placer(mesh: Mesh | None) -> Any:
    """Return a function (array, whether its rows are divided) -> array on devices."""
    if mesh is not None:
        # Sums over divided rows are left to the compiler, whatever the mesh is for.
        kinds = (AxisType.Auto,) * len(mesh.axis_names)
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)

    def put(value: ArrayLike, divided: bool) -> Array:
        axes = P(tuple(mesh.axis_names)) if mesh is not None and divided else P()
        with jax.enable_x64(True):
            if mesh is None:
                return jnp.asarray(value)
            return jax.device_put(value, NamedSharding(mesh, axes))

    return put


@partial(jax.jit, static_argnames="fold")
def _values(features: NystromMap, z: Array, fold: bool) -> Array:
    """Return what is summed of some points: kernels, or features."""
    values = features.kernel(z, jnp.asarray(features.landmarks))
    return values if fold else _dot(values, jnp.asarray(features.whitening))


@partial(jax.jit, donate_argnums=0)
def _add(sums: _Sums, values: Array, y: Array, mask: Array) -> _Sums:
    values = jnp.where(mask[:, None], values, 0)
    return _Sums(
        sums.second + _dot(values.T, values),
        sums.labels + _dot(values.T, y),
        sums.square + jnp.sum(y**2),
    )


def _add_on_host(sums: _Sums, values: NDArray, y: NDArray) -> None:
    """Add to the sums in place; NumPy knows that a product is symmetric."""
    second, labels, square = sums
    second += values.T @ values
    labels += values.T @ y
    square += np.sum(y**2)


def _cut(
    blocks: Iterable[tuple[ArrayLike, ArrayLike]], rows: int, event: tuple[int, ...]
) -> Iterator[tuple[NDArray, NDArray, int]]:
    """Yield points and labels in pieces of `rows`, padded, with how many are real."""
    outputs = None
    for z, y in blocks:
        points = np.asarray(z, np.float64)
        labels = np.asarray(as_labels(y, len(points)), np.float64)
        outputs = labels.shape[1] if outputs is None else outputs
        if points.shape[1:] != event or labels.shape[1] != outputs:
            raise InputError(
                f"a block has points of shape {points.shape[1:]} and {labels.shape[1]} "
                f"outputs; landmarks have {event} and the first block {outputs}"
            )
        check_finite("inputs", points)
        for start in range(0, len(points), rows):
            piece, target = points[start : start + rows], labels[start : start + rows]
            spare = rows - len(piece)
            # Copies of a point of the data: the kernel may not take zeros.
            padding = np.repeat(piece[:1], spare, axis=0)
            target = np.pad(target, ((0, spare), (0, 0)))
            yield np.concatenate([piece, padding]), target, rows - spare


def _finish(features: NystromMap, sums: _Sums, n: int, fold: bool) -> FlowModel:
    """Return the model of all points from their sums."""
    second, labels = sums.second, sums.labels
    if fold:
        whitening = np.asarray(features.whitening)
        second = whitening.T @ second @ whitening
        labels = whitening.T @ labels
    values, vectors = np.linalg.eigh(second / n)
    spectrum = _spectrum(values, vectors, n, None)
    coef = np.asarray(spectrum.scale)[:, None] * (spectrum.evecs.T @ labels)
    rest = np.maximum(sums.square - np.sum(coef**2), 0)
    return FlowModel(spectrum, coef, rest)


def _spectrum(values: Any, vectors: Any, n: int, features: Array | None) -> Spectrum:
    """Return the spectrum of features, eigenvalues that are rounding set to 0."""
    numpy = np if isinstance(values, np.ndarray) else jnp
    mu = values[::-1]
    above = mu > np.finfo(mu.dtype).eps * mu[0]
    scale: Any = numpy.where(above, 1 / numpy.sqrt(n * numpy.where(above, mu, 1)), 0)
    return Spectrum(mu * above, vectors[:, ::-1], n, scale, features)


def _condition(features: NystromMap) -> float:
    """Return the condition of the part of K_MM that is kept."""
    # Columns of W have length lambda^(-1/2).
    lengths = np.sum(np.square(np.asarray(features.whitening)), axis=0)
    return float(lengths.max() / lengths.min())
