"""Auto-encoders as estimates of a score, and what follows from one: energies, modes."""

from analysis.autoencoder.energy import energy_difference
from analysis.autoencoder.network import AutoencoderDenoiser

__all__ = ["AutoencoderDenoiser", "energy_difference"]
