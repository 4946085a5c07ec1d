"""A denoising auto-encoder as a score: its angles, its energies, its samples.

Trains a small perceptron to reconstruct points of two Gaussians from noise of one size,
compares (r(x) - x) / sigma^2 with the true score, integrates it to differences of
energy, and walks with these by Metropolis-Hastings.  Runs in seconds; the whole story
is told by ``python -m analysis.autoencoder_study spiral``.

    python examples/autoencoder_scores.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from analysis.autoencoder import energy_difference
from analysis.autoencoder.datasets import two_bumps
from analysis.autoencoder.energy import line_integral, score_at
from analysis.autoencoder.local_geometry import angle_error
from analysis.autoencoder.training import AutoencoderSettings, train_autoencoder
from diffusion.denoiser import score
from samplers.chains import measure_acceptance
from samplers.metropolis_hastings import mh_sample

SIGMA = 1.0


def main() -> None:
    """Train, compare, integrate, walk."""
    truth = two_bumps()  # two Gaussians: density and score are known at every sigma
    clean = truth.sample(jax.random.key(0), 1000)
    settings = AutoencoderSettings((SIGMA,), hidden=(64, 64), num_steps=1500)
    denoiser = train_autoencoder(settings, clean, jax.random.key(1)).denoiser

    x = truth.sample(jax.random.key(2), 1000, SIGMA)
    exact, learned = score(truth, x, SIGMA), score(denoiser, x, SIGMA)
    angle = np.median(np.asarray(angle_error(learned, exact)))
    print(f"median angle between learned and true score: {angle:.1f} degrees")

    x_new = x + SIGMA * jax.random.normal(jax.random.key(3), x.shape)
    known = truth.log_density(x, SIGMA) - truth.log_density(x_new, SIGMA)
    for name, model in (("true", truth), ("learned", denoiser)):
        for rule in ("left", "gl3"):
            found = energy_difference(score_at(model, SIGMA), x, x_new, rule=rule)
            rms = float(jnp.sqrt(jnp.mean((found - known) ** 2)))
            print(f"energy differences, {name} score, {rule:4s}: off by {rms:.3f} nats")

    for rule in ("left", "gl3"):
        energy = line_integral(score_at(denoiser, SIGMA), rule=rule)
        chain = mh_sample(jax.random.key(4), energy, x[:200], 3 * SIGMA, 100)
        spread = float(jnp.std(chain.x[-1, :, 1]))
        print(
            f"walk, {rule:4s}: accepted {measure_acceptance(chain).mean:.2f}, spread "
            f"across the bumps {spread:.2f} (of the noisy law {2**0.5:.2f})"
        )


if __name__ == "__main__":
    main()
