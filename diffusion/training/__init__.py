"""Training: from a configuration to checkpoints in a workdir."""

from diffusion.training.loading import load_denoiser
from diffusion.training.loop import train

__all__ = ["load_denoiser", "train"]
