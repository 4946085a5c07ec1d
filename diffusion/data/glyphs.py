"""Drawn glyphs: small grey images of a slanted F, P, L or 7.

None of them looks like any of them when it is turned by 90, 180 or 270 degrees, so that
a rotated copy can be told from an upright image.

A glyph is a few strokes in a unit box, mapped into the image by a random size, width,
slant and position.  A pixel at distance d from the nearest stroke has the value
round(255 intensity clip(radius + 1/2 - d, 0, 1)): soft edges one pixel wide, on a
background of exactly 0, which is -1 in data units.
"""

import numpy as np

__all__ = ["GLYPHS", "draw_glyphs"]

GLYPHS = "FPL7"
"""Class k is the glyph GLYPHS[k]."""

_SIDE = 12
_HEIGHT = (6.0, 8.5)  # pixels, between the ends of strokes
_ASPECT = (0.5, 0.7)  # width over height
_SLANT = (0.05, 0.25)  # shift to the right per pixel upwards
_RADIUS = (0.55, 0.9)  # half a stroke's width, pixels
_INTENSITY = (0.6, 1.0)

_STEM = [(0, 0), (0, 1)]  # two ends (x, y), y downwards
_TOP = [(0, 0), (1, 0)]
_FOOT = [(0, 1), (1, 1)]
_FALL = [(1, 0), (0.15, 1)]
_STROKES = np.array(  # (class, stroke, end, xy): some twice, so that all have four
    [
        [_STEM, _TOP, [(0, 0.5), (0.8, 0.5)], _TOP],
        [_STEM, _TOP, [(1, 0), (1, 0.5)], [(0, 0.5), (1, 0.5)]],
        [_STEM, _FOOT, _STEM, _FOOT],
        [_TOP, _FALL, _TOP, _FALL],
    ],
    np.float64,
)


def draw_glyphs(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Draw one glyph per label, each with its own size, slant, stroke and place.

    Args:
        rng: Where sizes, slants, strokes, intensities and places come from.
        labels: (N,) classes, indices into `GLYPHS`.

    Returns:
        (N, 12, 12, 1) uint8, the whole glyph inside each image.
    """
    n = len(labels)
    height = rng.uniform(*_HEIGHT, (n, 1, 1))
    width = height * rng.uniform(*_ASPECT, (n, 1, 1))
    slant = rng.uniform(*_SLANT, (n, 1, 1))
    radius = rng.uniform(*_RADIUS, (n, 1, 1))
    intensity = rng.uniform(*_INTENSITY, (n, 1, 1))
    x, y = np.moveaxis(_STROKES[labels], -1, 0)
    ends = np.stack([width * x - slant * height * y, height * y], axis=-1)
    # Anywhere, as long as all the ink is inside: ends lie in [radius, side - radius].
    low = radius[..., 0] - ends.min(axis=(1, 2))
    high = _SIDE - radius[..., 0] - ends.max(axis=(1, 2))
    ends += rng.uniform(low, high)[:, None, None, :]
    centres = np.stack(np.meshgrid(*[np.arange(_SIDE) + 0.5] * 2), axis=-1)
    distance = _distance(centres, ends).min(axis=1)
    ink = np.clip(radius + 0.5 - distance, 0, 1)
    return np.round(255 * intensity * ink).astype(np.uint8)[..., None]


def _distance(points: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return distances of (H, W, 2) points to (N, S, 2, 2) segments, (N, S, H, W)."""
    start, stop = ends[:, :, None, None, 0], ends[:, :, None, None, 1]
    along, offset = stop - start, points - start
    share = np.sum(offset * along, axis=-1) / np.sum(along**2, axis=-1)
    nearest = np.clip(share, 0, 1)[..., None] * along
    return np.linalg.norm(offset - nearest, axis=-1)
