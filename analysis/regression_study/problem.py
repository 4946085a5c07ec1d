"""Regressions that a study is made of: samples of a size, fitted at all times at once.

Everything is float64 (call under ``jax.enable_x64(True)``).  Of equal settings and
seeds the samples are the same, and with a known mixture each seed draws new data.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from analysis.kernels.checks import check_exact_size
from analysis.kernels.diffusion_regression import dsm_triples
from analysis.kernels.early_stopping import choose_stop, default_times
from analysis.kernels.filters import Filter, flow, gd
from analysis.kernels.gram import Kernel, gram
from analysis.kernels.kernel_denoiser import Lifting
from analysis.kernels.nystrom import (
    NystromMap,
    choose_landmarks,
    decompose_features,
    nystrom_map,
    nystrom_stream,
)
from analysis.kernels.posterior import posterior_mean
from analysis.kernels.regression import FlowModel, decompose, fit, predict
from analysis.kernels.relu_ntk import relu_ntk
from analysis.kernels.score_network import init, largest_step
from analysis.regression_study.data import StudyData
from analysis.regression_study.settings import StudySettings
from configs.errors import InputError, InputWarning, require
from diffusion.closed_form import MixtureDenoiser

__all__ = ["Regression", "Sample", "Study", "draw_mixture", "mean_squares"]

_STABLE = 0.7  # of the largest step, for other points have another one
_STREAMED = 50_000  # points from which on features are not kept
_HOLDOUT_SHARE = 4  # one held-out row in so many is for the hold-out rule
_ROLES = ("training", "test", "hold-out", "landmarks", "networks", "oracle", "sampling")


class Sample(NamedTuple):
    """Points of a regression.

    Attributes:
        inputs: (n, p) lifted inputs.
        labels: (n, k) labels.
        truth: (n, k) what they are noisy values of, or None where nobody knows.
        xt: (n, D) noisy samples, or the rows themselves where labels are regressed.
        t: (n,) their times; 0 likewise.
        clean: (m, D) the clean samples that they were drawn from.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.float64]
    truth: NDArray[np.float64] | None
    xt: NDArray[np.float64]
    t: NDArray[np.float64]
    clean: NDArray[np.float64]

    @property
    def target(self) -> NDArray[np.float64]:
        """What errors are measured against: the truth, or else the labels."""
        return self.labels if self.truth is None else self.truth


