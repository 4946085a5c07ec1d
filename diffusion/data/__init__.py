"""Images from built-in sets and archives, their split, and batches of them."""

from diffusion.data.archives import open_archive
from diffusion.data.batches import Batches, to_data_units
from diffusion.data.builtin import BUILTIN, Dataset, Split, load_builtin, split_dataset
from diffusion.data.image_source import ImageSource
from diffusion.data.packed import open_packed
from diffusion.data.sources import check_labels, data_digest, open_dataset, split_of

__all__ = [
    "BUILTIN",
    "Batches",
    "Dataset",
    "ImageSource",
    "Split",
    "check_labels",
    "data_digest",
    "load_builtin",
    "open_archive",
    "open_dataset",
    "open_packed",
    "split_dataset",
    "split_of",
    "to_data_units",
]
