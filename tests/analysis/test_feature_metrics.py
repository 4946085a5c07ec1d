"""Metrics of feature arrays against brute force, closed forms and each other."""

import numpy as np
import pytest

from analysis.metrics import (
    FeatureStatistics,
    accumulate_statistics,
    bootstrap_interval,
    density_coverage,
    feature_statistics,
    frechet_distance,
    frechet_floor,
    frechet_of_features,
    frechet_resamples,
    inception_score,
    interval_around,
    kernel_distance,
    kernel_distance_blocks,
    load_statistics,
    mean_interval,
    merge_statistics,
    precision_recall,
    resample_counts,
    save_statistics,
)
from analysis.metrics.inception_score import inception_score_resamples
from analysis.metrics.kernel import (
    kernel_distance_deviations,
    kernel_distance_resamples,
)
from configs.errors import InputError

# Left to `make test-all`: members of families that others stand for, and the longest.
SLOW_TESTS = ("test_the_tangent_of_the_frechet_distance_has_its_slope_and_spread",)


def brute_kernel_distance(x, y):
    """The definition, pair by pair."""
    d = x.shape[1]
    k = lambda a, b: (float(a @ b) / d + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    within_x = [k(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
    within_y = [k(y[i], y[j]) for i in range(m) for j in range(m) if i != j]
    across = [k(a, b) for a in x for b in y]
    return np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across)


def distances_of(x, y):
    return np.array([[np.linalg.norm(a - b) for b in y] for a in x])


def radii_of(x, k):
    return np.array(
        [
            np.sort([np.linalg.norm(a - b) for j, b in enumerate(x) if j != i])[k - 1]
            for i, a in enumerate(x)
        ]
    )


def sets_of(seed, n=40, m=30, d=5, shift=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + shift, 1.3 * rng.normal(size=(m, d))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_distance_equals_brute_force(dtype):
    x, y = (a.astype(dtype) for a in sets_of(0))
    expected = brute_kernel_distance(x.astype(np.float64), y.astype(np.float64))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_above_a_block_is_the_mean_over_blocks_drawn_from_the_seed():
    x, y = sets_of(1, n=60, m=25)
    options = {"block_size": 30, "num_blocks": 400}
    blocks = kernel_distance_blocks(x, y, **options)
    assert blocks.shape == (400,)
    assert kernel_distance(x, y, **options) == blocks.mean()
    whole = brute_kernel_distance(x, y)
    assert blocks.mean() == pytest.approx(whole, abs=4 * blocks.std() / 20)
    again = kernel_distance_blocks(x, y, seed=1, **options)
    assert not np.array_equal(again, blocks)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    values = []
    for seed in range(200):
        x, y = np.random.default_rng(seed).normal(size=(2, 20, 3))
        values.append(kernel_distance(x, y))
    error = np.std(values) / np.sqrt(200)
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0


def test_resampled_kernel_distance_leaves_pairs_of_one_member_out():
    x, y = sets_of(2, n=12, m=9)
    counts = resample_counts(12, num_resamples=4), resample_counts(9, num_resamples=4)
    found = kernel_distance_resamples(x, y, *counts)
    k = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    for value, i, j in zip(found, *counts, strict=True):
        a, b = (np.repeat(np.arange(len(c)), c) for c in (i, j))
        expected = k(x[a], x[a])[a[:, None] != a].mean()
        expected += k(y[b], y[b])[b[:, None] != b].mean() - 2 * k(x[a], y[b]).mean()
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shift", "most"), [(0.2, 1.3), (0.0, 1.7)])
def test_resamples_of_large_sets_vary_as_other_sets_do(shift, most):
    """Not as the blocks, which are drawn from one set and vary far less."""
    values, deviations, blocks = [], [], []
    for seed in range(40):
        x, y = np.random.default_rng(seed).normal(size=(2, 300, 6))
        x += shift
        found = kernel_distance_blocks(x, y, block_size=100, num_blocks=70)
        values.append(found.mean())
        blocks.append(found.std() / np.sqrt(len(found)))
        counts = [resample_counts(300, num_resamples=60, seed=s) for s in (1, 2)]
        by_resamples = kernel_distance_deviations(x, y, *counts, block_size=100)
        deviations.append(by_resamples.std())
        assert abs(by_resamples.mean()) < by_resamples.std()
    assert 0.75 < np.mean(deviations) / np.std(values) < most
    assert np.mean(blocks) < np.std(values) / 2


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_brute_force(k):
    for seed in range(5):
        x, y = sets_of(seed, shift=1.0)
        distance = distances_of(x, y)
        found = precision_recall(x, y, k=k)
        assert found.precision == np.mean((distance <= radii_of(y, k)).any(axis=1))
        inside = distance <= radii_of(x, k)[:, None]
        assert found.recall == np.mean(inside.any(axis=0))
        assert 0 < found.precision < 1


@pytest.mark.parametrize("k", [2, 5])
def test_density_and_coverage_equal_brute_force(k):
    for seed in range(5):
        x, y = sets_of(seed, shift=1.0)
        inside = distances_of(x, y) < radii_of(y, k)
        found = density_coverage(x, y, k=k)
        assert found.density == pytest.approx(inside.sum() / (k * len(x)), rel=1e-12)
        assert found.coverage == np.mean(inside.any(axis=0))


def test_metrics_in_blocks_equal_those_in_one_piece(monkeypatch):
    x, y = sets_of(6, n=50, m=45)
    whole = precision_recall(x, y), density_coverage(x, y)
    monkeypatch.setattr("analysis.metrics.manifold._ROWS", 7)
    monkeypatch.setattr("analysis.metrics.manifold._PAIRS_AT_ONCE", 3)
    assert (precision_recall(x, y), density_coverage(x, y)) == whole


def test_a_set_has_all_four_shares_one_against_itself_far_from_the_origin():
    x = np.random.default_rng(7).normal(size=(60, 8)).astype(np.float32) + 1000
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x) == pytest.approx((1, 1), abs=1e-12)


def test_a_ball_holds_its_rim_for_precision_and_not_for_density():
    data = np.arange(6.0)[:, None]  # nearest neighbours at 1, second ones at 1 or 2
    samples = np.array([[-1.0], [-1.5], [6.0]])
    assert precision_recall(samples, data, k=1).precision == pytest.approx(2 / 3)
    assert density_coverage(samples, data, k=1) == (0, 0)


def test_collapse_costs_recall_and_coverage_noise_costs_precision_and_density():
    rng = np.random.default_rng(8)
    data = rng.normal(size=(300, 2))
    collapsed = 0.1 * rng.normal(size=(300, 2))
    noisy = 6 * rng.normal(size=(300, 2))
    assert precision_recall(collapsed, data).precision > 0.98
    assert precision_recall(collapsed, data).recall < 0.1
    assert precision_recall(noisy, data).precision < 0.4
    assert density_coverage(collapsed, data).coverage < 0.2
    assert density_coverage(noisy, data).density < 0.3


def test_an_outlier_fools_precision_but_not_coverage():
    rng = np.random.default_rng(9)
    data = np.concatenate([rng.normal(size=(100, 2)), [[50.0, 0.0]]])
    samples = np.array([25.0, 0.0]) + rng.normal(size=(100, 2))
    assert precision_recall(samples, data).precision == 1
    assert density_coverage(samples, data).coverage < 0.02


def test_inception_score_is_one_for_equal_and_the_classes_for_certain_predictions():
    assert inception_score(np.zeros((20, 5))).mean == pytest.approx(1)
    certain = 1e3 * np.tile(np.eye(5), (8, 1))
    assert inception_score(certain, num_splits=2) == pytest.approx((5, 0))
    rng = np.random.default_rng(10)
    logits = rng.normal(size=(30, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for part in (p[:15], p[15:]):
        q = part.mean(axis=0)
        scores.append(np.exp(np.mean([np.sum(a * np.log(a / q)) for a in part])))
    found = inception_score(logits, num_splits=2)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)
    once = inception_score_resamples(logits, np.ones((1, 30), int))
    assert once == pytest.approx(inception_score(logits, num_splits=1).mean, rel=1e-12)
    with pytest.raises(InputError, match="at least one for each of 10 splits"):
        inception_score(logits[:9])


def test_streamed_and_merged_statistics_equal_one_pass():
    rng = np.random.default_rng(11)
    features = (100 + rng.normal(size=(500, 6))).astype(np.float32)
    whole = feature_statistics(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(whole.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(exact.T), rtol=1e-12)
    parts = [feature_statistics(p) for p in np.split(features, [7, 300])]
    merged = merge_statistics(merge_statistics(parts[0], parts[1]), parts[2])
    streamed = accumulate_statistics(np.split(features, [3, 4, 480]))
    for other in (merged, streamed):
        assert other.count == 500
        np.testing.assert_allclose(other.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(other.covariance, whole.covariance, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(10, 15), (10, 60), (60, 10), (50, 60)])
def test_small_sets_have_the_distance_of_their_covariances(n, m):
    x, y = sets_of(12, n=n, m=m, d=20)
    found = frechet_of_features(x, y)
    moments = [v for s in (x, y) for v in (s.mean(axis=0), np.cov(s.T))]
    assert found == pytest.approx(frechet_distance(*moments), rel=1e-10)
    assert frechet_of_features(x, feature_statistics(y)) == pytest.approx(
        found, rel=1e-10
    )


@pytest.mark.parametrize("n", [10, 200])
def test_a_set_is_at_frechet_distance_zero_from_itself(n):
    x = np.random.default_rng(13).normal(size=(n, 30)).astype(np.float32)
    assert frechet_of_features(x, x) < 1e-6
    assert frechet_of_features(x, feature_statistics(x)) < 1e-6


def test_statistics_survive_a_file_and_edms_have_no_count(tmp_path):
    statistics = feature_statistics(np.random.default_rng(14).normal(size=(9, 3)))
    save_statistics(tmp_path / "ours.npz", statistics, data_digest="a")
    stored = load_statistics(tmp_path / "ours.npz")
    assert (stored.data_digest, stored.weights_digest) == ("a", "")
    for found, expected in zip(stored.statistics, statistics, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.savez(tmp_path / "edm.npz", mu=statistics.mean, sigma=statistics.covariance)
    assert load_statistics(tmp_path / "edm.npz").statistics.count is None


@pytest.mark.parametrize("n", [30, 400])
def test_resampled_frechet_distances_are_those_of_the_repeated_features(n):
    x, y = sets_of(15, n=n, m=500, d=40)
    counts = resample_counts(n, num_resamples=3)
    found = frechet_resamples(x, y, counts, method="exact")
    expected = [frechet_of_features(np.repeat(x, row, axis=0), y) for row in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(400, 8), (100, 120)])
def test_the_tangent_of_the_frechet_distance_has_its_slope_and_spread(n, d):
    x, y = sets_of(16, n=n, m=1000, d=d)
    reference = feature_statistics(y)
    counts = resample_counts(n, num_resamples=300)
    tangent = frechet_resamples(x, reference, counts, method="tangent")
    exact = frechet_resamples(x, reference, counts, method="exact")
    if n > d:
        assert np.corrcoef(tangent, exact)[0, 1] > 0.98
        assert np.std(tangent) == pytest.approx(np.std(exact), rel=0.1)
    # The slope, against a difference: weights a little off 1, centred on their sum.
    shift = np.random.default_rng(17).normal(size=n)
    shift -= shift.mean()

    def distance(step):
        weights = 1 + step * shift
        mean = weights @ x / n
        rows = np.sqrt(weights)[:, None] * (x - mean) / np.sqrt(n - 1)
        return frechet_distance(mean, rows.T @ rows, *reference[1:])

    slope = (distance(1e-3) - distance(-1e-3)) / 2e-3
    found = frechet_resamples(x, reference, 1 + shift[None], method="tangent")
    assert found[0] == pytest.approx(slope, rel=1e-3)


def test_resamples_of_fewer_members_than_features_vary_up_to_twice_too_much():
    """Exact distances of resamples, which vary with their rank by chance, by more."""
    rng = np.random.default_rng(19)
    scales = 1 / np.sqrt(np.arange(1, 61))
    reference = feature_statistics(rng.normal(size=(4000, 60)) * scales)
    values, spreads, exact = [], [], []
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=(40, 60)) * scales
        values.append(frechet_of_features(x, reference))
        counts = resample_counts(40, num_resamples=80, seed=seed)
        spreads.append(frechet_resamples(x, reference, counts).std())
        if seed < 8:
            by_each = frechet_resamples(x, reference, counts, method="exact")
            exact.append(by_each.std())
    assert 1 < np.mean(spreads) / np.std(values) < 2
    assert np.mean(exact) > 1.5 * np.mean(spreads)


def test_frechet_distance_of_two_draws_is_within_the_floor_and_a_shift_above():
    rng = np.random.default_rng(18)
    data, others = rng.normal(size=(400, 6)), rng.normal(size=(300, 6))
    pair = resample_counts(400, size=300, seed=1), resample_counts(400, seed=2)
    low, high = np.percentile(frechet_floor(data, *pair), (0.5, 99.5))
    assert low < frechet_of_features(others, data) < high
    assert frechet_of_features(others + 0.3, data) > high


def test_counts_are_those_of_draws_with_replacement():
    counts = resample_counts(50, num_resamples=2000, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.03)
    assert resample_counts(5, num_resamples=2, size=9).sum() == 18


def test_interval_of_a_mean_covers_it_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        values = np.random.default_rng(seed).exponential(size=100)
        low, high, *_ = mean_interval(values, confidence=0.9, seed=seed)
        inside += low <= 1 <= high
    assert 165 <= inside <= 192  # 180 expected, deviation 4; skewness costs a little


def test_interval_of_any_metric_equals_the_cheap_form():
    values = np.random.default_rng(19).normal(size=30)
    cheap = mean_interval(values, num_resamples=50, seed=4)
    dear = bootstrap_interval(
        lambda i: float(values[i].mean()), 30, num_resamples=50, seed=4
    )
    assert dear == pytest.approx(cheap, rel=1e-9)
    # The bias of a resample is taken out: the interval is around the value.
    shifted = interval_around(1.0, np.array([5.0, 6.0, 7.0]), confidence=0.99)
    assert shifted.low < 1 < shifted.high


def test_bad_features_get_one_line(tmp_path):
    x = np.random.default_rng(20).normal(size=(10, 3))
    broken = x.copy()
    broken[4, 1] = np.nan
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez(tmp_path / "c.npz", mu=np.zeros(2), sigma=np.eye(2) * np.nan)
    (tmp_path / "d.npz").write_text("no")
    for call, words in (
        (lambda: kernel_distance(broken, x), "1 of 10 samples hold a number that"),
        (lambda: kernel_distance(x, x[:1]), "reference: 1 were given; this metric"),
        (lambda: kernel_distance(x, x[:, :2]), "with one d"),
        (lambda: kernel_distance(x, x, block_size=1), "block_size is 1"),
        (lambda: precision_recall(x[:3], x), "samples: 3 were given; .* at least 4"),
        (lambda: precision_recall(x, x, k=0), "k is 0"),
        (lambda: density_coverage(x, broken), "1 of 10 reference hold"),
        (lambda: frechet_of_features(x[:1], x), "needs at least 2"),
        (lambda: frechet_of_features(x, feature_statistics(x[:, :2])), "one network"),
        (lambda: load_statistics(tmp_path / "none.npz"), "there is no file"),
        (lambda: load_statistics(tmp_path / "a.npz"), "has no array 'sigma' but mu"),
        (lambda: load_statistics(tmp_path / "b.npz"), r"must be \(d,\) and \(d, d\)"),
        (lambda: load_statistics(tmp_path / "c.npz"), "not finite"),
        (lambda: load_statistics(tmp_path / "d.npz"), "cannot be read as an npz"),
        (
            lambda: merge_statistics(
                FeatureStatistics(None, np.zeros(1), np.eye(1)),
                FeatureStatistics(2, np.zeros(1), np.eye(1)),
            ),
            "without a count",
        ),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
