"""Part 4: what r keeps along the data and across them, and whether r - x has curl."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.autoencoder.local_geometry import (
    curl_norm,
    tangent_normal_singular_values,
)
from analysis.autoencoder.reconstruction import at_sigma, reconstruction_jacobian
from analysis.plots import COLOURS, STYLES, open_panels
from analysis.reconstruction_study.arms import Arm
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome
from diffusion.denoiser import Denoiser

__all__ = ["JacobianStudy", "jacobian_part", "measure_jacobians"]

_POINTS = 200
_KEPT = 0.5  # a direction that r keeps to more than this counts as tangent


class JacobianStudy(NamedTuple):
    """dr/dx at clean points.

    Attributes:
        points: (n, *event), data units, sorted along the curve where there is one.
        dimension: Directions that count as tangent.
        tangent: By name (n, k) singular values along them, largest first.
        normal: By name (n, D - k) singular values across.
        asymmetry: By name (n,) |J - J^T| / |J + J^T|.
        error: By name (n,) |J - J_ref| / |J_ref|, in Frobenius' norm.
    """

    points: NDArray[np.float64]
    dimension: int
    tangent: dict[str, NDArray[np.float64]]
    normal: dict[str, NDArray[np.float64]]
    asymmetry: dict[str, NDArray[np.float64]]
    error: dict[str, NDArray[np.float64]]


def measure_jacobians(study: Study) -> JacobianStudy:
    """Differentiate every score at clean points.

    Tangents are the curve's where it is known, else the directions of the reference's
    Jacobian that it keeps to more than one half, as many at every point as at the
    median one, and at least one.

    Args:
        study: The study.
    """
    points = study.held_out[:_POINTS]
    points = points[np.argsort(np.linalg.norm(points.reshape(len(points), -1), axis=1))]
    reference = study.reference.denoiser
    exact = _jacobian(reference, points, study.sigma)
    symmetric = (exact + exact.transpose(0, 2, 1)) / 2
    values, vectors = np.linalg.eigh(symmetric)
    dimension = int(
        np.clip(np.median(np.sum(values > _KEPT, axis=1)), 1, _last(values))
    )
    tangents = vectors[:, :, ::-1][:, :, :dimension]
    if study.data.tangents is not None:
        tangents = study.data.tangents(np.asarray(points, np.float64))
        dimension = 1
    named: dict[str, Denoiser] = {study.reference.name: reference, **study.scores()}
    named[Arm.CONTRACTIVE.value] = study.trained(Arm.CONTRACTIVE).denoiser
    if study.data.curve is not None:
        named[Arm.TANH_DIRECT.value] = study.trained(Arm.TANH_DIRECT).denoiser
    tangent, normal, asymmetry, error = {}, {}, {}, {}
    for name, denoiser in named.items():
        r = at_sigma(denoiser, jnp.float32(study.sigma))
        found = tangent_normal_singular_values(r, points, np.float32(tangents))
        tangent[name] = np.asarray(found.tangent, np.float64)
        normal[name] = np.asarray(found.normal, np.float64)
        asymmetry[name] = np.asarray(curl_norm(r, points), np.float64)
        off = _jacobian(denoiser, points, study.sigma) - exact
        error[name] = np.linalg.norm(off, axis=(1, 2)) / np.linalg.norm(
            exact, axis=(1, 2)
        )
    return JacobianStudy(
        np.asarray(points, np.float64), dimension, tangent, normal, asymmetry, error
    )


def _last(values: NDArray[np.float64]) -> int:
    return max(values.shape[1] - 1, 1)


@jax.jit
def _compiled(denoiser: Denoiser, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return reconstruction_jacobian(at_sigma(denoiser, sigma), x)


def _jacobian(
    denoiser: Denoiser, x: NDArray[np.float32], sigma: float
) -> NDArray[np.float64]:
    found = _compiled(denoiser, jnp.asarray(x), jnp.float32(sigma))
    return np.asarray(found, np.float64)


def jacobian_part(study: Study) -> Outcome:
    """Make the section on the Jacobian; see `PartMaker`."""
    found = measure_jacobians(study)
    section = Section("The Jacobian: tangents are kept, normals are not", study.folder)
    section.paragraph(
        "dr/dx = I + sigma^2 Hess log p_sigma = Cov[x_0 | x] / sigma^2 of the best r: "
        "symmetric, about 1 along the data and about 0 across. "
        f"{len(found.points)} clean held-out points; {found.dimension} "
        f"direction{'s' * (found.dimension > 1)} of {study.data.dimension} "
        "count as tangent. "
        "Asymmetry: |J - J^T| / |J + J^T|, 0 of a gradient; error: "
        f"|J - J_ref| / |J_ref| from that of {study.reference.name}."
    )
    rows = _rows(found)
    section.table(rows)
    along = study.data.curve is not None
    section.figure(
        "jacobian",
        _plot(found, along),
        "Singular values of dr/dx at points along the curve: of the tangent (above) "
        "and of the normal."
        if along
        else "Median singular values of dr/dx along the data, then across them.",
    )
    section.file("jacobian.csv", rows)
    return Outcome(section, {"rows": rows, "tangents": found.dimension})


def _rows(found: JacobianStudy) -> list[dict[str, Any]]:
    return [
        {
            "score": name,
            "tangent, median": float(np.median(found.tangent[name])),
            "normal, median": float(np.median(found.normal[name])),
            "normal, 95 %": float(np.quantile(found.normal[name], 0.95)),
            "asymmetry, median": float(np.median(found.asymmetry[name])),
            "error, median": float(np.median(found.error[name])),
        }
        for name in found.tangent
    ]


def _plot(found: JacobianStudy, along: bool) -> Figure:
    figure, (axes,) = open_panels(1, 9, 4.4)
    for i, name in enumerate(found.tangent):
        colour = COLOURS[i % len(COLOURS)]
        if along:
            where = np.linalg.norm(found.points, axis=1)
            axes.plot(where, found.tangent[name], ".", ms=4, color=colour, label=name)
            axes.plot(where, found.normal[name], "x", ms=3, color=colour, alpha=0.6)
        else:
            both = np.concatenate([found.tangent[name], found.normal[name]], axis=1)
            axes.plot(
                np.arange(1, both.shape[1] + 1),
                np.median(both, axis=0),
                STYLES[i % len(STYLES)],
                ms=3,
                color=colour,
                label=name,
            )
    axes.set(
        xlabel="distance from the centre (data units)" if along else "direction",
        ylabel="singular value",
        title="Singular values of dr/dx" + (": tangent (.), normal (x)" * along),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
