"""The tangent kernel of a trained network and what its regression predicts."""

import csv
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.regression_study import network_kernel as measuring
from analysis.regression_study.network_kernel import (
    KernelChoice,
    NoisedImages,
    network_kernel,
)
from analysis.regression_study.network_ntk import known_sigmas, network_part
from configs import InputError
from diffusion.closed_form import isotropic_gaussian
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import EDMPreconditioning
from samplers.model import Model

SIGMA, N, Q, D = 0.5, 24, 10, 6


class Settings(NamedTuple):
    seed: int = 0


@dataclass(frozen=True)
class Linear:
    """F(x) = x W, so that d D / d W is known."""

    def init(self, key):
        raise NotImplementedError

    def apply(self, params, x, c_noise, labels=None, condition=None, dropout_key=None):
        return x @ params["w"] if labels is None else (x + labels) @ params["w"]


@dataclass(frozen=True)
class Bent(Linear):
    """F(x) = tanh(x V) W: outputs share parameters, so probes have noise."""

    def apply(self, params, x, c_noise, labels=None, condition=None, dropout_key=None):
        return jnp.tanh(x @ params["v"]) @ params["w"]


def images(rng):
    clean = jnp.asarray(rng.normal(size=(N + Q, D)) / 2, jnp.float32)
    noised = clean + SIGMA * jnp.asarray(rng.normal(size=clean.shape), jnp.float32)
    return NoisedImages(clean, noised, jnp.asarray(rng.integers(0, D, N + Q)), N)


def model(network, num_classes=0) -> Any:
    rng = np.random.default_rng(1)
    params = {
        name: jnp.asarray(rng.normal(size=(D, D)) / D**0.5, jnp.float32)
        for name in "vw"
    }
    if not isinstance(network, Bent):
        del params["v"]
    denoiser = NeuralDenoiser(params, network, EDMPreconditioning())
    return Model(denoiser, (D,), None, num_classes=num_classes)


def features(x, params):
    """Return d F_k / d theta of `Bent`, (n, D, P), in NumPy."""
    hidden, w = np.tanh(x @ params["v"]), np.asarray(params["w"], np.float64)
    slope = 1 - hidden**2
    of_v = np.einsum("ni,nj,jk->nkij", x, slope, w).reshape(len(x), D, -1)
    of_w = np.einsum("nj,kl->nkjl", hidden, np.eye(D)).reshape(len(x), D, -1)
    return np.concatenate([of_v, of_w], axis=2)


@pytest.mark.parametrize("num_classes", [0, D])
def test_regression_with_a_linear_networks_kernel_predicts_it_exactly(num_classes):
    known = images(np.random.default_rng(0))
    linear = model(Linear(), num_classes)
    found = network_kernel(linear, known, SIGMA, jax.random.key(0), KernelChoice())
    assert found.probe_error == 0
    assert found.explained > 1 - 1e-6
    assert found.rms < 1e-3 * found.network_loss
    # The kernel is c_out^2 z.z' with z what the network takes.
    total = SIGMA**2 + 0.25
    z = np.asarray(known.noised[:N], np.float64) / total**0.5
    if num_classes:
        z = z + np.eye(D)[np.asarray(known.classes[:N])]
    c_out2 = SIGMA**2 * 0.25 / total
    mu = np.linalg.eigvalsh(c_out2 * z.T @ z / N)[::-1]
    np.testing.assert_allclose(found.evals[:D], mu, rtol=1e-5)
    assert found.effective_rank == pytest.approx(
        mu.sum() ** 2 / (mu**2).sum(), rel=1e-4
    )
    assert (found.evals[D:] < 1e-5 * mu[0]).all()


def test_denoised_images_are_those_of_the_denoiser():
    known = images(np.random.default_rng(0))
    bent = model(Bent())
    found = network_kernel(bent, known, SIGMA, jax.random.key(0), KernelChoice())
    denoised = bent.denoiser(known.noised, SIGMA)[N:]
    difference = np.asarray(denoised - known.clean[N:], np.float64)
    assert found.network_loss == pytest.approx(
        np.sqrt((difference**2).mean()), rel=1e-5
    )
    skip = 0.25 / (SIGMA**2 + 0.25) * known.noised[N:] - known.clean[N:]
    assert found.skip_loss == pytest.approx(float(jnp.sqrt((skip**2).mean())), rel=1e-5)


