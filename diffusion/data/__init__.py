"""Images, their split into training and held-out ones, and batches of them."""

from diffusion.data.batches import Batches, to_data_units
from diffusion.data.builtin import Dataset, Split, load_builtin, load_split

__all__ = [
    "Batches",
    "Dataset",
    "Split",
    "load_builtin",
    "load_split",
    "to_data_units",
]
