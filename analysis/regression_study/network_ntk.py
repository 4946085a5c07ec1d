"""The page's section on the tangent kernel of a run's network, at several noise levels.

What the kernel is, and what its regression should predict, is in
`analysis.regression_study.network_kernel`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.regression_study.network_kernel import (
    KernelChoice,
    NetworkKernel,
    NoisedImages,
    network_kernel,
)
from analysis.regression_study.network_plots import plot_kernels, plot_predictions
from analysis.section import Section
from analysis.study_parts import Outcome
from configs.errors import InputError
from diffusion.data import Split, check_labels
from diffusion.progress import Progress
from diffusion.training.loading import checkpoint_steps
from samplers.model import load_model
from samplers.statistics_run import read_training_images

__all__ = ["Seeded", "kernel_rows", "known_sigmas", "network_part"]


class Seeded(Protocol):
    """Settings of a study: of them the seed is what is needed here."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        ...


def network_part(
    workdir: str | Path,
    settings: Seeded,
    folder: Path,
    *,
    choice: KernelChoice | None = None,
    advance: Callable[[str], None] | None = None,
) -> Outcome:
    """Make the section on the tangent kernel of a run's network.

    Args:
        workdir: A run of `diffusion.training.train`; its averaged parameters are taken.
        settings: The study's; the seed is used.
        folder: The page's folder.
        choice: Noise levels, images and probes; None for the defaults.
        advance: Told after each noise level; None shows a bar.

    Returns:
        Text, a table, two figures and a CSV file; the rows of the table.

    Raises:
        InputError: If there is no run, checkpoint or images, or the network knows none
            of the noise levels.
        OSError: If a file cannot be written.
    """
    choice = choice or KernelChoice()
    checkpoint_steps(workdir)
    split = read_training_images(workdir)
    model = load_model(workdir, step=choice.step)
    check_labels(split, model.num_classes)
    sigmas = known_sigmas(choice.sigmas, model.sigma_range)
    progress = Progress(len(sigmas), label="tangent kernels", unit="level")
    key = jax.random.key(settings.seed)
    images_key, probes_key = jax.random.split(key)
    found = []
    for sigma in sigmas:
        images = _noised(split, choice, sigma, images_key)
        found.append(network_kernel(model, images, sigma, probes_key, choice))
        if advance is None:
            progress.advance(note=f"sigma {sigma:g}")
        else:
            advance(f"sigma {sigma:g}")
    progress.close()
    held_out = len(split.held_out.images) >= 2
    section = _write(Path(workdir), found, images, choice, held_out, folder)
    return Outcome(section, {"rows": kernel_rows(found)})


def known_sigmas(
    sigmas: Sequence[float], sigma_range: tuple[float, float]
) -> tuple[float, ...]:
    """Return those noise levels that a network knows, rising.

    Args:
        sigmas: Noise levels, data units.
        sigma_range: Lowest and highest that it knows.

    Raises:
        InputError: If there is none.
    """
    lowest, highest = sigma_range
    known = tuple(sorted({s for s in sigmas if lowest <= s <= highest}))
    if not known:
        raise InputError(
            f"the noise levels are {tuple(sigmas)}, but this network knows those in "
            f"[{lowest:g}, {highest:g}]; give some of those"
        )
    return known


def _noised(
    split: Split, choice: KernelChoice, sigma: float, key: Array
) -> NoisedImages:
    """Choose images and noise them; images and noise are the same at all levels."""
    order_key, noise_key = jax.random.split(key)
    training, others = split.training, split.held_out
    order = np.asarray(jax.random.permutation(order_key, len(training.images)))
    if len(others.images) >= 2:
        fitted = order[: choice.num_images]
        chosen = np.arange(len(others.images))
    else:
        # None are held out: other training images.
        others = training
        fitted = order[: min(choice.num_images, len(order) // 2)]
        chosen = order[len(fitted) :]
    parts = ((training, fitted), (others, chosen[: choice.num_held_out]))
    clean = jnp.concatenate([_in_data_units(part.images[i]) for part, i in parts])
    classes = np.concatenate([np.asarray(part.labels)[i] for part, i in parts])
    noise = jax.random.normal(noise_key, clean.shape)
    noised = clean + sigma * noise
    return NoisedImages(clean, noised, jnp.asarray(classes), len(fitted))


def _in_data_units(images: NDArray[Any]) -> Array:
    values = jnp.asarray(np.asarray(images), jnp.float32)
    return values / 127.5 - 1 if images.dtype == np.uint8 else values


def _write(
    workdir: Path,
    found: Sequence[NetworkKernel],
    images: NoisedImages,
    choice: KernelChoice,
    held_out: bool,
    folder: Path,
) -> Section:
    section = Section("The tangent kernel of a trained network", folder)
    n, q = images.num_fitted, len(images.clean) - images.num_fitted
    others = "held-out" if held_out else "other training"
    section.paragraph(
        f"The network of {workdir}, averaged parameters: kernel tr(J J'^T) / d among "
        f"{n} noised training images and {q} noised {others} images. Kernel regression "
        "from the skip connection, stopped by generalized cross-validation, is fitted "
        "to the network's own outputs at the training images or to the clean images, "
        "and compared with the network at the others."
    )
    if any(one.probe_error for one in found):
        section.paragraph(
            f"Traces are estimated with {choice.num_probes} random signs on the "
            "outputs. Relative to the kernel, root mean square over pairs, the "
            "standard error is "
            f"{_listed(found, 'probe_error')}, and half the difference between two "
            f"halves of the signs {_listed(found, 'half_error')}."
        )
    else:
        section.paragraph("Traces are exact.")
    section.figure(
        "network_kernel",
        plot_kernels(found),
        "Left: eigenvalues of the kernel over n. Right: share of the labels, clean "
        "image less skip, in the first eigenvectors.",
    )
    section.figure(
        "network_regression",
        plot_predictions(found),
        "Left: how much of the network's own part its kernel regression explains, "
        "1 is all. Right: distances from the clean images.",
    )
    section.table(kernel_rows(found))
    section.file("network_kernel.csv", kernel_rows(found))
    return section


def kernel_rows(found: Sequence[NetworkKernel]) -> list[dict[str, float]]:
    """Return one row for each noise level, all numbers but the curves."""
    rows = []
    for one in found:
        values = one._asdict()
        shares = {f"share of the first {k}": _share_of(one, k) for k in (4, 16)}
        del values["evals"], values["share"]
        rows.append({name.replace("_", " "): v for name, v in values.items()} | shares)
    return rows


def _share_of(one: NetworkKernel, count: int) -> float:
    return float(one.share[min(count, len(one.share)) - 1])


def _listed(found: Sequence[NetworkKernel], name: str) -> str:
    return ", ".join(f"{getattr(one, name):.1%}" for one in found)