def test_probes_are_unbiased_and_their_error_is_stated(monkeypatch):
    known = images(np.random.default_rng(0))
    bent = model(Bent())
    x = np.asarray(known.noised, np.float64) / (SIGMA**2 + 0.25) ** 0.5
    j = features(x, bent.denoiser.params)
    c_out2 = SIGMA**2 * 0.25 / (SIGMA**2 + 0.25)
    exact = c_out2 * np.einsum("nkp,qkp->nq", j, j)
    monkeypatch.setattr(measuring, "_MOST_JACOBIAN_ENTRIES", 0)
    choice = KernelChoice(num_probes=64, block=N + Q)
    apply, params = measuring._trained_part(bent.denoiser, (D,), 0)
    rows = measuring._rows(bent.denoiser, known, SIGMA, 0)
    means, stated = [], []
    for seed in range(8):
        key = jax.random.key(seed)
        halves = measuring._halves(apply, params, rows, key, choice)
        means.append((halves[0].mean + halves[1].mean) / 2)
        stated.append(measuring._relative_error(halves))
        assert measuring._half_difference(halves) > 0
    size = np.linalg.norm(exact)
    each = [np.linalg.norm(mean - exact) / size for mean in means]
    assert 0.6 < np.mean(each) / np.mean(stated) < 1.5
    # Eight times as many probes: the error falls as it does without a bias.
    assert np.linalg.norm(np.mean(means, axis=0) - exact) / size < 0.6 * np.mean(each)


def test_alignment_and_shares_of_a_kernel_made_from_the_labels():
    labels = np.random.default_rng(2).normal(size=(8, 3))
    assert measuring._alignment(labels @ labels.T, labels) == pytest.approx(1)
    assert measuring._alignment(np.eye(8), labels) < 0.8
    vectors = np.linalg.svd(labels)[0]
    share = measuring._cumulative_share(vectors, labels)
    assert share[2] == pytest.approx(1)
    assert share[0] < 0.9


@pytest.mark.slow
def test_a_run_has_a_section_with_a_table_two_figures_and_a_file(tiny_run, tmp_path):
    told = []
    choice = KernelChoice(sigmas=(1.0, 0.2), num_images=12, num_held_out=8)
    section, measured = network_part(
        tiny_run, Settings(), tmp_path, choice=choice, advance=told.append
    )
    assert told == ["sigma 0.2", "sigma 1"]
    figures = [item["figure"] for item in section.items if "figure" in item]
    assert figures == ["network_kernel", "network_regression"]
    for name in figures:
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    with open(tmp_path / "network_kernel.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sigma"]) for row in rows] == [0.2, 1.0]
    for row in rows:
        assert 1 <= float(row["effective rank"]) <= 12
        assert 0 < float(row["share of the first 4"]) <= 1
        assert float(row["explained"]) <= 1
    assert [row["sigma"] for row in measured["rows"]] == [0.2, 1.0]
    again, _ = network_part(
        tiny_run, Settings(), tmp_path, choice=choice, advance=told.append
    )
    assert again.items == section.items


def test_what_has_no_kernel_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        network_part(tmp_path, Settings(), tmp_path)
    assert known_sigmas((5.0, 0.2, 90.0), (0.1, 80.0)) == (0.2, 5.0)
    with pytest.raises(InputError, match="this network knows"):
        known_sigmas((0.01, 90.0), (0.1, 80.0))
    with pytest.raises(InputError, match="num_probes"):
        KernelChoice(num_probes=5)
    known = images(np.random.default_rng(0))
    closed = Model(isotropic_gaussian(jnp.zeros(D), jnp.float32(1)), (D,), None)
    with pytest.raises(InputError, match="no parameters"):
        network_kernel(closed, known, SIGMA, jax.random.key(0), KernelChoice())
