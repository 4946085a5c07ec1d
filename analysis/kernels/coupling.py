"""How close a wide network stays to its kernel, and where the error of a score goes.

Gradient descent on a network of width m and on its limit kernel, from the same data,
drift apart by about m^(-1/2); the distance has two parts, as the network's kernel at
the start is not the limit one, and as it changes while its features move:

    net -(lin)- its linearisation at the start -(initk)- limit kernel.

The whole error of the trained network is at most the sum of four (arXiv 2401.15604):

    net -(coupling)- kernel fit of y -(mismatch)- kernel fit of virtual labels
        -(early stopping)- f_H -(approximation)- f_*,

f_H a function of the kernel's space and y + f_H - f_* the virtual labels, whose noise
is that of y.  Distances are root mean squares over queries of the Euclidean norm.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from numpy.typing import NDArray

from analysis.kernels.checks import check_exact_size
from analysis.kernels.filters import Descent, Filter, flow, ridge
from analysis.kernels.gram import Kernel, gram
from analysis.kernels.power_law import fit_power_law
from analysis.kernels.regression import (
    FlowModel,
    Spectrum,
    decompose,
    fit,
    predict,
    rkhs_norm,
)
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import (
    Params,
    apply,
    check_recording,
    gd_run,
    init,
    linearized_run,
)
from configs.errors import InputError, require, require_choice

__all__ = [
    "CouplingSlopes",
    "CouplingTable",
    "ErrorTerms",
    "HilbertTarget",
    "Target",
    "coupling_curve",
    "coupling_slopes",
    "decompose_error",
    "hilbert_target",
    "virtual_labels",
]


class CouplingTable(NamedTuple):
    """One row for each width, seed and time; all columns are (rows,).

    Attributes:
        width: m, neurons.
        seed: Index of the start.
        tau: Steps of gradient descent.
        rel: |network - limit kernel| / |limit kernel| on the queries.
        lin: |network - its linearisation| / |limit kernel|.
        initk: |linearisation - limit kernel| / |limit kernel|.
        flip: Fraction of activations on the training points that have changed.
        max_dw: Largest |w_r - w_r(0)| over neurons.
        net_error: |network - f_*|, data units; nan where f_* was not given.
        kernel_error: |limit kernel - f_*|; what `rel` should be small against.
    """

    width: NDArray[np.int64]
    seed: NDArray[np.int64]
    tau: NDArray[np.int64]
    rel: NDArray[np.float64]
    lin: NDArray[np.float64]
    initk: NDArray[np.float64]
    flip: NDArray[np.float64]
    max_dw: NDArray[np.float64]
    net_error: NDArray[np.float64]
    kernel_error: NDArray[np.float64]


class CouplingSlopes(NamedTuple):
    """Exponents of the width, one for each time.

    Attributes:
        tau: (T,) steps, increasing.
        slope: (T,) exponent of m.
        low: (T,) lower ends of their confidence intervals.
        high: (T,) upper ends.
    """

    tau: NDArray[np.int64]
    slope: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Target(NamedTuple):
    """A function where it matters.

    Attributes:
        train: (n, d) values at the training points.
        query: (q, d) values at the queries.
    """

    train: ArrayLike
    query: ArrayLike


class HilbertTarget(NamedTuple):
    """A function of the kernel's space near f_*.

    Attributes:
        values: Where it matters.
        norm: Its norm in that space, the root of the sum of squares over outputs.
    """

    values: Target
    norm: float


class ErrorTerms(NamedTuple):
    """What the error of a trained score network consists of, data units.

    Attributes:
        coupling: Network to kernel fit; 0 where no network was given.
        mismatch: Kernel fit of the labels to that of the virtual labels.
        early_stop: Kernel fit of the virtual labels to f_H: noise, and unfinished
            training.
        approximation: f_H to f_*.
        total: Network (or kernel fit) to f_*; at most the sum of the four.
    """

    coupling: float
    mismatch: float
    early_stop: float
    approximation: float
    total: float


def coupling_curve(
    key: Array,
    widths: Sequence[int],
    seeds: int,
    times: Sequence[int],
    *,
    z: ArrayLike,
    y: ArrayLike,
    queries: ArrayLike,
    eta: float = 1.0,
    f_star: ArrayLike | None = None,
    antisym: bool = True,
    kernel: Kernel = relu_ntk,
    dtype: DTypeLike = jnp.float32,
    after_run: Callable[[int, int], object] | None = None,
) -> CouplingTable:
    """Train networks of several widths and compare them with the limit kernel.

    The kernel side is computed in float64 whatever the networks are.

    Args:
        key: A `jax.random.key`; the start of width m and seed i is a function of it, m
            and i.
        widths: Neurons, each at least d, even for an antisymmetric start.
        seeds: Number of starts for each width.
        times: Steps of gradient descent at which to compare, increasing, at least 1.
        z: (n, p) lifted training inputs.
        y: (n, d) labels.
        queries: (q, p) lifted inputs to compare at, fresh ones.
        eta: Step size, below 2 / mu_1.
        f_star: (q, d) the truth at the queries, to report errors as well.
        antisym: See `analysis.kernels.score_network.init`.
        kernel: The limit kernel.
        dtype: Of the networks.
        after_run: Told width and seed after each network.

    Returns:
        The table, widths in the given order, then seeds, then times.

    Raises:
        InputError: If there is no width or seed, times are not as described, a width is
            too small, or eta is too large.
    """
    taus = check_recording(times)
    require(taus[0] >= 1, "the first time", int(taus[0]), "at least 1 step")
    require(len(widths) > 0, "widths", widths, "at least one width")
    require(seeds >= 1, "seeds", seeds, "at least 1")
    limit = _LimitKernel(kernel, z, y, queries, eta, taus)
    rows: list[NDArray[np.float64]] = []
    for m in widths:
        for seed in range(seeds):
            start_key = jax.random.fold_in(jax.random.fold_in(key, m), seed)
            params = init(start_key, m, np.shape(z)[1], np.shape(y)[1], antisym, dtype)
            labels = np.broadcast_to([[m], [seed]], (2, len(taus)))
            measured = _compare(params, limit, f_star, starts_at_zero=antisym)
            rows.append(np.concatenate([labels, taus[None], measured]))
            if after_run is not None:
                after_run(m, seed)
    table = np.concatenate(rows, axis=1)
    return CouplingTable(*table[:3].astype(np.int64), *table[3:])


def coupling_slopes(
    table: CouplingTable, column: str = "rel", *, confidence: float = 0.95
) -> CouplingSlopes:
    """Fit distance = factor m^slope at each time, over all widths and seeds.

    Args:
        table: See `coupling_curve`; at least two widths.
        column: "rel", "lin", "initk", "flip" or "max_dw".
        confidence: Of the intervals.

    Returns:
        Exponents with confidence intervals.

    Raises:
        InputError: If the column is unknown or there is one width only.
    """
    require_choice("column", column, ("rel", "lin", "initk", "flip", "max_dw"))
    taus, values = np.unique(table.tau), getattr(table, column)
    laws = [
        fit_power_law(table.width[at], values[at], confidence=confidence)
        for at in (table.tau == tau for tau in taus)
    ]
    slope, low, high, _ = np.array(laws).T
    return CouplingSlopes(taus, slope, low, high)


def hilbert_target(
    oracle: FlowModel, k_train: ArrayLike, k_query: ArrayLike, rho: float
) -> HilbertTarget:
    """Return f_H, the ridge projection of f_* onto the kernel's space.

    Args:
        oracle: `fit` of f_* itself, without noise, on many points of its own.
        k_train: (n, N) kernel between the training points and those.
        k_query: (q, N) kernel between the queries and those.
        rho: Penalty in units of the eigenvalues of K / N: smaller is nearer to f_* and
            of larger norm.

    Returns:
        Values and norm.
    """
    train, query = (predict(oracle, k, rho, filter=ridge) for k in (k_train, k_query))
    norm = float(rkhs_norm(oracle, rho, filter=ridge))
    return HilbertTarget(Target(train, query), norm)


def virtual_labels(y: ArrayLike, f_star: ArrayLike, f_hilbert: ArrayLike) -> Array:
    """Return y + f_H - f_*: labels of f_H with the noise of y; all (n, d)."""
    return jnp.asarray(y) + (jnp.asarray(f_hilbert) - jnp.asarray(f_star))


def decompose_error(
    spectrum: Spectrum,
    k_query: ArrayLike,
    y: ArrayLike,
    f_star: Target,
    f_hilbert: Target,
    s: ArrayLike,
    *,
    filter: Filter = flow,
    network: ArrayLike | None = None,
) -> ErrorTerms:
    """Split the error of early-stopped training into four.

    Args:
        spectrum: Of the kernel on the training points.
        k_query: (q, n) kernel between queries and training points.
        y: (n, d) labels.
        f_star: The truth.
        f_hilbert: A function of the kernel's space; see `hilbert_target`.
        s: () training time, or steps for the filter `Descent`.
        filter: How the kernel is trained.
        network: (q, d) outputs of the network, trained as long; None leaves it out.

    Returns:
        Root mean square distances over the queries.
    """
    virtual = virtual_labels(y, f_star.train, f_hilbert.train)
    of_labels, of_virtual = (
        predict(fit(spectrum, labels), k_query, s, filter=filter)
        for labels in (y, virtual)
    )
    chain = (
        of_labels if network is None else network,
        of_labels,
        of_virtual,
        f_hilbert.query,
        f_star.query,
    )
    points = [np.asarray(values, np.float64) for values in chain]
    parts = [float(_rms(a - b)) for a, b in pairwise(points)]
    return ErrorTerms(*parts, total=float(_rms(points[0] - points[-1])))


class _LimitKernel:
    """Gradient descent on the limit kernel, in float64, and what it is run on."""

    def __init__(
        self,
        kernel: Kernel,
        z: ArrayLike,
        y: ArrayLike,
        queries: ArrayLike,
        eta: float,
        taus: NDArray[np.int64],
    ) -> None:
        self.z, self.y, self.queries = (
            np.asarray(v, np.float64) for v in (z, y, queries)
        )
        if self.z.ndim != 2 or self.y.ndim != 2:
            raise InputError(
                f"z has shape {self.z.shape} and y {self.y.shape}; give (n, p) and "
                "(n, d), such as y[:, None]"
            )
        self.eta, self.taus = eta, taus
        check_exact_size(len(self.z))
        with jax.enable_x64(True):
            self._spectrum = decompose(np.asarray(gram(kernel, self.z)))
            self._k_query = np.asarray(gram(kernel, self.queries, self.z))

    def outputs(self, u0: ArrayLike | None, f0: ArrayLike | None) -> NDArray:
        """Return (k, q, d) predictions after each number of steps."""
        u0, f0 = (None if v is None else np.asarray(v, np.float64) for v in (u0, f0))
        with jax.enable_x64(True):
            model = fit(self._spectrum, self.y, u0)
            return np.asarray(
                predict(
                    model, self._k_query, self.taus, f0=f0, filter=Descent(self.eta)
                )
            )


def _compare(
    params: Params,
    limit: _LimitKernel,
    f_star: ArrayLike | None,
    *,
    starts_at_zero: bool,
) -> NDArray[np.float64]:
    """Return the measured columns of one network, (7, k)."""
    z, y, queries = limit.z, limit.y, limit.queries
    net = gd_run(params, z, y, limit.eta, limit.taus, queries=queries)
    twin = linearized_run(params, z, y, limit.eta, limit.taus, queries=queries)
    guesses = (None, None)
    if not starts_at_zero:
        guesses = (apply(params, z), apply(params, queries))
    truth = limit.outputs(*guesses)
    size = _rms(truth)
    net_out, twin_out = np.asarray(net.outputs), np.asarray(twin.outputs)
    columns = (
        _rms(net_out - truth) / size,
        _rms(net_out - twin_out) / size,
        _rms(twin_out - truth) / size,
        net.diagnostics.flipped,
        net.diagnostics.max_dw,
        _error(net_out, f_star),
        _error(truth, f_star),
    )
    return np.stack([np.asarray(column, np.float64) for column in columns])


def _rms(values: ArrayLike) -> NDArray[np.float64]:
    """Return the root mean square over points of the norm over outputs."""
    square = np.sum(np.square(np.asarray(values, np.float64)), axis=-1)
    return np.sqrt(np.mean(square, axis=-1))


def _error(values: NDArray, truth: ArrayLike | None) -> NDArray[np.float64]:
    if truth is None:
        return np.full(len(values), np.nan)
    return _rms(values - np.asarray(truth))
