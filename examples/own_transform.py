"""A transform of one's own, from its definition to transformed samples.

Run: python examples/own_transform.py
"""

import contextlib
import dataclasses
import io
import tempfile

import jax
import jax.numpy as jnp
from jax import Array

from configs.digits import config as digits
from configs.network_schema import MLPConfig
from configs.schema import AugmentationConfig
from diffusion.augmentation import linear_adjoint, register_transform
from diffusion.training import load_denoiser, train
from samplers import karras, sample


@dataclasses.dataclass(frozen=True)
class Negative:
    """T x = -share x, a negative of weaker contrast; share between least and 1."""

    least: float = 0.5
    linear = injective = True
    orthogonal = self_identifying = False

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draw the share."""
        return jax.random.uniform(key, minval=self.least, maxval=1.0)

    def apply(self, share: Array, x: Array) -> Array:
        """Return the negative of (H, W, C)."""
        return -share.astype(x.dtype) * x

    def adjoint(self, share: Array, x: Array) -> Array:
        """Transpose `apply`."""
        return linear_adjoint(self, share, x)

    def encode(self, share: Array) -> Array:
        """Return the condition, which is zero for the identity alone."""
        return share[None]


def main() -> None:
    """Train with negatives and plain digits; sample both kinds."""
    register_transform("negative", Negative)
    config = dataclasses.replace(
        digits,
        network=MLPConfig(width=64, num_layers=2, augment_dim=1),
        augmentation=AugmentationConfig(mode="score", transforms=("negative:.8",)),
        training=dataclasses.replace(digits.training, num_steps=300),
    )
    with (
        tempfile.TemporaryDirectory() as workdir,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        train(config, workdir)
        model = load_denoiser(workdir)
    for name, condition in (("digits", [0.0]), ("negatives", [1.0])):
        told = dataclasses.replace(model, condition=jnp.asarray(condition))
        images = sample(told, jax.random.key(0), (64, 8, 8, 1), karras(12)).x
        print(f"mean pixel of {name}: {images.mean():+.2f}")


if __name__ == "__main__":
    main()
