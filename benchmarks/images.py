"""Images for benchmarks: real ones from a file, or generated ones."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.data import open_dataset


def load_images(path: Path) -> NDArray[np.uint8]:
    """Return all images of an archive, (N, H, W, C) uint8."""
    return open_dataset(path).read().images


def generated_images(count: int, size: int = 32) -> NDArray[np.uint8]:
    """Return smooth random images, (count, size, size, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(count, 8, 8, 3)).astype(np.float32)
    smooth = np.repeat(np.repeat(coarse, size // 8, axis=1), size // 8, axis=2)
    smooth += 0.2 * rng.normal(size=smooth.shape).astype(np.float32)
    return np.clip(127.5 + 60 * smooth, 0, 255).astype(np.uint8)
