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
from configs.schema import MLPConfig, NetworkConfig, SongUNetConfig
from diffusion.networks.mlp import MLP
from diffusion.networks.song_unet import SongUNet

__all__ = ["ModuleNetwork", "build_network"]

_MODULES: dict[type, Any] = {SongUNetConfig: SongUNet, MLPConfig: MLP}


@dataclass(frozen=True)
class ModuleNetwork:
    """A Flax module as a `Network`: hashable, static under jit, without arrays.

    Args:
        config: The architecture's settings.
        event_shape: Shape of one sample.
    """

    config: NetworkConfig
    event_shape: tuple[int, ...]

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
        """Return the number of parameters, without making them."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def build_network(config: NetworkConfig, event_shape: tuple[int, ...]) -> ModuleNetwork:
    """Return the network of a configuration for samples of one shape.

    Args:
        config: `SongUNetConfig` or `MLPConfig`.
        event_shape: Shape of one sample, such as (32, 32, 3).

    Returns:
        A pure network: ``params = network.init(key)``, ``network.apply(params, ...)``.

    Raises:
        InputError: If the architecture cannot take samples of this shape.
    """
    network = ModuleNetwork(config, tuple(event_shape))
    _definition(network)
    return network


def _initialise(network: ModuleNetwork, key: Array) -> dict[str, Any]:
    module = _MODULES[type(network.config)](
        network.config, network.event_shape, rngs=nnx.Rngs(params=key)
    )
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@functools.lru_cache(maxsize=32)
def _definition(network: ModuleNetwork) -> nnx.GraphDef:
    """Return the module's structure; nothing is computed."""
    module = nnx.eval_shape(
        lambda: _MODULES[type(network.config)](
            network.config, network.event_shape, rngs=nnx.Rngs(params=0)
        )
    )
    return nnx.split(module)[0]
