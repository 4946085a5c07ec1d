"""Part 7: where r leads from everywhere, and which of its fixed points have no data.

The gain of a move is 1, x <- r(x).  Points of the plane are drawn; in more dimensions
the table tells the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.autoencoder.modes import Modes, spurious_mode_search
from analysis.autoencoder.reconstruction import at_sigma
from analysis.reconstruction_study.arms import Arm
from analysis.reconstruction_study.chain_plots import plot_maxima
from analysis.reconstruction_study.problem import Study
from analysis.section import Section
from analysis.study_parts import Outcome
from diffusion.denoiser import Denoiser

__all__ = ["MaximaStudy", "maxima_part", "measure_maxima"]

_BOX = 1.5  # times the largest value of the data
_DRAWN = 60


class MaximaStudy(NamedTuple):
    """Fixed points by score.

    Attributes:
        modes: By name; see `Modes`.
        paths: By name (steps, starts, *event), data units, for some of the starts.
        reach: Half of the box that starts are spread over, data units.
        starts: How many.
    """

    modes: dict[str, Modes]
    paths: dict[str, NDArray[np.float64]]
    reach: float
    starts: int


def measure_maxima(study: Study) -> MaximaStudy:
    """Follow every reconstruction from a box around the data.

    Args:
        study: The study.
    """
    reach = _BOX * float(np.abs(study.clean).max())
    count, sigma = study.settings.mode_starts, study.sigma
    starts = jax.random.uniform(
        study.key("maxima"), (count, *study.data.event), jnp.float32, -reach, reach
    )
    named: dict[str, Denoiser] = {study.reference.name: study.reference.denoiser}
    named |= study.scores()
    if study.data.curve is not None:
        named[Arm.TANH_DIRECT.value] = study.trained(Arm.TANH_DIRECT).denoiser
    modes, paths = {}, {}
    for name, denoiser in named.items():
        r = at_sigma(denoiser, jnp.float32(sigma))
        modes[name] = spurious_mode_search(
            r, starts, study.settings.mode_steps, data=study.clean, sigma=sigma
        )
        if study.data.dimension == 2:
            drawn = min(_DRAWN, count)
            paths[name] = _path(denoiser, starts[:drawn], sigma, study.settings)
    return MaximaStudy(modes, paths, reach, count)


def _path(
    denoiser: Denoiser, x: Array, sigma: float, settings: Any
) -> NDArray[np.float64]:
    found = _walk(denoiser, x, jnp.float32(sigma), jnp.arange(settings.mode_steps))
    return np.concatenate([np.asarray(x)[None], np.asarray(found)]).astype(np.float64)


@jax.jit
def _walk(denoiser: Denoiser, x: Array, sigma: Array, steps: Array) -> Array:
    def move(x: Array, _: Array) -> tuple[Array, Array]:
        new = denoiser(x, sigma).astype(x.dtype)
        return new, new

    return jax.lax.scan(move, x, steps)[1]


def maxima_part(study: Study) -> Outcome:
    """Make the section on spurious maxima; see `PartMaker`."""
    found = measure_maxima(study)
    section = Section("Where reconstruction leads: spurious maxima", study.folder)
    section.paragraph(
        f"{found.starts} starts spread over a box reaching {found.reach:.3g} are "
        f"reconstructed {study.settings.mode_steps} times; where they settle, "
        "eigenvalues of dr/dx - I tell a mode (all below 0), a saddle, a minimum and a "
        "flat point, as along a ridge. Spurious: the density of the training points, "
        "each a Gaussian of width sigma, is below its .1 % quantile on the points "
        "themselves. Unsettled: starts that still moved by more than sigma / 1000 at "
        "the end, such as slowly along the data."
    )
    rows = [_row(name, modes, found.starts) for name, modes in found.modes.items()]
    section.table(rows)
    if found.paths:
        section.figure(
            "maxima",
            plot_maxima(found.modes, found.paths, study.clean, found.reach),
            "Paths of x <- r(x) from far, and fixed points; red ones are spurious.",
        )
    name = next(iter(study.scores()))
    spurious = found.modes[name].spurious
    section.paragraph(
        f"The {name} has {int(spurious.sum())} spurious fixed points, in which "
        f"{int(found.modes[name].starts[spurious].sum())} of {found.starts} starts end."
    )
    section.file("maxima.csv", _points(found))
    return Outcome(section, {"rows": rows})


def _row(name: str, modes: Modes, starts: int) -> dict[str, Any]:
    kinds = np.array(modes.kind)
    return {
        "score": name,
        **{kind: int(np.sum(kinds == kind)) for kind in ("mode", "saddle", "minimum")},
        "flat": int(np.sum(kinds == "flat")),
        "spurious": int(modes.spurious.sum()),
        "starts in spurious": int(modes.starts[modes.spurious].sum()),
        "starts settled": starts - modes.unsettled,
        "unsettled": modes.unsettled,
    }


def _points(found: MaximaStudy) -> list[dict[str, Any]]:
    return [
        {
            "score": name,
            "kind": modes.kind[i],
            "spurious": bool(modes.spurious[i]),
            "starts": int(modes.starts[i]),
            "log density": float(modes.log_density[i]),
            "largest eigenvalue": float(modes.eigenvalues[i, -1]),
            "x": " ".join(f"{v:.5g}" for v in modes.x[i].ravel()),
        }
        for name, modes in found.modes.items()
        for i in range(len(modes.kind))
    ]
