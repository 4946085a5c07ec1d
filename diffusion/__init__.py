"""The score: what a denoiser is, in closed form or learned."""

from diffusion.denoiser import Denoiser, predicted_noise, score
from diffusion.loss import denoising_loss
from diffusion.neural import NeuralDenoiser

__all__ = [
    "Denoiser",
    "NeuralDenoiser",
    "denoising_loss",
    "predicted_noise",
    "score",
]
