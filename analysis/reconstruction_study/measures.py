"""What is measured of a score: its field, its angles, its distances from the data."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from analysis.autoencoder.local_geometry import angle_error
from analysis.reconstruction_study.problem import Study
from diffusion.denoiser import Denoiser

__all__ = ["BANDS", "Probes", "angles", "band_probes", "displacement", "distance"]

BANDS = (("< 2", 0.0, 2.0), ("2 to 5", 2.0, 5.0), ("> 5", 5.0, np.inf))
_SIDE, _MARGIN = 90, 1.15
_NEAREST, _FARTHEST = 0.3, 30.0  # units of sigma


class Probes(NamedTuple):
    """Points at all distances from the data.

    Attributes:
        x: (n, *event) float32, data units.
        distance: (n,) from the data, in units of sigma.
        side: Points of a row where they are a square grid of the plane, else 0.
        reach: Half of the square's side, data units.
    """

    x: NDArray[np.float32]
    distance: NDArray[np.float64]
    side: int
    reach: float

    def band(self, low: float, high: float) -> NDArray[np.bool_]:
        """Return which points are between two distances, in units of sigma."""
        return (self.distance >= low) & (self.distance < high)


def displacement(denoiser: Denoiser, x: ArrayLike, sigma: float) -> NDArray[np.float64]:
    """Return r(x) - x = sigma^2 score(x), (n, *event), data units.

    Args:
        denoiser: Any.
        x: (n, *event), data units.
        sigma: Its noise level, data units.
    """
    points = jnp.asarray(x, jnp.float32)
    moved = denoiser(points, jnp.asarray(sigma, jnp.float32))
    return np.asarray(moved, np.float64) - np.asarray(points, np.float64)


def angles(field: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Return the angle between two fields at each point, (n,) degrees."""
    # In float64 scores of the far field do not overflow when they are squared.
    return np.asarray(angle_error(np.asarray(field), np.asarray(reference)))


def distance(study: Study, x: ArrayLike) -> NDArray[np.float64]:
    """Return distances from the data, in units of sigma.

    From the curve where there is one, else from the nearest clean sample.

    Args:
        study: The study.
        x: (n, *event), data units.
    """
    if study.data.curve is not None:
        cloud = study.data.curve
    else:
        cloud = np.concatenate([study.clean, study.held_out])
    tree = KDTree(np.asarray(cloud, np.float64).reshape(len(cloud), -1))
    rows = np.asarray(x, np.float64)
    return tree.query(rows.reshape(len(rows), -1))[0] / study.sigma


def band_probes(study: Study) -> Probes:
    """Return points at all distances from the data.

    In the plane a grid on a square around the data, elsewhere held-out samples moved
    in random directions, by .3 to 30 sigma, uniformly in the logarithm.
    """
    if study.data.event == (2,):
        reach = _MARGIN * float(np.abs(study.clean).max())
        axis = np.linspace(-reach, reach, _SIDE)
        x = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        return Probes(x.astype(np.float32), distance(study, x), _SIDE, reach)
    rng = np.random.default_rng(study.settings.seed)
    clean = study.held_out
    rows = rng.normal(size=(len(clean), study.data.dimension))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    length = np.exp(rng.uniform(np.log(_NEAREST), np.log(_FARTHEST), (len(rows), 1)))
    x = clean + (study.sigma * length * rows).reshape(clean.shape)
    return Probes(x.astype(np.float32), distance(study, x), 0, 0.0)
