"""Flax NNX modules as pure functions of a nested dict.

Modules define layers and initial values; everything else sees ``apply(params, ...)``
under plain `jax.jit`.  This is the only file that splits and merges them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.core import Tracer

from configs.errors import InputError
from configs.network_schema import (
    DDPMUNetConfig,
    DhariwalUNetConfig,
    MLPConfig,
    NetworkConfig,
    SongUNetConfig,
)
from diffusion.networks.ddpm_unet import DDPMUNet
from diffusion.networks.dhariwal_unet import DhariwalUNet
from diffusion.networks.mlp import MLP
from diffusion.networks.song_unet import SongUNet

__all__ = ["ModuleNetwork", "build_network"]

_MODULES: dict[type, Any] = {
    SongUNetConfig: SongUNet,
    DhariwalUNetConfig: DhariwalUNet,
    DDPMUNetConfig: DDPMUNet,
    MLPConfig: MLP,
}


@dataclass(frozen=True)
class ModuleNetwork:
    """A Flax module as a `Network`: hashable, static under jit, without arrays.

    Args:
        config: The architecture's settings.
        event_shape: Shape of one sample.
        output_channels: Length of the last axis of the output.
    """

    config: NetworkConfig
    event_shape: tuple[int, ...]
    output_channels: int

    def init(self, key: Array) -> dict[str, Any]:
        """Return fresh float32 parameters as a plain nested dict."""
        if isinstance(key, Tracer):
            return _initialise(self, key)
        # One random draw per layer: long to optimise, and run only once.
        on_cpu = jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": 0} if on_cpu else None
        return jax.jit(_initialise, static_argnums=0, compiler_options=options)(
            self, key
        )

    def apply(
        self,
        params: dict[str, Any],
        x: Array,
        c_noise: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Return F(x; c_noise); see `diffusion.neural.Network`."""
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"x has shape {x.shape}, but the network is for samples of shape "
                f"{self.event_shape}"
            )
        module = nnx.merge(_definition(self), params)
        return module(
            x, c_noise, labels=labels, condition=condition, dropout_key=dropout_key
        )

    def num_parameters(self) -> int:
        """Return the number of trained parameters, without making them."""
        trained = nnx.state(_abstract_module(self), nnx.Param)
        return sum(leaf.size for leaf in jax.tree.leaves(trained))


def build_network(
    config: NetworkConfig,
    event_shape: tuple[int, ...],
    *,
    output_factor: int = 1,
) -> ModuleNetwork:
    """Return the network of a configuration for samples of one shape.

    Args:
        config: One of `configs.network_schema`.
        event_shape: Shape of one sample, such as (32, 32, 3).
        output_factor: Channels of the output per channel of the input; 2 for networks
            that also predict a variance.

    Returns:
        A pure network: ``params = network.init(key)``, ``network.apply(params, ...)``.

    Raises:
        InputError: If the architecture cannot take samples of this shape.
    """
    shape = tuple(event_shape)
    network = ModuleNetwork(config, shape, output_factor * (shape or (1,))[-1])
    _definition(network)
    return network


def _module(network: ModuleNetwork, key: Array | int) -> nnx.Module:
    return _MODULES[type(network.config)](
        network.config,
        network.event_shape,
        network.output_channels,
        rngs=nnx.Rngs(params=key),
    )


def _initialise(network: ModuleNetwork, key: Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(_module(network, key)))


@functools.lru_cache(maxsize=32)
def _abstract_module(network: ModuleNetwork) -> nnx.Module:
    """Return the module with shapes in place of arrays; nothing is computed."""
    return nnx.eval_shape(lambda: _module(network, 0))


@functools.lru_cache(maxsize=32)
def _definition(network: ModuleNetwork) -> nnx.GraphDef:
    return nnx.split(_abstract_module(network))[0]
