"""Images from built-in sets and archives, their split, and batches of them."""

from diffusion.data.archives import open_archive
from diffusion.data.batches import Batches, to_data_units
from diffusion.data.builtin import Dataset, Split, load_builtin, load_split
from diffusion.data.image_source import ImageSource
from diffusion.data.sources import data_digest, open_dataset

__all__ = [
    "Batches",
    "Dataset",
    "ImageSource",
    "Split",
    "data_digest",
    "load_builtin",
    "load_split",
    "open_archive",
    "open_dataset",
    "to_data_units",
]
