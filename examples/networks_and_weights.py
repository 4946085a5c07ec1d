"""Build a published network, keep its weights, wrap other models, guide one by another.

python examples/networks_and_weights.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs.network_schema import SongUNetConfig
from diffusion import NeuralDenoiser
from diffusion.adapters import ContinuousVP, VPNoiseDenoiser
from diffusion.closed_form import fit_gaussian
from diffusion.data import load_builtin
from diffusion.gaussian_preconditioning import GaussianPreconditioning
from diffusion.guidance import Guided
from diffusion.interop import load_params, save_params
from diffusion.networks import build_network
from diffusion.preconditioning import EDMPreconditioning, VPPreconditioning


def main() -> None:
    """Print what each piece does."""
    config = SongUNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1)
    network = build_network(config, (8, 8, 1))
    params = network.init(jax.random.key(0))
    print(f"a small DDPM++ of {network.num_parameters():,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_params(path, params)
        params = jax.tree.map(lambda p: p + 0.02, load_params(path))

    gaussian = fit_gaussian(load_builtin("digits").images, rank=20)
    x, sigma = 3 * jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), 2.0
    silent = jax.tree.map(np.zeros_like, params)
    model = NeuralDenoiser(silent, network, GaussianPreconditioning(gaussian))
    gap = float(jnp.abs(model(x, sigma) - gaussian(x, sigma)).max())
    print(f"a silent network on a Gaussian: {gap:.0e} from the closed form")

    def predicted_noise(x_t: jax.Array, time: jax.Array) -> jax.Array:
        return network.apply(params, x_t, time)

    schedule = ContinuousVP(time_scale=999)
    adapted = VPNoiseDenoiser(jax.tree_util.Partial(predicted_noise), schedule)
    same = NeuralDenoiser(params, network, VPPreconditioning())
    gap = float(jnp.abs(adapted(x, sigma) - same(x, sigma)).max())
    print(f"a noise predictor, adapted or preconditioned: {gap:.0e} apart")

    weak = NeuralDenoiser(params, network, EDMPreconditioning(0.5))
    guided = Guided(gaussian, weak, 1.5, interval=(0.1, 5.0))
    change = float(jnp.abs(guided(x, sigma) - gaussian(x, sigma)).max())
    outside = float(jnp.abs(guided(x, 9.0) - gaussian(x, 9.0)).max())
    print(f"guidance moves by {change:.2f} within its interval, {outside:.2f} outside")


if __name__ == "__main__":
    main()
