"""A network, its parameters and its preconditioning make a denoiser.

D(x, sigma) = c_skip x + c_out F(c_in x; c_noise), or a Gaussian's denoiser in place of
the first term.  The preconditioning is computed in
the dtype of x; the network may compute in a narrower one.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion.denoiser import expand_sigma
from diffusion.preconditioning import Preconditioning

__all__ = ["Network", "NeuralDenoiser"]


class Network(Protocol):
    """A pure function of parameters and inputs; hashable, without arrays of its own."""

    def init(self, key: Array) -> dict[str, Any]:
        """Return fresh parameters, a nested dict of arrays."""
        ...

    def apply(
        self,
        params: dict[str, Any],
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return F(x; c_noise) for x of (B, *event) and c_noise of (B,)."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeuralDenoiser:
    """A preconditioned network as a `Denoiser`.

    Args:
        params: Nested dict of arrays.
        network: The pure network; static under jit.
        preconditioning: Its coefficients; a pytree.
        labels: Class labels, (B, label_dim) one-hot or real, or None.
        condition: Augmentation condition, (B, augment_dim), or (augment_dim,) for all
            samples alike, or None, which is the same as zeros: no augmentation.
        dropout_key: Key of the dropout masks, one or (B,) of them; None for none
            (sampling).
    """

    params: dict[str, Any]
    network: Network = dataclasses.field(metadata={"static": True})
    preconditioning: Preconditioning
    labels: Array | None = None
    condition: Array | None = None
    dropout_key: Array | None = None

    def __call__(self, x: Array, sigma: ArrayLike) -> Array:
        """Denoise (B, *event) at sigma () or (B,); see `Denoiser`."""
        x = jnp.asarray(x)
        level = self.preconditioning.round_sigma(expand_sigma(sigma, x))
        c = self.preconditioning(level)
        c_noise = jnp.broadcast_to(c.c_noise.reshape(-1), (x.shape[0],))
        condition = self.condition
        if condition is not None:
            condition = jnp.broadcast_to(condition, (x.shape[0], condition.shape[-1]))
        output = self.network.apply(
            self.params,
            (c.c_in * x).astype(x.dtype),
            c_noise,
            labels=self.labels,
            condition=condition,
            dropout_key=self.dropout_key,
        )
        # Networks that also predict a variance have further channels.
        output = output[..., : x.shape[-1]].astype(level.dtype)
        skip = self.preconditioning.skip(x, level)
        return (skip + c.c_out * output).astype(x.dtype)
