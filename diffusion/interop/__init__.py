"""Checkpoints of other projects, read without running anything in them."""

from diffusion.interop.edm import convert_edm, load_edm
from diffusion.interop.huggingface import convert_unet2d, load_unet2d
from diffusion.interop.imported_model import ImportedModel
from diffusion.interop.restricted_unpickler import read_untrusted
from diffusion.interop.safetensors import load_params, save_params

__all__ = [
    "ImportedModel",
    "convert_edm",
    "convert_unet2d",
    "load_edm",
    "load_params",
    "load_unet2d",
    "read_untrusted",
    "save_params",
]
