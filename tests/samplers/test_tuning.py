"""Tuning on a surrogate: what it predicts is true, and what it leaves can be taken."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import InputError
from configs.sampler_schema import SamplerConfig
from diffusion.closed_form import (
    MixtureDenoiser,
    Provenance,
    fit_gaussian,
    fit_mixture,
    save_closed_form,
)
from diffusion.data import split_of
from samplers import integrate
from samplers.building import build_sampler
from samplers.frame import cast, own_frame
from samplers.gain_estimation import estimate_gains
from samplers.model import Model, load_model
from samplers.schedules import log_linear
from samplers.search import rms_error, solve_exactly
from samplers.surrogate import fit_surrogate, surrogate_of_mixture
from samplers.tuned_files import load_tuned
from samplers.tuning import (
    FORMS,
    SearchSpace,
    Trial,
    describe,
    fine_solution,
    list_candidates,
    plain_samplers,
    predict_errors,
    prepare_search,
    shortlist,
    verify,
)
from samplers.tuning_run import Sizes, tune

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = (
    "test_search_predicts_what_integrate_finds[heun]",
    "test_search_predicts_what_integrate_finds[residual_exponential 3]",
)

RANGE = (0.002, 80.0)
SPACE = SearchSpace(
    forms=("dpm_solver_pp 2 midpoint", "residual_exponential 2"),
    teleports=(20.0,),
    rhos=(7.0,),
    last_sigmas=(0.002, 0.1),
)
SIZES = Sizes(
    dimension=12, num_components=3, rank=2, samples=6, gain_images=16, shortlist=3
)


@pytest.fixture(scope="module")
def digits(tiny_config):
    images = split_of(tiny_config.data).training.images
    return np.asarray(images[::2]), np.asarray(images[1::2])


@pytest.fixture(scope="module")
def surrogate(digits):
    return fit_surrogate(
        digits[0],
        fit_gaussian(digits[0]),
        jax.random.key(0),
        dimension=20,
        num_components=4,
        rank=3,
    )


@pytest.fixture(scope="module")
def search(surrogate):
    return prepare_search(
        surrogate, RANGE, measure_gains=False, num_samples=16, gain_images=16
    )


def in_pixels(surrogate):
    """The mixture over whole images, and x in the frame as images."""
    frame, mixture = surrogate.frame, surrogate.denoiser
    count, rank = mixture.offsets.shape
    basis = frame.basis.astype(np.float64)
    bases = mixture.bases[:-1].reshape(-1, count, rank).transpose(1, 0, 2)
    return MixtureDenoiser(
        jnp.asarray(mixture.log_weights),
        jnp.asarray(frame.mean + mixture.means[:, :-1] @ basis.T),
        jnp.asarray(np.einsum("Dd,kdr->kDr", basis, bases)),
        jnp.asarray(mixture.variances),
        jnp.full(count, mixture.residual_variance),
    )


@pytest.mark.slow
def test_surrogate_in_its_frame_is_the_mixture_over_pixels(surrogate):
    frame = surrogate.frame
    noise = np.random.default_rng(0).normal(size=(3, len(frame.mean)))
    inside = noise @ frame.basis
    few = np.append(inside, np.ones((3, 1)), axis=1)
    with jax.enable_x64(True):
        centre = jnp.asarray(frame.mean)
        whole = in_pixels(surrogate)(centre + 2 * jnp.asarray(noise), 2.0)
        ours = cast(surrogate.denoiser, jnp.float64)(jnp.asarray(2 * few), 2.0)
        ours = np.asarray(ours)
    outside = noise - inside @ frame.basis.T
    rebuilt = frame.mean + ours[:, :-1] @ frame.basis.T + ours[:, -1:] * outside
    np.testing.assert_allclose(whole, rebuilt, atol=1e-5)


def test_a_gaussian_in_its_own_frame_has_the_same_flow(digits):
    gaussian = fit_gaussian(digits[0])
    frame, own = own_frame(gaussian, 20)
    # Cut where the frame ends, the Gaussian is the same in both.
    cut = gaussian.truncated(20)
    noise = np.random.default_rng(0).normal(size=(3, *gaussian.mean.shape))
    flat = noise.reshape(3, -1)
    inside = flat @ frame.basis
    few = np.append(inside, np.ones((3, 1)), axis=1)
    x = jnp.asarray(gaussian.mean + 40 * noise, jnp.float32)
    whole = np.asarray(cut.flow(x, 40.0, 5.0)).reshape(3, -1)
    ours = np.asarray(own.flow(jnp.asarray(40 * few, jnp.float32), 40.0, 5.0))
    outside = flat - inside @ frame.basis.T
    rebuilt = frame.mean + ours[:, :-1] @ frame.basis.T + ours[:, -1:] * outside
    np.testing.assert_allclose(whole, rebuilt, atol=2e-4)


@pytest.mark.slow
def test_gains_in_the_frame_are_those_over_pixels(surrogate, digits):
    gaussian = fit_gaussian(digits[0])
    sigmas = (0.05, 80.0)
    ours = surrogate.measured_gains(sigmas, rank=6, num_images=4000, seed=0)
    levels = np.asarray(ours.sigmas)[:: len(np.asarray(ours.sigmas)) - 1]
    shape = gaussian.mean.shape
    mixture = in_pixels(surrogate)
    images = mixture.sample(jax.random.key(1), 4000).reshape(-1, *shape)

    def over_pixels(x, sigma):
        return mixture(x.reshape(len(x), -1), sigma).reshape(x.shape)

    theirs = estimate_gains(
        over_pixels,
        gaussian,
        images.astype(jnp.float32),
        levels,
        jax.random.key(2),
        rank=6,
        num_images=4000,
        batch_size=1000,
    )
    s2 = levels[:, None] ** 2
    mine = np.exp(np.asarray(ours.log_variances)[[0, -1]])
    measured = np.exp(np.asarray(theirs.statistics.log_variances))
    gains, expected = mine / (mine + s2), measured / (measured + s2)
    # Both are measured, on images of their own.
    tolerance = 5 * theirs.standard_error + 0.03 * expected
    assert (np.abs(gains - expected) < tolerance).all()


def test_gains_of_a_cut_gaussian_keep_the_total_variance(surrogate):
    gains = surrogate.gaussian_gains(6)
    variances = np.exp(np.asarray(gains.log_variances)[0])
    whole = surrogate.gaussian
    total = np.sum(whole.variances) + whole.residual_variance * surrogate.frame.outside
    dimension = len(surrogate.frame.mean)
    ours = variances[:-1].sum() + (dimension - 6) * variances[-1]
    np.testing.assert_allclose(ours, total, rtol=1e-5)


@pytest.mark.parametrize("form", ["heun", "unipc 2 bh2", "residual_exponential 3"])
def test_search_predicts_what_integrate_finds(form, search, surrogate):
    space = SearchSpace((form,), (10.0,), (7.0,), (0.01, 0.1))
    configs = list_candidates(form, 6, space, search.model)
    assert len(configs) == 8 and len({describe(config) for config in configs}) == 8
    predicted = predict_errors(search, configs)
    noise = jnp.asarray(search.noise, jnp.float32)
    for config, error in zip(configs, predicted, strict=True):
        sampler = build_sampler(config, search.model)
        x = sampler.start(noise, sampler.sigmas[0])
        found = integrate(sampler.solver, search.model.denoiser, x, sampler.sigmas)
        assert found.nfe <= 6
        expected = rms_error(np.asarray(found.x), search.exact, surrogate.weights)
        np.testing.assert_allclose(error, expected, rtol=1e-3)


def test_every_form_makes_a_sampler_of_so_many_calls(search):
    for form in FORMS:
        configs = list_candidates(form, 7, SearchSpace(), search.model)
        assert len(configs) == 6 * 6 * 5
        for config in configs[:: len(configs) - 1]:
            sampler = build_sampler(config, search.model)
            assert sampler.solver.nfe(len(sampler.sigmas)) == 7
    assert not list_candidates("heun", 2, SearchSpace(), search.model)
    assert "heun" not in plain_samplers(2, search.model)


def test_candidates_stay_within_the_noise_levels_of_the_network(search):
    model = search.model._replace(sigma_range=(0.03, 15.0))
    configs = list_candidates("unipc 2 bh2", 5, SearchSpace(), model)
    assert {c.teleport for c in configs} == {None, 10.0, 5.0, 2.5}
    assert {c.sigma_min for c in configs} == {0.03, 0.05, 0.1, 0.2}


def test_shortlist_holds_the_best_of_several_solvers():
    errors = {"a": (1.0, 2.0, 3.0, 4.0), "b": (3.5, 9.0), "c": (np.inf,)}
    trials = [
        Trial(form, SamplerConfig(), error)
        for form, some in errors.items()
        for error in some
    ]
    kept = [(t.form, t.predicted) for t in shortlist(trials, count=4, per_form=2)]
    assert kept == [("a", 1.0), ("a", 2.0), ("b", 3.5), ("b", 9.0)]


@pytest.mark.slow
@pytest.mark.parametrize("measured", [False, True])
def test_tuned_choice_beats_every_plain_solver_on_another_mixture(digits, measured):
    surrogate = fit_surrogate(
        digits[0], fit_gaussian(digits[0]), jax.random.key(0), dimension=40, rank=8
    )
    search = prepare_search(
        surrogate, RANGE, measure_gains=measured, num_samples=32, gain_images=256
    )
    space = SearchSpace(
        ("unipc 3 bh2", "residual_exponential 2"), (20.0, 5.0), (7.0,), (0.002, 0.05)
    )
    trials = [
        Trial(form, config, float(error))
        for form in space.forms
        for configs in [list_candidates(form, 6, space, search.model)]
        for config, error in zip(configs, predict_errors(search, configs), strict=True)
    ]
    choice = shortlist(trials, count=1, per_form=1)[0].config
    # The truth: other images, more components, all pixels.
    truth = fit_mixture(digits[1], 8, rank=8, method="kmeans", key=jax.random.key(5))
    gaussian = fit_gaussian(digits[0])
    gains = None
    if measured:
        levels = log_linear(12, *RANGE)
        gains = estimate_gains(
            truth, gaussian, digits[0], levels, jax.random.key(6), num_images=256
        ).statistics
    model = Model(truth, gaussian.mean.shape, gaussian, RANGE, gains=gains)
    noise = np.random.default_rng(7).normal(size=(32, *gaussian.mean.shape))
    exact = solve_exactly(truth, noise, 80.0, 1e-7)

    def error(config):
        sampler = build_sampler(config, model)
        x = sampler.start(jnp.asarray(noise, jnp.float32), sampler.sigmas[0])
        found = integrate(sampler.solver, truth, x, sampler.sigmas).x
        return rms_error(np.asarray(found), exact, np.ones(exact[0].size))

    plain = min(map(error, plain_samplers(6, model).values()))
    assert error(choice) < 0.7 * plain, (describe(choice), error(choice), plain)


@pytest.mark.slow
def test_verified_error_is_the_distance_from_the_exact_solution(digits):
    truth = fit_mixture(digits[1], 2, rank=4, method="kmeans", key=jax.random.key(0))
    gaussian = fit_gaussian(digits[1])
    model = Model(truth, gaussian.mean.shape, gaussian, RANGE)
    reference = fine_solution(model, jax.random.key(3), 4)
    config = plain_samplers(6, model)["dpm_solver_pp 2 midpoint"]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(4))
    streams = jax.vmap(lambda k: jax.random.split(k))(keys)[:, 0]
    noise = jax.vmap(lambda k: jax.random.normal(k, gaussian.mean.shape))(streams)
    exact = solve_exactly(truth, np.asarray(noise, np.float64), 80.0, 1e-7)
    assert np.abs(reference.x - exact).max() < 2e-3
    sampler = build_sampler(config, model)
    x = sampler.start(noise, sampler.sigmas[0])
    found = integrate(sampler.solver, truth, x, sampler.sigmas).x
    expected = rms_error(np.asarray(found), exact, np.ones(exact[0].size))
    assert verify(model, config, reference) == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(tiny_run, path)
    return path


def run(workdir, **changes):
    settings = dict(num_verified=2, seed=1, space=SPACE, sizes=SIZES)
    return tune(workdir, 5, **{**settings, **changes})


@pytest.mark.slow
def test_a_killed_tuning_goes_on_to_the_same_file(workdir, monkeypatch, capsys):
    config = run(workdir)
    out = workdir / "tuned-5.json"
    whole = json.loads(out.read_text())
    assert len(whole["best"]) == 3 and len(whole["plain"]) == 3
    verified = [row["verified"] for row in whole["best"]]
    assert verified == sorted(verified) and whole["verified"] == verified[0]
    assert config == load_tuned(workdir, 5)
    assert build_sampler(config, load_model(workdir)).solver.nfe(5) == 5
    assert "choice" in capsys.readouterr().out
    assert run(workdir) == config
    assert "tuned already" in capsys.readouterr().out
    out.unlink()

    from samplers.tuned_files import PartialTuning

    save, count = PartialTuning.save, [0]

    def dying(self):
        save(self)
        count[0] += 1
        if count[0] in (2, 7):
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialTuning, "save", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(workdir)
        assert not out.exists()
    assert (workdir / ".tuned-5.partial.json").is_file()
    assert run(workdir) == config
    assert count[0] == 5 + 6, "what was finished is not done again"
    assert json.loads(out.read_text()) == whole
    assert not (workdir / ".tuned-5.partial.json").exists()


@pytest.mark.slow
def test_other_settings_begin_anew(workdir, monkeypatch, capsys):
    partial = workdir / ".tuned-5.partial.json"
    partial.write_text(json.dumps({"settings": {}, "predicted": {}, "verified": {}}))
    run(workdir, num_verified=0, seed=3)
    assert "begins anew" in capsys.readouterr().out
    found = json.loads((workdir / "tuned-5.json").read_text())
    assert found["verified"] is None and found["settings"]["seed"] == 3
    predicted = [row["predicted"] for row in found["best"]]
    assert predicted == sorted(predicted)
    partial.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        run(workdir, seed=4)
    partial.unlink()


def test_what_does_not_fit_is_refused_in_one_line(workdir, tmp_path, digits):
    with pytest.raises(InputError, match="every solver takes at least 2"):
        tune(workdir, 1)
    with pytest.raises(InputError, match="none of heun takes 2 calls"):
        tune(workdir, 2, space=SPACE._replace(forms=("heun",)))
    with pytest.raises(InputError, match="is no run"):
        tune(tmp_path, 6)
    with pytest.raises(InputError, match=r"tune the run first: .*--calls 17"):
        load_tuned(workdir, 17)
    other = tmp_path / "other.npz"
    save_closed_form(
        other, fit_mixture(np.zeros((4, 3, 3, 1)), 1, rank=0), Provenance()
    )
    with pytest.raises(InputError, match="is over samples of shape"):
        run(workdir, surrogate=other)
    mixture = fit_mixture(digits[0], 1, rank=0)
    save_closed_form(other, mixture, Provenance(5, "0" * 64))
    with pytest.raises(InputError, match="was fitted to other images"):
        run(workdir, surrogate=other)
    save_closed_form(other, fit_gaussian(digits[0]), Provenance())
    with pytest.raises(InputError, match="a surrogate is a mixture"):
        run(workdir, surrogate=other)
    with pytest.raises(InputError, match="there is no file"):
        run(workdir, surrogate=tmp_path / "none.npz")


@pytest.mark.slow
def test_tuning_of_another_checkpoint_is_refused(workdir):
    run(workdir, num_verified=0)
    out = workdir / "tuned-5.json"
    values = json.loads(out.read_text())
    out.write_text(json.dumps({**values, "model_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"another checkpoint .*tune again"):
        load_tuned(workdir, 5)
    del values["sampler"]
    out.write_text(json.dumps(values))
    with pytest.raises(InputError, match="is damaged"):
        load_tuned(workdir, 5)
    out.unlink()


@pytest.mark.slow
def test_a_mixture_of_a_file_is_searched_in_all_pixels(workdir, tmp_path, digits):
    path = tmp_path / "mixture.npz"
    mixture = fit_mixture(digits[0], 2, rank=2, method="kmeans")
    save_closed_form(path, mixture, Provenance())
    run(workdir, surrogate=path, num_verified=0)
    found = json.loads((workdir / "tuned-5.json").read_text())
    assert found["surrogate"]["kind"] == "mixture of a file"
    gaussian = fit_gaussian(digits[0])
    whole = surrogate_of_mixture(mixture, gaussian, {})
    assert whole.noise(0, 2).shape == (2, *gaussian.mean.shape)
