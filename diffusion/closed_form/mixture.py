"""The denoiser of a Gaussian mixture with low-rank covariances.

For x0 ~ sum_k w_k N(m_k, U_k diag(lam_k) U_k^T + r_k (I - U_k U_k^T)),

    D(x, sigma) = sum_k p_k D_k(x, sigma),   p = softmax_k(log w_k + log p_k(x; sigma)),

where D_k is the denoiser of one Gaussian (`diffusion.closed_form.gaussian`).  Rank 0 is
an isotropic mixture, rank D a full one.

The logits of images are thousands that differ by ones, which float32 cannot hold.  So
every term common to all components is left out before anything is added.  With
u = x - centre, delta_k = m_k - centre, r_0 = min r_k, t_k = r_k + sigma^2,
v = lam + sigma^2 and c = U_k^T (x - m_k), the logit is log w_k minus half of

    |u|^2 (r_0 - r_k)/(t_k t_0) + (|delta_k|^2 - 2 u.delta_k)/t_k
        + sum c^2 (r_k - lam)/(v t_k)                               (distance)
    + sum log1p((lam - r_k)/t_k) + D log1p((r_k - r_0)/t_0)         (log-determinant).

A full basis needs none of it: sum c^2 / v is positive term by term.

Source: Wang & Vastola, arXiv 2412.09726, for mixture scores; the form is ours.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.errors import InputError
from diffusion.closed_form.checks import check_event, check_variances
from diffusion.denoiser import expand_sigma

__all__ = ["Assignment", "MixtureDenoiser"]

_HIGHEST = jax.lax.Precision.HIGHEST
_UNROLL = 4  # components whose contributions are added before memory is touched again


class Assignment(NamedTuple):
    """What a mixture says about a batch.

    Attributes:
        responsibilities: (B, K) probability of each component.
        log_density: (B,) natural logarithm of the density.
    """

    responsibilities: Array
    log_density: Array


class _Point(NamedTuple):
    """A batch against the components: u (B, D), deltas (K, D), s2 (B, 1), r (K,)."""

    u: Array
    deltas: Array
    s2: Array
    residuals: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureDenoiser:
    """A mixture of K Gaussians as a `Denoiser`.

    Computes in the wider of the dtypes of `x` and the parameters and returns the dtype
    of `x`; matrix products run at full precision on every device.  Components are
    visited one after another: beyond the parameters a call needs K B R numbers.

    Args:
        log_weights: (K,) logarithms of the weights, which need not be normalised.
        means: (K, *event), data units.
        bases: U_k, (K, D, R) with orthonormal columns, D = prod(event), 0 <= R <= D.
        variances: (K, R), >= 0, squared data units.
        residual_variances: (K,), >= 0: variance of the D - R other directions.
    """

    log_weights: Array
    means: Array
    bases: Array
    variances: Array
    residual_variances: Array

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        point = self._point(x, sigma)
        logits, coefficients = self._logits(point)
        p = jax.nn.softmax(logits, axis=1)
        rest = point.residuals / (point.residuals + point.s2)
        denoised = point.u * jnp.sum(p * rest, axis=1, keepdims=True)
        denoised += jnp.matmul(p * (1 - rest), point.deltas, precision=_HIGHEST)
        if self.bases.shape[2]:
            denoised += self._along_bases(point, p, rest, coefficients)
        return (self._centre() + denoised).reshape(x.shape).astype(x.dtype)

    def assign(self, x: Array, sigma: ArrayLike = 0.0) -> Assignment:
        """Return the probability of each component given x, and the density of x.

        Args:
            x: (B, *event).
            sigma: () or (B,), at least 0; 0 needs every variance to be above 0.

        Returns:
            Responsibilities and log densities, in the wide dtype.

        Raises:
            InputError: If a shape does not fit or a sigma is out of range.
        """
        point = self._point(jnp.asarray(x), sigma, allow_zero=True)
        logits, _ = self._logits(point)
        log_density = jax.nn.logsumexp(logits, axis=1) - 0.5 * self._common(point)
        return Assignment(jax.nn.softmax(logits, axis=1), log_density)

    def responsibilities(self, x: Array, sigma: ArrayLike) -> Array:
        """Return the probability of each component given x.

        Args:
            x: (B, *event).
            sigma: () or (B,), at least 0; 0 needs every variance to be above 0.

        Returns:
            (B, K), rows that sum to 1, in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is out of range.
        """
        return self.assign(x, sigma).responsibilities.astype(jnp.result_type(x))

    def log_density(self, x: Array, sigma: ArrayLike) -> Array:
        """Return log p(x; sigma) of the noised mixture, its normaliser included.

        Args:
            x: (B, *event).
            sigma: () or (B,), at least 0; 0 needs every variance to be above 0.

        Returns:
            (B,) natural logarithms, in the dtype of `x`.

        Raises:
            InputError: If a shape does not fit or a sigma is out of range.
        """
        return self.assign(x, sigma).log_density.astype(jnp.result_type(x))

    def sample(self, key: Array, n: int, sigma: ArrayLike = 0.0) -> Array:
        """Draw samples of the mixture noised to `sigma`.

        Sample i depends on the key and on i alone, not on `n`.

        Args:
            key: A `jax.random.key`.
            n: Number of samples.
            sigma: () or (n,), at least 0, data units.

        Returns:
            (n, *event), in the dtype of the means.

        Raises:
            InputError: If sigma is negative, not finite or of the wrong shape.
        """
        means = jnp.asarray(self.means)
        event = means.shape[1:]
        like = jnp.zeros((n, *event), means.dtype)
        s2 = jnp.broadcast_to(self._point(like, sigma, allow_zero=True).s2[:, 0], (n,))

        def draw(arguments: tuple[Array, Array]) -> Array:
            index, level = arguments
            which, white = jax.random.split(jax.random.fold_in(key, index))
            k = jax.random.categorical(which, self.log_weights)
            z = jax.random.normal(white, (means[0].size,), means.dtype)
            basis = self.bases[k]
            c = jnp.matmul(z, basis, precision=_HIGHEST)
            rest = jnp.sqrt(self.residual_variances[k] + level)
            gains = jnp.sqrt(self.variances[k] + level) - rest
            moved = rest * z + jnp.matmul(basis, gains * c, precision=_HIGHEST)
            return means[k] + moved.reshape(event).astype(means.dtype)

        return jax.lax.map(draw, (jnp.arange(n), s2))

    def _centre(self) -> Array:
        """Return the mean of the mixture, (D,)."""
        means = jnp.asarray(self.means).reshape(len(self.means), -1)
        return jnp.matmul(jax.nn.softmax(self.log_weights), means, precision=_HIGHEST)

    def _point(self, x: Array, sigma: ArrayLike, *, allow_zero: bool = False) -> _Point:
        """Check the shapes; return what all terms are made of, in the wide dtype."""
        self._check(x)
        level = expand_sigma(sigma, x, allow_zero=allow_zero).reshape(-1, 1)
        wide = jnp.promote_types(level.dtype, jnp.result_type(self.means))
        centre = self._centre()
        means = jnp.asarray(self.means).reshape(len(self.means), -1)
        residuals = jnp.asarray(self.residual_variances)
        if self.bases.shape[1] == self.bases.shape[2]:
            residuals = jnp.zeros_like(residuals)  # a full basis has no complement
        return _Point(
            (x.reshape(x.shape[0], -1) - centre).astype(wide),
            (means - centre).astype(wide),
            level.astype(wide) ** 2,
            residuals.astype(wide),
        )

    def _is_full(self) -> bool:
        return self.bases.shape[1] == self.bases.shape[2]

    def _common(self, point: _Point) -> Array:
        """Return what `_logits` leaves out, -2 log of it, (B,)."""
        dimension = point.u.shape[1]
        if self._is_full():
            common = jnp.sum(jnp.log(self.variances[0] + point.s2), axis=1)
        else:
            t0 = (jnp.min(point.residuals) + point.s2)[:, 0]
            common = jnp.sum(point.u**2, axis=1) / t0 + dimension * jnp.log(t0)
        return common + dimension * math.log(2 * math.pi)

    def _logits(self, point: _Point) -> tuple[Array, Array]:
        """Return logits (B, K) up to a term common to all, and c as (K, B, R)."""
        u, deltas, s2, r = point
        is_full = self._is_full()

        def one(_: None, component: tuple[Array, ...]) -> tuple[None, tuple]:
            basis, variances, delta, residual = component
            c = jnp.matmul(u - delta, basis, precision=_HIGHEST)
            v, t = variances + s2, residual + s2
            if is_full:
                # No complement, and every term is positive: nothing cancels.
                terms = jnp.log(v / (self.variances[0] + s2)) + c**2 / v
            else:
                excess = variances - residual
                terms = jnp.log1p(excess / t) - c**2 * excess / (v * t)
            return None, (jnp.sum(terms, axis=1), c)

        twice = 0.0 if is_full else self._isotropic_part(point)
        coefficients = jnp.zeros((len(r), len(u), 0), u.dtype)
        if self.bases.shape[2]:
            parts = (self.bases, self.variances, deltas, r)
            _, (low_rank, coefficients) = jax.lax.scan(one, None, parts)
            twice += low_rank.T
        log_weights = jax.nn.log_softmax(self.log_weights)
        return log_weights - 0.5 * twice, coefficients

    def _isotropic_part(self, point: _Point) -> Array:
        """Return the terms of the logits without a basis, -2 log of them, (B, K)."""
        u, deltas, s2, r = point
        r0 = jnp.min(r)
        t, t0 = r + s2, r0 + s2
        power = jnp.sum(u**2, axis=1, keepdims=True)
        cross = jnp.matmul(u, deltas.T, precision=_HIGHEST)
        distance = power * (r0 - r) / (t * t0)
        distance += (jnp.sum(deltas**2, axis=1) - 2 * cross) / t
        return distance + u.shape[1] * jnp.log1p((r - r0) / t0)

    def _along_bases(
        self, point: _Point, p: Array, rest: Array, coefficients: Array
    ) -> Array:
        """Return sum_k p_k U_k (lam/(lam + sigma^2) - rest_k) c_k, (B, D)."""

        def add(total: Array, component: tuple[Array, ...]) -> tuple[Array, None]:
            basis, variances, weight, off, c = component
            gains = variances / (variances + point.s2) - off[:, None]
            part = jnp.matmul(weight[:, None] * gains * c, basis.T, precision=_HIGHEST)
            return total + part, None

        parts = (self.bases, self.variances, p.T, rest.T, coefficients)
        unroll = min(_UNROLL, len(self.bases))
        return jax.lax.scan(add, jnp.zeros_like(point.u), parts, unroll=unroll)[0]

    def _check(self, x: Array) -> None:
        means, bases = jnp.shape(self.means), jnp.shape(self.bases)
        check_event(x, means[1:], "mixture")
        k, dimension = means[0], math.prod(means[1:])
        shapes = (
            jnp.shape(self.log_weights),
            bases[:2],
            jnp.shape(self.variances),
            jnp.shape(self.residual_variances),
        )
        if shapes != ((k,), (k, dimension), (k, *bases[2:]), (k,)) or len(bases) != 3:
            raise InputError(
                f"a mixture with means {means} needs log_weights ({k},), bases ({k}, "
                f"{dimension}, R), variances ({k}, R) and residual_variances ({k},); "
                f"given {shapes[0]}, {bases}, {shapes[2]} and {shapes[3]}"
            )
        check_variances(self.variances, self.residual_variances)
