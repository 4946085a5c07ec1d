"""From a raw network F to a denoiser D.

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

EDM's coefficients keep the network's input and training target at unit variance for all
sigma; those of VP, VE and iDDPM are what earlier models were trained with (Karras et
al., arXiv 2206.00364, table 1).  A Gaussian's denoiser in the place of c_skip x is in
`diffusion.gaussian_preconditioning`.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from configs.errors import InputError

__all__ = [
    "Coefficients",
    "EDMPreconditioning",
    "IDDPMPreconditioning",
    "Preconditioning",
    "VEPreconditioning",
    "VPPreconditioning",
]


class Coefficients(NamedTuple):
    """The four coefficients at given noise levels, each in the shape of sigma.

    `c_skip` is the factor of x; where the skip is a Gaussian's denoiser, it is the mean
    of that one's gains over all directions, for information.
    """

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


class Preconditioning(Protocol):
    """A rule that turns a noise level into coefficients; a pytree."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level that the rule is for, data units."""
        ...

    @property
    def sigma_max(self) -> float:
        """Highest noise level that the rule is for, data units."""
        ...

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape, data units."""
        ...

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return what D is when F is zero; x (B, *event), sigma (B, 1, ...)."""
        ...

    def loss_weight(self, sigma: Array) -> Array:
        """Return the weight of the squared error at `sigma`, in its shape."""
        ...

    def round_sigma(self, sigma: Array) -> Array:
        """Return the nearest noise level that the network knows, in sigma's shape."""
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class EDMPreconditioning:
    """The coefficients of EDM (arXiv 2206.00364).

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = log(sigma) / 4 with sd = sigma_data.

    Args:
        sigma_data: Standard deviation of the data, in data units.

    Raises:
        InputError: If sigma_data is not a finite number above 0.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.sigma_data < math.inf:
            raise InputError(
                f"sigma_data is {self.sigma_data}; it must be a finite number above 0: "
                "a data set of equal images cannot be learned"
            )

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape."""
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        return Coefficients(
            c_skip=self.sigma_data**2 / total**2,
            c_out=sigma * self.sigma_data / total,
            c_in=1 / total,
            c_noise=jnp.log(sigma) / 4,
        )

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return c_skip x."""
        return self(sigma).c_skip * x

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / c_out**2: the error of F itself counts the same everywhere."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def round_sigma(self, sigma: Array) -> Array:
        """Return `sigma`: every level is known."""
        return sigma


@jax.tree_util.register_static
@dataclass(frozen=True)
class VPPreconditioning:
    """The coefficients of the continuous VP process (Song et al., arXiv 2011.13456).

    c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = (M - 1) t(sigma)
    with sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1 for t in [epsilon_t, 1].
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    num_steps: int = 1000
    epsilon_t: float = 1e-5

    @property
    def sigma_min(self) -> float:
        """sigma(epsilon_t), about .001."""
        return float(self.sigma_of_time(np.float64(self.epsilon_t)))

    @property
    def sigma_max(self) -> float:
        """sigma(1), about 152."""
        return float(self.sigma_of_time(np.float64(1.0)))

    def sigma_of_time(self, t: Any) -> Any:
        """Return sigma(t), NumPy or JAX as `t` is, in its shape."""
        exponent = (self.beta_d * t / 2 + self.beta_min) * t
        expm1 = np.expm1 if isinstance(t, np.ndarray | np.floating) else jnp.expm1
        return expm1(exponent) ** 0.5

    def time_of_sigma(self, sigma: Any) -> Any:
        """Return t with sigma(t) = sigma, NumPy or JAX as `sigma` is, in its shape."""
        xp = np if isinstance(sigma, np.ndarray | np.floating) else jnp
        b = self.beta_min
        # The root of beta_d t^2/2 + b t = log(1 + sigma^2), without cancellation.
        log = xp.log1p(sigma**2)
        return 2 * log / (xp.sqrt(b**2 + 2 * self.beta_d * log) + b)

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape."""
        return _noise_predictor(sigma, (self.num_steps - 1) * self.time_of_sigma(sigma))

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return x."""
        return x

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / sigma**2: the error of the predicted noise."""
        return sigma**-2

    def round_sigma(self, sigma: Array) -> Array:
        """Return `sigma`: every level is known."""
        return sigma


@jax.tree_util.register_static
@dataclass(frozen=True)
class VEPreconditioning:
    """The coefficients of the VE process (Song et al., arXiv 2011.13456).

    c_skip = 1, c_out = sigma, c_in = 1, c_noise = log(sigma / 2).
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape."""
        one = jnp.ones_like(sigma)
        return Coefficients(one, sigma, one, jnp.log(sigma / 2))

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return x."""
        return x

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / sigma**2."""
        return sigma**-2

    def round_sigma(self, sigma: Array) -> Array:
        """Return `sigma`: every level is known."""
        return sigma


@jax.tree_util.register_static
@dataclass(frozen=True)
class IDDPMPreconditioning:
    """The coefficients of improved DDPM's discrete levels (arXiv 2102.09672).

    The levels u_0 > u_1 > ... > u_M = 0 follow from the cosine schedule,
    u_{j-1}^2 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, C1) - 1 with abar_j =
    sin^2(pi j / (2 M (C2 + 1))); c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 +
    1), c_noise = M - 1 - argmin_j |u_j - sigma|.  Networks of this kind have 2 C output
    channels, of which the second half, a variance, is not used.
    """

    c1: float = 0.001
    c2: float = 0.008
    num_steps: int = 1000

    @property
    def levels(self) -> NDArray[np.float64]:
        """u_0, ..., u_{M-1}, decreasing and positive."""
        return _iddpm_levels(self.c1, self.c2, self.num_steps)

    @property
    def sigma_min(self) -> float:
        """u_{M-1}, about .0064."""
        return float(self.levels[-1])

    @property
    def sigma_max(self) -> float:
        """u_0, about 20,291."""
        return float(self.levels[0])

    def _index(self, sigma: Array) -> Array:
        """Return argmin_j |u_j - sigma|, in the shape of sigma."""
        levels = self.levels[::-1]
        # Halfway points between neighbours; no table of all distances is made.
        middles = jnp.asarray((levels[1:] + levels[:-1]) / 2, sigma.dtype)
        return self.num_steps - 1 - jnp.searchsorted(middles, sigma)

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape."""
        index = self._index(sigma)
        return _noise_predictor(sigma, (self.num_steps - 1 - index).astype(sigma.dtype))

    def skip(self, x: Array, sigma: Array) -> Array:
        """Return x."""
        return x

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / sigma**2: the error of the predicted noise."""
        return sigma**-2

    def round_sigma(self, sigma: Array) -> Array:
        """Return the nearest u_j."""
        return jnp.asarray(self.levels, sigma.dtype)[self._index(sigma)]


def _noise_predictor(sigma: Array, c_noise: Array) -> Coefficients:
    """Return the coefficients of a network that predicts VP noise."""
    c_in = 1 / jnp.sqrt(sigma**2 + 1)
    return Coefficients(jnp.ones_like(sigma), -sigma, c_in, c_noise)


@functools.cache
def _iddpm_levels(c1: float, c2: float, num_steps: int) -> NDArray[np.float64]:
    abar = np.sin(np.pi / 2 * np.arange(num_steps + 1) / (num_steps * (c2 + 1))) ** 2
    levels = np.zeros(num_steps + 1)
    for j in range(num_steps, 0, -1):
        ratio = max(abar[j - 1] / abar[j], c1)
        levels[j - 1] = math.sqrt((levels[j] ** 2 + 1) / ratio - 1)
    return levels[:-1]
