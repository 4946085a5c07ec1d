"""Candidates for a comparison: which there are, and that fits are kept."""

import dataclasses

import numpy as np
import pytest

from analysis.comparison import candidates
from analysis.comparison.settings import ComparisonSettings
from configs import InputError
from diffusion.closed_form import fit_gaussian
from diffusion.data import Dataset, Split

SETTINGS = ComparisonSettings(mixtures=(2,), mixture_rank=4)


def random_split(rng, labels=None):
    images = rng.normal(size=(60, 2, 3, 1)).astype(np.float32)
    labels = np.arange(60) % 3 if labels is None else labels
    return Split(Dataset(images, labels), Dataset(images[:0], labels[:0]), "made", 1.0)


def test_fits_are_kept_until_images_or_settings_change(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    split = random_split(rng)
    gaussian = fit_gaussian(split.training.images)
    fitted = []

    def counted(*arguments, **settings):
        fitted.append(settings["rank"])
        return fit(*arguments, **settings)

    fit = candidates.fit_mixture
    monkeypatch.setattr(candidates, "fit_mixture", counted)

    def names(split, **changes):
        settings = dataclasses.replace(SETTINGS, models=("mixtures",), **changes)
        return list(candidates.fit_candidates(split, gaussian, settings, tmp_path))

    assert names(split) == names(split) == ["mixture 2"]
    assert fitted == [4]
    names(split, mixture_rank=2)
    names(split._replace(digest="other"), mixture_rank=2)
    assert fitted == [4, 2, 2]
    (tmp_path / "mixture_2.npz").write_bytes(b"damaged")
    assert names(split, mixture_rank=2) == ["mixture 2"]
    assert fitted == [4, 2, 2, 2]


def test_all_candidates_that_apply_are_fitted_and_named_in_order(tmp_path):
    split = random_split(np.random.default_rng(1))
    gaussian = fit_gaussian(split.training.images)
    found = candidates.fit_candidates(split, gaussian, ComparisonSettings(), tmp_path)
    assert list(found) == [
        "mean-isotropic",
        "isotropic",
        "Gaussian",
        "mixture 2",
        "class mixture",
        "Edgeworth",
        "empirical",
    ]
    unlabelled = random_split(np.random.default_rng(1), np.full(60, -1))
    found = candidates.fit_candidates(
        unlabelled, gaussian, ComparisonSettings(mixtures=(3,)), tmp_path
    )
    assert "class mixture" not in found
    assert "mixture 3" in found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": ("ranks",), "ranks": (7,)}, "has 6 directions; give ranks in"),
        ({"models": ("mixtures",), "mixtures": (61,)}, "there are 60 training images"),
        ({"models": ("mixtures",), "mixture_rank": 7}, "a sample has 6 values"),
        ({"models": ("classes",)}, "have no labels"),
        ({"models": ("ranks",), "ranks": ()}, "no candidate is left"),
    ],
)
def test_candidates_that_do_not_exist_are_refused(tmp_path, changes, says):
    split = random_split(np.random.default_rng(5), np.full(60, -1))
    gaussian = fit_gaussian(split.training.images)
    settings = dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(InputError, match=says):
        candidates.fit_candidates(split, gaussian, settings, tmp_path)


@pytest.mark.parametrize("kind", ["empirical", "mixtures", "classes"])
def test_images_that_do_not_fit_into_memory_are_not_held(tmp_path, monkeypatch, kind):
    split = random_split(np.random.default_rng(6))
    gaussian = fit_gaussian(split.training.images)
    monkeypatch.setattr(candidates, "_IN_MEMORY", split.training.images.nbytes - 1)
    settings = dataclasses.replace(SETTINGS, models=("gaussian", kind))
    with pytest.raises(InputError, match=f"--models {kind} holds all .* GiB") as error:
        candidates.fit_candidates(split, gaussian, settings, tmp_path)
    assert "\n" not in str(error.value)
    # What nobody named is left out.
    settings = dataclasses.replace(SETTINGS, models=None)
    found = candidates.fit_candidates(split, gaussian, settings, tmp_path)
    assert not {"empirical", "mixture 2", "class mixture"} & {*found}
