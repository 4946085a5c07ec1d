"""From a raw network F to a denoiser D.

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

The coefficients keep the network's input and training target at unit variance for all
sigma (Karras et al., arXiv 2206.00364, table 1).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from configs.errors import InputError

__all__ = ["Coefficients", "EDMPreconditioning", "Preconditioning"]


class Coefficients(NamedTuple):
    """The four coefficients at given noise levels, each in the shape of sigma."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


class Preconditioning(Protocol):
    """A rule that turns a noise level into coefficients; hashable, without arrays."""

    def __call__(self, sigma: Array) -> Coefficients:
        """Return the coefficients at `sigma`, any shape, data units."""
        ...

    def loss_weight(self, sigma: Array) -> Array:
        """Return the weight of the squared error at `sigma`, in its shape."""
        ...


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

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.sigma_data < float("inf"):
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

    def loss_weight(self, sigma: Array) -> Array:
        """Return 1 / c_out**2: the error of F itself counts the same everywhere."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
