"""The score comparison at full size: 16 noise levels x 2,048 probes x 12 candidates.

Command: .venv/bin/python -m benchmarks.analysis --data PATH
PATH is an archive of labelled 32x32 images, such as cifar10-jpeg-train.zip.  A Gaussian
of rank 256 stands in for the network; its calls are timed apart, as are the fits.
Nothing else should run meanwhile; takes ten minutes on two cores, fits included.
"""

import argparse
import ctypes
import gc
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from analysis.comparison.candidates import EMPIRICAL, fit_candidates
from analysis.comparison.settings import ComparisonSettings
from analysis.score_comparison import compare_denoisers
from benchmarks.measure import matmul_gflops
from benchmarks.results_file import write_result
from diffusion.closed_form import GaussianDenoiser, fit_gaussian
from diffusion.data import Dataset, Split, open_dataset
from diffusion.denoiser import Denoiser

_TARGET_SECONDS, _TARGET_GIB = 300, 4.0
_REFERENCE_RANK = 256
_MODELS = (
    *("mean-isotropic", "isotropic", "ranks", "gaussian"),
    *("mixtures", "classes", "empirical"),
)
_RANKS, _COMPONENTS = (32, 128, 512), (2, 10, 50, 100)


def main() -> None:
    """Fit the candidates, compare them and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-images", type=int, help="for a quick trial")
    parser.add_argument("--num-probes", type=int, default=2048)
    options = parser.parse_args()
    split = _images(options.data, options.max_images)
    started = time.perf_counter()
    gaussian = fit_gaussian(split.training.images)
    between = time.perf_counter()
    settings = ComparisonSettings(models=_MODELS, ranks=_RANKS, mixtures=_COMPONENTS)
    with tempfile.TemporaryDirectory() as folder:
        candidates = fit_candidates(split, gaussian, settings, folder)
    ended = time.perf_counter()
    figures = {
        "shape": {
            "N": len(split.training.images),
            "D": math.prod(split.training.images.shape[1:]),
            "levels": len(settings.sigmas),
            "probes": options.num_probes,
            "candidates": list(candidates),
        },
        "seconds_gaussian_fit": between - started,
        "seconds_other_fits": ended - between,
        **_measure(split, gaussian, candidates, settings, options.num_probes),
    }
    command = "python -m benchmarks.analysis --data PATH"
    if options.max_images is None and options.num_probes == 2048:
        write_result("analysis", command, figures)
    print(figures)


def _images(path: Path, max_images: int | None) -> Split:
    images, labels = open_dataset(path).read()
    training = Dataset(images[:max_images], labels[:max_images])
    nothing = Dataset(images[:0], labels[:0])
    return Split(training, nothing, str(path), 0.5)


def _measure(
    split: Split,
    gaussian: GaussianDenoiser,
    candidates: Mapping[str, Denoiser],
    settings: ComparisonSettings,
    num_probes: int,
) -> dict[str, Any]:
    """Compare at all levels; the time from call to call is that of the one called."""
    chosen = np.random.default_rng(0).permutation(len(split.training.images))
    images = split.training.images[np.sort(chosen[:num_probes])]
    directions = gaussian.basis[:, :64]
    reference = gaussian.truncated(min(_REFERENCE_RANK, gaussian.basis.shape[1]))
    seconds = dict.fromkeys(("", *candidates), 0.0)
    _reset_peak()
    last = started = time.perf_counter()

    def after_call(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name] += now - last
        last = now

    comparison = compare_denoisers(
        reference,
        candidates,
        images,
        settings.sigmas,
        jax.random.key(0),
        mean=gaussian.mean,
        batch_size=settings.batch_size,
        directions=directions,
        after_call=after_call,
    )
    whole, peak = time.perf_counter() - started, _peak_gib()
    assert np.isfinite(comparison.score.mean).all()
    own = seconds.pop("")
    return {
        "seconds": whole,
        "seconds_of_the_reference": own,
        "seconds_beyond_the_reference": whole - own,
        "seconds_by_candidate": seconds,
        "peak_gib": peak,
        "below_target": whole - own < _TARGET_SECONDS and peak < _TARGET_GIB,
        **_fraction(split, len(images) * len(settings.sigmas), seconds[EMPIRICAL]),
    }


def _fraction(split: Split, num_calls: int, seconds: float) -> dict[str, float]:
    """Compare the training set's own score with the machine's matrix product."""
    count, dimension = len(split.training.images), split.training.images[0].size
    gflop, ceiling = 4 * count * dimension * num_calls / 1e9, matmul_gflops()
    return {
        "empirical_gflop": gflop,
        "matmul_gflops": ceiling,
        "empirical_fraction_of_matmul": gflop / seconds / ceiling,
    }


def _reset_peak() -> None:
    """Forget what the fits needed: free memory, and the high-water mark (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _peak_gib() -> float:
    """Return the most memory that was resident since then, models included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**20


if __name__ == "__main__":
    main()
