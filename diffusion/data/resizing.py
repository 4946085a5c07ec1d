"""Crops and resizes, as the data sets of the literature were made.

``none`` scales with a Lanczos filter and lets the aspect change; ``center`` takes the
largest centred part of the target's aspect first (both as in EDM, arXiv 2206.00364).
``adm`` halves with a box filter while the image is at least twice too large, scales
bicubically and takes the centre (arXiv 2105.05233).  ``pad`` scales nothing and adds
zeros around, as EDM brings MNIST from 28 to 32 pixels.
"""

import numpy as np
from PIL import Image

from configs.errors import InputError, require_choice

__all__ = ["CROPS", "resize_image", "resize_pixels"]

CROPS = ("none", "center", "adm", "pad")


def resize_image(
    image: Image.Image, height: int, width: int, crop: str, *, where: str = "the image"
) -> Image.Image:
    """Return an image of the given size.

    Args:
        image: Grey or RGB.
        height: Rows of the result.
        width: Columns of the result.
        crop: ``"none"``, ``"center"``, ``"adm"`` or ``"pad"``.
        where: What messages call it.

    Returns:
        A new image; the same one if its size is right already.

    Raises:
        InputError: If there is no such crop, or the image is too large to be padded.
    """
    require_choice("crop", crop, CROPS)
    if height < 1 or width < 1:
        raise InputError(f"image_size is {height} {width}; both must be at least 1")
    if image.size == (width, height):
        return image
    if crop == "pad":
        return _pad(image, height, width, where)
    if crop == "adm":
        return _adm(image, height, width)
    if crop == "center":
        image = _center(image, *_same_aspect(image, height, width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def resize_pixels(
    images: np.ndarray, height: int, width: int, crop: str, *, where: str
) -> np.ndarray:
    """Return a block of images of the given size.

    Args:
        images: (B, H, W, C) uint8, C = 1 or 3.
        height: Rows of the result.
        width: Columns of the result.
        crop: See `resize_image`.
        where: What messages call them.

    Returns:
        (B, height, width, C) uint8; the same array if the size is right already.

    Raises:
        InputError: As `resize_image` does.
    """
    count, *size, channels = images.shape
    if size == [height, width]:
        return images
    resized = np.empty((count, height, width, channels), np.uint8)
    for row, pixels in zip(resized, images, strict=True):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        found = np.asarray(resize_image(image, height, width, crop, where=where))
        row[...] = found.reshape(row.shape)
    return resized


def _pad(image: Image.Image, height: int, width: int, where: str) -> Image.Image:
    columns, rows = image.size
    if rows > height or columns > width:
        raise InputError(
            f"{where} has {rows}x{columns} pixels and cannot be padded to {height}x"
            f"{width}: pad only adds zeros; give a larger --image-size, or scale with "
            "--crop center, none or adm"
        )
    padded = Image.new(image.mode, (width, height))
    padded.paste(image, ((width - columns) // 2, (height - rows) // 2))
    return padded


def _same_aspect(image: Image.Image, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the largest part with the aspect of the target."""
    columns, rows = image.size
    return (
        max(1, min(rows, round(columns * height / width))),
        max(1, min(columns, round(rows * width / height))),
    )


def _center(image: Image.Image, height: int, width: int) -> Image.Image:
    columns, rows = image.size
    left, top = (columns - width) // 2, (rows - height) // 2
    return image.crop((left, top, left + width, top + height))


def _adm(image: Image.Image, height: int, width: int) -> Image.Image:
    while image.size[0] >= 2 * width and image.size[1] >= 2 * height:
        half = (image.size[0] // 2, image.size[1] // 2)
        image = image.resize(half, Image.Resampling.BOX)
    scale = max(width / image.size[0], height / image.size[1])
    size = (round(image.size[0] * scale), round(image.size[1] * scale))
    return _center(image.resize(size, Image.Resampling.BICUBIC), height, width)
