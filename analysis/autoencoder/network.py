"""A perceptron as an auto-encoder, and as a denoiser at its own noise level.

    residual:  r(x) = x + sigma net(x / scale)
    direct:    r(x) = net(x / scale)

In the residual form the network predicts the noise, of size 1 whatever sigma is; in the
direct form it must first learn the identity to within sigma, which is what kept the
networks of the time of arXiv 1211.4246 from learning the score at small noise.  One
layer of tanh with an output of c tanh(.) is such a network.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.autoencoder.reconstruction import check_sigma
from configs.errors import InputError, is_positive, require, require_choice
from diffusion.closed_form.checks import check_event
from diffusion.denoiser import expand_sigma

__all__ = ["ACTIVATIONS", "FORMS", "AutoencoderDenoiser", "AutoencoderNetwork", "Layer"]

FORMS = ("residual", "direct")
ACTIVATIONS = {"silu": jax.nn.silu, "tanh": jnp.tanh}
_SIGMA_TOLERANCE = 1e-3


class Layer(NamedTuple):
    """y = x weight + bias.

    Attributes:
        weight: (inputs, outputs).
        bias: (outputs,).
    """

    weight: Array
    bias: Array


@dataclass(frozen=True)
class AutoencoderNetwork:
    """A perceptron from events to events; hashable, static under jit.

    Args:
        event: Shape of one sample.
        hidden: Width of each hidden layer, at least one.
        activation: "silu" or "tanh".
        form: "residual" or "direct".
        scale: Divides x, data units: about the standard deviation of the data.
        squash: c of an output c tanh(.), or None for a linear output.
    """

    event: tuple[int, ...]
    hidden: tuple[int, ...] = (128, 128, 128)
    activation: str = "silu"
    form: str = "residual"
    scale: float = 1.0
    squash: float | None = None

    def __post_init__(self) -> None:
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("form", self.form, FORMS)
        require(is_positive(self.scale), "scale", self.scale, "a finite number above 0")
        widths = len(self.hidden) > 0 and all(width >= 1 for width in self.hidden)
        require(widths, "hidden", self.hidden, "one or more widths, each at least 1")
        if self.squash is not None:
            require(is_positive(self.squash), "squash", self.squash, "above 0, or None")

    def init(self, key: Array, dtype: jnp.dtype | None = None) -> tuple[Layer, ...]:
        """Return parameters: weights N(0, 1/inputs), biases N(0, 1).

        The last layer of the residual form is zero, so that r starts as the identity.

        Args:
            key: A `jax.random.key`.
            dtype: Floating type; None is float32.
        """
        dtype = jnp.float32 if dtype is None else dtype
        size = math.prod(self.event)
        widths = (size, *self.hidden, size)
        layers = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            first, second = jax.random.split(jax.random.fold_in(key, index))
            weight = jax.random.normal(first, (inputs, outputs), dtype)
            bias = jax.random.normal(second, (outputs,), dtype)
            layers.append(Layer(weight / math.sqrt(inputs), bias))
        last = layers[-1]
        start = 0.0 if self.form == "residual" else 1.0
        layers[-1] = Layer(start * last.weight, jnp.zeros_like(last.bias))
        return tuple(layers)

    def apply(self, params: tuple[Layer, ...], x: Array, sigma: ArrayLike) -> Array:
        """Return r(x).

        Args:
            params: As from `init`.
            x: (B, *event), data units.
            sigma: () or (B,), data units; the direct form does not use it.

        Returns:
            (B, *event), in the wider dtype of `x` and the parameters.

        Raises:
            InputError: If `x` is not over events of this network.
        """
        check_event(x, self.event, "auto-encoder")
        y = x.reshape(len(x), -1) / self.scale
        activation = ACTIVATIONS[self.activation]
        for layer in params[:-1]:
            y = activation(y @ layer.weight + layer.bias)
        y = y @ params[-1].weight + params[-1].bias
        if self.squash is not None:
            y = self.squash * jnp.tanh(y)
        y = y.reshape(x.shape)
        return x + expand_sigma(sigma, x) * y if self.form == "residual" else y


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AutoencoderDenoiser:
    """A trained auto-encoder: a `Denoiser` at its own noise level, a reconstruction.

    Called at another sigma it refuses.  Under jit, where sigma is not a number yet, it
    cannot look: it then returns r(x) whatever the sigma, so a sampler that changes
    sigma must not be given one (annealing needs an auto-encoder per level).

    Args:
        params: Of the network.
        sigma: () noise level of its training, data units.
        network: What the parameters belong to.
    """

    params: tuple[Layer, ...]
    sigma: Array
    network: AutoencoderNetwork = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array, sigma: ArrayLike | None = None) -> Array:
        """Reconstruct a batch; see `Denoiser`.

        Args:
            x: (B, *event), data units.
            sigma: () or (B,), the noise level of training; None takes it.

        Returns:
            (B, *event), in the dtype of `x`.

        Raises:
            InputError: If x is not over its events, or sigma is another noise level.
        """
        x = jnp.asarray(x)
        given = self.sigma if sigma is None else sigma
        check_event(x, self.network.event, "auto-encoder")
        expand_sigma(given, x)
        self._check_own(given)
        wide = x.astype(jnp.promote_types(x.dtype, self.params[0].weight.dtype))
        return self.network.apply(self.params, wide, self.sigma).astype(x.dtype)

    def _check_own(self, sigma: ArrayLike) -> None:
        if isinstance(sigma, Tracer) or isinstance(self.sigma, Tracer):
            return
        check_sigma(self.sigma)
        own = float(self.sigma)
        levels = np.asarray(sigma, np.float64)
        if not np.allclose(levels, own, rtol=_SIGMA_TOLERANCE, atol=0):
            other = levels[~np.isclose(levels, own, rtol=_SIGMA_TOLERANCE, atol=0)]
            raise InputError(
                f"this auto-encoder was trained at sigma {own:g} and was called at "
                f"{other.flat[0]:g}; call it at its own noise level, or train another"
            )