class Regression(NamedTuple):
    """A fit of which only the training time is open.

    Attributes:
        model: Of the labels less `mean`.
        points: (n, p) training inputs, or the map of Nystrom's features.
        mean: (k,) mean label, the first guess.
        kernel: The kernel.
    """

    model: FlowModel
    points: NDArray[np.float64] | NystromMap
    mean: NDArray[np.float64]
    kernel: Kernel = relu_ntk

    def rows(self, inputs: ArrayLike) -> NDArray[np.float64]:
        """Return what `predict` takes for some inputs (q, p)."""
        if isinstance(self.points, NystromMap):
            return np.asarray(self.points(inputs))
        return np.asarray(gram(self.kernel, inputs, self.points))

    def stop(self) -> float:
        """Return the training time that GCV chooses."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            return choose_stop(self.model, times=self.times()).s

    def times(self) -> NDArray[np.float64]:
        """Return the training times to choose from."""
        return default_times(self.model.spectrum.evals)


@dataclass(frozen=True)
class Study:
    """A data set with settings, and the regression that most parts look at."""

    data: StudyData
    settings: StudySettings

    def key(self, role: str, seed: int = 0) -> Array:
        """Return a key for one of the roles of randomness and one seed."""
        base = jax.random.key(self.settings.seed)
        return jax.random.fold_in(jax.random.fold_in(base, _ROLES.index(role)), seed)

    @property
    def lifting(self) -> Lifting:
        """How noisy samples and times become inputs."""
        s = self.settings
        return Lifting(t_range=s.t_range, bias=s.bias, scale=s.scale)

    @cached_property
    def training(self) -> Sample:
        """The training points of seed 0."""
        return self.draw(
            "training", self.settings.num_points, draws=self.settings.draws
        )

    @cached_property
    def test(self) -> Sample:
        """The test points, the same for all seeds."""
        return self.draw("test", self.settings.test_points)

    @cached_property
    def main(self) -> Regression:
        """The regression of seed 0."""
        return self.regress(self.training)

    @cached_property
    def main_rows(self) -> NDArray[np.float64]:
        """The rows of the test points for `main`."""
        return self.main.rows(self.test.inputs)

    @cached_property
    def main_stop(self) -> float:
        """The GCV stop of `main`."""
        return self.main.stop()

    @cached_property
    def eta(self) -> float:
        """The step size of gradient descent.

        Raises:
            InputError: If the one that was asked for is not below 2 / mu_1.
        """
        mu = np.asarray(self.main.model.spectrum.evals)
        if self.settings.eta is None:
            return min(1.0, 1 / float(mu[0]), _STABLE * self._narrowest_limit())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            gd(mu, self.settings.eta, 1)
        return self.settings.eta

    def _narrowest_limit(self) -> float:
        """Return the least 2 / mu_1 of the narrowest networks at their start.

        With many outputs it is far below that of the limit kernel.
        """
        z, m = self.training.inputs, min(self.settings.widths)
        key = jax.random.fold_in(self.key("networks"), m)
        if m < self.data.num_outputs:
            return np.inf
        shape = (m, z.shape[1], self.data.num_outputs)
        starts = (
            init(jax.random.fold_in(key, seed), *shape)
            for seed in range(self.settings.width_seeds)
        )
        return min(largest_step(start, jnp.asarray(z, jnp.float32)) for start in starts)

    def draw(
        self,
        role: str,
        n: int,
        *,
        seed: int = 0,
        draws: int = 1,
        with_truth: bool = True,
    ) -> Sample:
        """Draw points of the regression.

        Args:
            role: "training" and "oracle" take training rows, others held-out ones.
            n: Number of points; of held-out rows as many noise draws as it takes.
            seed: Which of several such sets.
            draws: Noise draws for each clean sample, a divisor of `n`.
            with_truth: Whether to compute the truth, where there is one.

        Raises:
            InputError: If there are not enough rows.
        """
        data, key = self.data, self.key(role, seed)
        held_out = role not in ("training", "oracle")
        if data.labels is not None:
            return self._draw_rows(key, n, role)
        if data.truth is not None:
            pool = draw_mixture(data.truth, jax.random.fold_in(key, 1), n // draws)
        elif held_out:
            pool = data.held_out[self._held_out_rows(role)]
            draws = -(-n // len(pool))
            n = n if draws == 1 else draws * len(pool)
        else:
            pool = data.clean
        require(n // draws <= len(pool), "n", n // draws, _at_most(len(pool)))
        found = dsm_triples(key, pool, n, self.settings.t_range, draws)
        lifted = self.lifting(found.xt, found.t)
        truth = data.truth if with_truth else None
        return Sample(
            np.asarray(lifted),
            np.asarray(found.y),
            None if truth is None else np.asarray(posterior_mean(truth, *found[:2])),
            np.asarray(found.xt),
            np.asarray(found.t),
            np.asarray(found.y)[::draws],
        )

    def _held_out_rows(self, role: str) -> slice:
        """Return which held-out rows a role takes: no stop is chosen by test rows."""
        count = len(self.data.held_out)
        cut = count - count // _HOLDOUT_SHARE
        return slice(cut, count) if role == "hold-out" else slice(0, cut)

    def _draw_rows(self, key: Array, n: int, role: str) -> Sample:
        data = self.data
        rows, labels = data.clean, data.labels
        if role != "training":
            some = self._held_out_rows(role)
            assert data.held_out_labels is not None, "they are where labels are"
            rows, labels = data.held_out[some], data.held_out_labels[some]
            n = min(n, len(rows))
        assert labels is not None, "the caller has seen to it"
        require(n <= len(rows), "n", n, _at_most(len(rows)))
        chosen = np.asarray(jax.random.permutation(key, len(rows))[:n])
        x, bias = rows[chosen], np.full((n, 1), self.settings.bias)
        inputs = np.concatenate([x / self.settings.scale, bias], axis=1)
        return Sample(inputs, labels[chosen], None, x, np.zeros(n), x)

    def regress(self, sample: Sample, *, seed: int = 0) -> Regression:
        """Fit a sample, exactly or with Nystrom's features as the settings say.

        Raises:
            InputError: If the exact path was asked for and there are too many points.
        """
        s, n = self.settings, len(sample.inputs)
        mean = sample.labels.mean(axis=0)
        target = sample.labels - mean
        if s.method == "exact" or (s.method == "auto" and n <= s.largest_exact):
            check_exact_size(n, landmarks=s.landmarks)
            spectrum = decompose(np.asarray(gram(relu_ntk, sample.inputs)))
            return Regression(fit(spectrum, target), sample.inputs, mean)
        key = self.key("landmarks", seed)
        landmarks = choose_landmarks(key, sample.inputs, min(s.landmarks, n))
        features = nystrom_map(relu_ntk, landmarks)
        if n >= _STREAMED:
            model = nystrom_stream(features, [(sample.inputs, target)])
        else:
            phi = np.asarray(features(sample.inputs))
            model = fit(decompose_features(phi), target)
        return Regression(model, features, mean)

    def check_sizes(self) -> None:
        """Refuse settings that could not be followed, before anything is computed.

        Raises:
            InputError: If there are too few rows for the training points, too many
                points for the exact path, or a network is too narrow.
        """
        s, d = self.settings, self.data.num_outputs
        if s.method == "exact":
            check_exact_size(s.num_points, landmarks=s.landmarks)
        if self.data.truth is None:
            rows = len(self.data.clean)
            if s.num_points // s.draws > rows:
                raise InputError(
                    f"num_points is {s.num_points} with draws {s.draws}, but there are "
                    f"{rows} training rows; lower --num-points or raise --draws"
                )
            most = max(s.sizes or (0,))
            require(most <= rows, "sizes", s.sizes, _at_most(rows))
        if s.wants("coupling") and min(s.widths) < d:
            raise InputError(
                f"widths begin at {min(s.widths)} for {d} outputs; give at least {d} "
                "neurons, and some thousands for the kernel to describe the network"
            )


def draw_mixture(mixture: MixtureDenoiser, key: Array, n: int) -> NDArray[np.float64]:
    """Draw clean samples of a mixture of isotropic Gaussians of equal weight.

    On the host: `MixtureDenoiser.sample` is compiled anew for every number.

    Args:
        mixture: The mixture, of rank 0.
        key: A `jax.random.key`.
        n: Number of samples.

    Returns:
        (n, D).
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    means = np.asarray(mixture.means, np.float64)
    which = rng.integers(len(means), size=n)
    deviation = np.sqrt(np.asarray(mixture.residual_variances, np.float64))[which]
    return means[which] + deviation[:, None] * rng.normal(size=(n, means.shape[1]))


def mean_squares(
    regression: Regression,
    rows: NDArray[np.float64],
    target: NDArray[np.float64],
    s: ArrayLike,
    *,
    filter: Filter = flow,
) -> NDArray[np.float64]:
    """Return mean |f_s - target|^2 over points.

    Args:
        regression: See `Study.regress`.
        rows: (q, ...) of the points.
        target: (q, k).
        s: () or (S,) training times; inf interpolates.
        filter: How the kernel is trained.

    Returns:
        In the shape of `s`, summed over outputs.
    """
    centred = jnp.asarray(target - regression.mean)
    error = partial(predict, regression.model, rows, filter=filter)
    # A few times at once: all predictions of many times are large.
    times = np.atleast_1d(np.asarray(s, np.float64))
    parts = [
        np.asarray(jnp.mean(jnp.sum((error(some) - centred) ** 2, axis=-1), axis=-1))
        for some in np.array_split(times, max(1, len(times) // 36))
    ]
    return np.concatenate(parts).reshape(np.shape(s))


def _at_most(rows: int) -> str:
    return f"at most {rows}, the rows that there are to draw from"
