"""The denoiser of the training set itself: an exact softmax over all of its points.

For x0 uniform on N points y_i,

    D(x, sigma) = sum_i p_i y_i,   p = softmax_i(-|x - y_i|^2 / (2 sigma^2)),

the score that a network without any bias would learn (arXiv 2412.09726).  The points
are visited in chunks with a running log-sum-exp, so neither the N x B logits nor the
B x N x D differences are ever held.

With u = x - c and v_i = y_i - c, a logit is (u.v_i - |v_i|^2/2)/sigma^2 up to a common
term: one matrix product.  That form loses |u| |v| eps / sigma^2, which at small sigma
is more than a nat.  The logits of the nearest candidates are therefore computed again,
relative to the nearest of them, y_0:

    (y_i - y_0).(2 x - y_0 - y_i) / (2 sigma^2),

and take the place of their matrix-product form in the sums.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form.checks import check_event
from diffusion.denoiser import expand_sigma

__all__ = ["EmpiricalDenoiser", "Neighbours"]

_HIGHEST = jax.lax.Precision.HIGHEST
_CANDIDATES = 16
_CHUNK_ELEMENTS = 2**21
_CHUNK_ROWS = 4096
_REFINED_AT_ONCE = 32


class Neighbours(NamedTuple):
    """The nearest points of a data set, nearest first.

    Attributes:
        indices: (B, k) int32 indices of the points.
        distances: (B, k) Euclidean distances, data units.
    """

    indices: Array
    distances: Array


class _Sums(NamedTuple):
    """Running sums over points, in units of exp(top / sigma^2).

    Weights, weights times v, and the largest u.v - |v|^2/2 with their indices.
    """

    top: Array
    weight: Array
    weighted: Array
    best: Array
    indices: Array


class _Posterior(NamedTuple):
    """Sums over points relative to y_0: exp(logit - top), times v; and y_0."""

    top: Array
    weight: Array
    weighted: Array
    nearest: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmpiricalDenoiser:
    """The empirical distribution of N points as a `Denoiser`.

    Computes in the wider of the dtypes of `x` and the points (float32 at least) and
    returns the dtype of `x`.

    Args:
        points: (N, *event): floats in data units, or uint8 pixels, which mean
            x / 127.5 - 1 and take a quarter of the memory.
    """

    points: Array

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        rows, s2 = self._query(x, sigma)
        sums = self._posterior(rows, s2)
        mean = self._centre(rows.dtype) + sums.weighted / sums.weight[:, None]
        return mean.reshape(x.shape).astype(x.dtype)

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """Return log p(x; sigma) = log mean_i N(x; y_i, sigma^2 I).

        Args:
            x: (B, *event).
            sigma: () or (B,), above 0.

        Returns:
            (B,) natural logarithms, in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is not finite and above 0.
        """
        x = jnp.asarray(x)
        rows, s2 = self._query(x, sigma)
        sums = self._posterior(rows, s2)
        distance = jnp.sum((rows - sums.nearest) ** 2, axis=1)
        normaliser = rows.shape[1] * jnp.log(2 * math.pi * s2[:, 0]) / 2
        log_sum = sums.top + jnp.log(sums.weight) - math.log(len(self.points))
        return (log_sum - distance / (2 * s2[:, 0]) - normaliser).astype(x.dtype)

    def nearest(self, x: Array, k: int = 1) -> Neighbours:
        """Return the k nearest points of each sample, by Euclidean distance.

        Args:
            x: (B, *event), data units.
            k: How many, in [1, N].

        Returns:
            Their indices and distances, (B, k) each, nearest first.

        Raises:
            InputError: If a shape does not fit or `k` is not in [1, N].
        """
        if not 1 <= k <= len(self.points):
            raise InputError(f"k is {k}; it must be in [1, {len(self.points)}]")
        x = jnp.asarray(x)
        rows, s2 = self._query(x, 1.0)
        # More than asked for: the order of the last ones is settled by differences.
        sums = self._scan(rows, s2, min(len(self.points), k + _CANDIDATES))
        candidates = self._rows(sums.indices, rows.dtype)
        squared = jnp.sum((rows[:, None] - candidates) ** 2, axis=2)
        order = jnp.argsort(squared, axis=1, stable=True)[:, :k]
        distances = jnp.sqrt(jnp.take_along_axis(squared, order, axis=1))
        return Neighbours(jnp.take_along_axis(sums.indices, order, axis=1), distances)

    def sample(self, key: Array, n: int, sigma: ArrayLike = 0.0) -> Array:
        """Draw points at random, with replacement, noised to `sigma`.

        Sample i depends on the key and on i alone, not on `n`.

        Args:
            key: A `jax.random.key`.
            n: Number of samples.
            sigma: () or (n,), at least 0, data units.

        Returns:
            (n, *event) floats.

        Raises:
            InputError: If sigma is negative, not finite or of the wrong shape.
        """
        points = jnp.asarray(self.points)

        def draw(index: Array) -> tuple[Array, Array]:
            which, white = jax.random.split(jax.random.fold_in(key, index))
            chosen = jax.random.randint(which, (), 0, len(points))
            value = _data_units(points[chosen], jnp.float32)
            return value, jax.random.normal(white, value.shape, value.dtype)

        values, noise = jax.vmap(draw)(jnp.arange(n))
        return values + expand_sigma(sigma, values, allow_zero=True) * noise

    def _query(self, x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
        """Check the shapes; return x as (B, D) and sigma^2 as (B, 1), wide."""
        shape = jnp.shape(self.points)
        if len(shape) < 2 or not shape[0]:
            raise InputError(f"points have shape {shape}; give (N, *event) with N >= 1")
        check_event(x, shape[1:], "data set")
        level = expand_sigma(sigma, x).reshape(-1, 1)
        points_dtype = jnp.result_type(self.points)
        if jnp.issubdtype(points_dtype, jnp.floating):
            level = level.astype(jnp.promote_types(level.dtype, points_dtype))
        rows = x.reshape(x.shape[0], -1).astype(level.dtype)
        return rows, jnp.broadcast_to(level**2, (len(rows), 1))

    def _centre(self, dtype: jnp.dtype) -> Array:
        """Return a point in the middle of the data, (D,), from at most 256 points."""
        points = jnp.asarray(self.points)
        stride = max(1, len(points) // 256)
        few = points[: 256 * stride : stride]
        return _data_units(few.reshape(len(few), -1), dtype).mean(axis=0)

    def _rows(self, indices: Array, dtype: jnp.dtype) -> Array:
        """Return the points of some indices, (*indices, D)."""
        chosen = _data_units(jnp.asarray(self.points)[indices], dtype)
        return chosen.reshape(*indices.shape, -1)

    def _posterior(self, rows: Array, s2: Array) -> _Posterior:
        """Return the sums over all points, with accurate logits for the nearest."""
        sums = self._scan(rows, s2, min(len(self.points), _CANDIDATES))
        centre = self._centre(rows.dtype)

        def one(arguments: tuple[Array, Array, _Sums]) -> _Posterior:
            x, level, found = arguments
            y = self._rows(found.indices, rows.dtype)
            return _refine(x, level[0], found, y, y - centre)

        # A few samples at a time: their candidates need k times their memory.
        return jax.lax.map(one, (rows, s2, sums), batch_size=_REFINED_AT_ONCE)

    def _scan(self, rows: Array, s2: Array, num_candidates: int) -> _Sums:
        """Visit all points once, in chunks; return the sums and the best points."""
        points = jnp.asarray(self.points).reshape(len(self.points), -1)
        count, dimension = points.shape
        size = min(count, _CHUNK_ROWS, max(1, _CHUNK_ELEMENTS // dimension))
        centre = self._centre(rows.dtype)
        u = rows - centre

        @jax.checkpoint
        def visit(sums: _Sums, start: Array) -> tuple[_Sums, None]:
            # The last chunk begins early, so that it is whole, and skips what it
            # shares with the one before.
            first = jnp.minimum(start, count - size)
            chunk = jax.lax.dynamic_slice_in_dim(points, first, size)
            v = _data_units(chunk, u.dtype) - centre
            dots = jnp.matmul(u, v.T, precision=_HIGHEST)
            fresh = first + jnp.arange(size) >= start
            products = jnp.where(fresh, dots - jnp.sum(v**2, axis=1) / 2, -jnp.inf)
            return _absorb(sums, products, s2, v, first), None

        batch = len(u)
        empty = _Sums(
            top=jnp.full(batch, -jnp.inf, u.dtype),
            weight=jnp.zeros(batch, u.dtype),
            weighted=jnp.zeros_like(u),
            best=jnp.full((batch, num_candidates), -jnp.inf, u.dtype),
            indices=jnp.zeros((batch, num_candidates), jnp.int32),
        )
        return jax.lax.scan(visit, empty, jnp.arange(0, count, size))[0]


def _refine(x: Array, s2: Array, sums: _Sums, y: Array, v: Array) -> _Posterior:
    """Replace the candidates' share of one sample's sums by accurate logits.

    Shapes: x (D,), s2 (), candidates y and v = y - c (k, D), nearest first.
    """
    exact = jnp.sum((y - y[0]) * ((x - y[0]) + (x - y)), axis=1) / (2 * s2)
    # The candidates' share as the scan has it is taken out of its sums.
    rough = jnp.exp((sums.best - sums.top) / s2)
    rest = sums.weight - jnp.sum(rough)
    rest_weighted = sums.weighted - jnp.matmul(rough, v, precision=_HIGHEST)
    # Nothing but rounding is left of sums that the candidates exhaust.
    empty = rest <= 16 * jnp.finfo(x.dtype).eps * sums.weight
    shift = jnp.maximum(jax.lax.stop_gradient(jnp.max(exact)), 0.0)
    scale = jnp.where(empty, 0.0, jnp.exp(-shift))
    chosen = jnp.exp(exact - shift)
    weighted = scale * rest_weighted + jnp.matmul(chosen, v, precision=_HIGHEST)
    return _Posterior(shift, scale * rest + jnp.sum(chosen), weighted, y[0])


def _absorb(sums: _Sums, products: Array, s2: Array, v: Array, first: Array) -> _Sums:
    """Add a chunk of points v (C, D), with u.v - |v|^2/2 (B, C), to the running sums.

    Differences are taken before the division by sigma^2: at small sigma a unit in the
    last place of a logit is many nats, and a compiler may round the quotient in one
    place and not in another.
    """
    top = jnp.maximum(sums.top, jnp.max(products, axis=1))
    old = _exp_below(sums.top, top, s2[:, 0])
    p = _exp_below(products, top[:, None], s2)
    num_candidates = sums.best.shape[1]
    values, places = jax.lax.top_k(products, min(num_candidates, products.shape[1]))
    values = jnp.concatenate([sums.best, values], axis=1)
    indices = jnp.concatenate(
        [sums.indices, (places + first).astype(jnp.int32)], axis=1
    )
    best, order = jax.lax.top_k(values, num_candidates)
    return _Sums(
        top=top,
        weight=sums.weight * old + jnp.sum(p, axis=1),
        weighted=sums.weighted * old[:, None] + jnp.matmul(p, v, precision=_HIGHEST),
        best=best,
        indices=jnp.take_along_axis(indices, order, axis=1),
    )


def _exp_below(value: Array, top: Array, s2: Array) -> Array:
    """Return exp((value - top) / s2), 0 for -inf, with finite derivatives."""
    known = value > -jnp.inf
    return jnp.where(known, jnp.exp((jnp.where(known, value, top) - top) / s2), 0.0)


def _data_units(points: Array, dtype: jnp.dtype) -> Array:
    """Return points as floats: bytes as x / 127.5 - 1, floats as they are."""
    if points.dtype == jnp.uint8:
        return points.astype(dtype) / 127.5 - 1
    return points.astype(jnp.promote_types(points.dtype, dtype))
