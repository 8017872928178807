"""Every score against cases worked out by hand, and what no score may see."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import metrics
from experiments.theory import supports

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def independent(N, d, seed=0):
    """N samples of d exactly uncorrelated columns."""
    Q, _ = np.linalg.qr(np.c_[np.ones(N), np.random.default_rng(seed).standard_normal((N, d))])
    return Q[:, 1:] * np.sqrt(N)


def test_permuted_and_scaled_factors_are_perfect():
    z = independent(100, 5)
    z_hat = z[:, [3, 0, 4, 1, 2]] * [1, -2, 30, 0.1, -5] + 7
    assert metrics.mcc(z, z_hat) == pytest.approx(1) and metrics.r_score(z, z_hat) == pytest.approx(
        1
    )
    assert metrics.dci(z, z_hat) == (pytest.approx(1), pytest.approx(1))


def test_matching_is_optimal_and_not_greedy():
    # greedy takes 0.9 + 0.1, the best is 0.8 + 0.85
    C = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert C[metrics.match(C)].mean() == pytest.approx((0.8 + 0.85) / 2)


def test_mcc_of_a_rotation_by_45_degrees():
    z = independent(50, 2)
    z_hat = z @ np.array([[1, -1], [1, 1]])
    assert metrics.mcc(z, z_hat) == pytest.approx(np.sqrt(0.5)) and metrics.r_score(
        z, z_hat
    ) == pytest.approx(1)
    assert metrics.dci(z, z_hat) == (
        pytest.approx(0, abs=1e-9),
        pytest.approx(0, abs=1e-9),
    )  # uniform coefficients


def test_constant_and_missing_features_score_nothing():
    z = independent(60, 3)
    assert metrics.mcc(z, np.c_[z[:, :2], np.ones(60)]) == pytest.approx(2 / 3)
    assert metrics.mcc(z, z[:, :2]) == pytest.approx(2 / 3)
    assert metrics.mcc(z, np.ones((60, 3))) == 0 and metrics.r_score(z, np.ones((60, 3))) == 0
    d, c = metrics.dci(z, np.c_[z[:, :2], np.ones(60)])
    assert (d, c) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )  # a zero column of B, and a zero row


def test_r_is_the_coefficient_of_multiple_correlation():
    z = independent(80, 2)
    noise = independent(80, 3, seed=1)[:, 2:]
    noise -= z @ (z.T @ noise) / 80  # uncorrelated with both factors
    noise /= noise.std()
    z_hat = np.c_[z[:, :1], z[:, 1:] + noise]
    assert metrics.r_score(z, z_hat) == pytest.approx((1 + np.sqrt(0.5)) / 2)


def test_dci_by_hand():
    # factor 0 is feature 0; factor 1 needs features 1 and 2 alike
    a = independent(90, 3)
    z = np.c_[a[:, 0], a[:, 1] + a[:, 2]]
    d, c = metrics.dci(z, a)
    assert d == pytest.approx(1)  # each feature serves one factor
    assert c == pytest.approx(
        (1 + 1 - np.log(2) / np.log(3)) / 2
    )  # z1 is spread over two of three features
    d, c = metrics.dci(a, z)  # two features, three factors
    assert d == pytest.approx((1 + 1 - np.log(2) / np.log(3)) / 2) and c == pytest.approx(1)


def test_concentration_has_its_ends_and_no_weights():
    assert metrics.concentration(np.eye(4)) == 1 and metrics.concentration(
        np.ones((3, 5))
    ) == pytest.approx(0)
    assert metrics.concentration(np.zeros((3, 5))) == 0
    B = np.array([[1.0, 0.0], [3.0, 3.0]])  # rows count alike, whatever their sizes
    assert metrics.concentration(B) == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(1e-6, 1e6))
def test_scores_do_not_see_order_sign_or_scale(seed, d, scale):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((50, d))
    z_hat = z @ rng.standard_normal((d, d)) + 0.3 * rng.standard_normal((50, d))
    other = z_hat[:, rng.permutation(d)] * rng.choice([-1, 1], d) * scale + rng.standard_normal(d)
    for name, value in metrics.scores(z, z_hat).items():
        assert metrics.scores(z, other)[name] == pytest.approx(value, abs=1e-6)
        assert -1e-9 <= value <= 1 + 1e-9
    assert metrics.mcc(z, z_hat) <= metrics.r_score(z, z_hat) + 1e-9


def test_huge_and_tiny_features():
    z = independent(40, 3)
    assert metrics.mcc(z, z * [1e200, 1e-200, 1]) == pytest.approx(1)


def test_random_mixing_scores_what_the_chance_line_says():
    rng = np.random.default_rng(0)
    z = independent(2000, 6)
    chance = [metrics.mcc(z, z @ rng.standard_normal((6, 6))) for _ in range(200)]
    assert abs(np.mean(chance) - 0.63) < 0.01


def test_ica_undoes_a_linear_mixing_of_independent_factors():
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (5000, 4))
    z_hat = z @ rng.standard_normal((4, 4))
    assert metrics.mcc(z, z_hat) < 0.9 and metrics.mcc(z, metrics.ica(z_hat)) > 0.99
    assert metrics.mcc(z[:50], metrics.ica(z_hat[:50], fit_on=z_hat)) > 0.97


def test_ica_of_dependent_or_constant_features_is_finite():
    z = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    for z_hat in (np.ones((500, 3)), z[:, [0, 0, 1]], np.c_[z[:, :2], np.ones(500)]):
        assert np.isfinite(metrics.ica(z_hat)).all()


@quick
@given(seeds, st.integers(2, 6), st.integers(-9, 9))
def test_scores_do_not_see_permutations_scales_and_shifts(seed, d, exponent):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((60, d))
    z_hat = z @ rng.standard_normal((d, d)) + 0.3 * rng.standard_normal((60, d))
    changed = (
        z_hat[:, rng.permutation(d)] * (10.0**exponent * rng.choice([-1, 1], d))
        + 5 * 10.0**exponent
    )
    mine, theirs = metrics.scores(z, z_hat), metrics.scores(z, changed)
    for name in mine:
        assert -1e-9 <= mine[name] <= 1 + 1e-9
        np.testing.assert_allclose(mine[name], theirs[name], atol=1e-5)
    assert mine["r"] >= mine["mcc"] - 1e-9


@quick
@given(seeds, st.integers(2, 5))
def test_r_does_not_see_linear_maps(seed, d):
    rng = np.random.default_rng(seed)
    z, z_hat = rng.standard_normal((80, d)), rng.standard_normal((80, d))
    A = np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.5, 2, d)
    np.testing.assert_allclose(metrics.r_score(z, z_hat @ A), metrics.r_score(z, z_hat), atol=1e-8)


def test_the_assumptions_are_told_apart():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((100, 6))
    S = supports(rng, 3000, 6)
    W = rng.standard_normal((3000, 6)) * S
    held = lambda W, F=F: {name for name, (holds, _) in metrics.assumptions(F, W).items() if holds}
    assert held(W) == {"3.2", "3.3", "3.4", "3.5", "3.6"}
    assert held(np.repeat(W[:, :3], 2, axis=1) * rng.standard_normal(W.shape)) == {
        "3.2",
        "3.3",
        "3.4",
        "3.5",
    }  # blocks of 2
    assert "3.5" not in held(W[rng.integers(8, size=3000)])  # finitely many vectors
    few = np.vstack([np.ones((2, 6)), np.eye(6), 2 * np.eye(6)])  # fewer than 6 of one support
    assert "3.5" not in held(few)
    some, two = W.copy(), np.flatnonzero((S == [1, 1, 0, 1, 0, 0]).all(axis=1))[:2]
    some[two] = [1, 2, 0, 3, 0, 0]  # one vector twice, of some fifty on one support
    assert "3.5" not in held(some)
    assert held(W * [1, 1, 1, 1, 1, 0]).isdisjoint({"3.4", "3.6"})
    assert "3.3" not in held(W, F[:, [0, 1, 2, 3, 4, 4]])


def test_the_assumptions_of_several_outputs():
    """Matrices W (T, k, m): 3.5 asks that no vector is met by W_S with positive probability."""
    rng = np.random.default_rng(0)
    S = supports(rng, 3000, 4)[:, None, :]
    held = lambda W: {n for n, (holds, _) in metrics.assumptions(np.eye(4), W).items() if holds}
    dense = rng.standard_normal((3000, 2, 4)) * S
    assert held(dense) == {"3.2", "3.3", "3.4", "3.5", "3.6"}
    assert held(dense[:, :1]) == held(dense[:, 0]) == held(dense)
    direction = rng.standard_normal(4)
    assert "3.5" not in held(rng.standard_normal((3000, 2, 1)) * direction * S)  # rank one
    pairs = rng.standard_normal((3, 2, 4)) * [1, 1, 0, 0]
    assert metrics.support_of_low_rank(pairs[rng.integers(3, size=60)]) is None
    again = np.repeat([[[1.0, 2, 3, 0], [3, 1, 2, 0]]], 60, axis=0)
    assert metrics.support_of_low_rank(again) == [0, 1, 2]  # two rows miss a vector of R^3


def test_support_variability_by_hand():
    assert metrics.supports_are_sufficient(np.eye(3))
    assert not metrics.supports_are_sufficient(
        np.array([[1, 1, 0], [0, 0, 1]])
    )  # 0 and 1 always together
    assert metrics.supports_are_sufficient(np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]))
    assert not metrics.supports_are_sufficient(np.ones((4, 2)))


def test_block_share_by_hand():
    z = (
        np.linalg.qr(np.c_[np.ones(60), np.random.default_rng(0).standard_normal((60, 6))])[0][
            :, 1:
        ]
        * 60**0.5
    )
    mix = np.kron(np.eye(3), [[1, 0.5], [-0.5, 1]])  # inside blocks of 2
    assert metrics.block_share(z, z @ mix, 2) == pytest.approx(1) and metrics.block_share(
        z, z @ mix, 1
    ) == pytest.approx(2 / 3)
    assert metrics.block_share(z, z[:, ::-1] @ mix, 2) == pytest.approx(1)  # in any order
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    assert metrics.block_share(z, z @ rotation, 2) < 0.7


def test_udr_prefers_models_that_agree():
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (800, 5))
    same = [z[:, rng.permutation(5)] * rng.choice([-1, 1], 5) for _ in range(3)]
    mixed = [z @ np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(3)]
    for by in ("correlation", "regression"):
        assert metrics.udr(same, by).min() > 0.85 > 0.6 > metrics.udr(mixed, by).max()
        assert np.isfinite(metrics.udr([np.ones((800, 5)), z], by)).all()
    with pytest.raises(ValueError, match="^by: found ranks"):
        metrics.udr(same, "ranks")


def test_udr_by_regression_prefers_correlated_factors_to_their_mixtures():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2000, 5)) @ np.linalg.cholesky(0.2 * np.eye(5) + 0.8).T
    white = (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T)).T)
    same = [z[:, rng.permutation(5)] for _ in range(3)]
    mixed = [white @ np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(3)]
    right, wrong = (metrics.udr(models, "regression") for models in (same, mixed))
    assert right.min() > 0.99 > 0.6 > wrong.max()
    assert metrics.udr(same).max() < metrics.udr(mixed).min()  # by correlation it is the other way


def test_what_cannot_be_scored_is_refused():
    z = np.random.default_rng(0).standard_normal((30, 3))
    for score in (metrics.mcc, metrics.r_score, metrics.dci, lambda a, b: metrics.ica(b)):
        for empty in (z[:0], z[:, :0]):
            with pytest.raises(ValueError, match="expected samples and columns"):
                score(empty, empty)
    with pytest.raises(ValueError, match="as many columns"):
        metrics.assumptions(z, np.ones((5, 4)))
    with pytest.raises(ValueError, match="likelihood: found poisson"):
        metrics.assumptions(z, np.ones((5, 3)), "poisson")
    with pytest.raises(ValueError, match="size: found 0"):
        metrics.block_share(z, z, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.udr([z])).all()
    assert set(metrics.WHY_3_2) == set(data.LIKELIHOODS)


def test_udr_by_regression_is_at_most_1_and_not_raised_by_features_that_nearly_repeat():
    rng = np.random.default_rng(0)
    a, b, noise = rng.standard_normal((3, 2000, 1))
    repeated, other = np.hstack([a, a + 1e-3 * noise]), np.hstack([a - b, a + b])
    assert metrics.udr([repeated, other, b * [1, 2] + a], "regression").max() < 0.9
    z = rng.standard_normal((2000, 5)) @ np.linalg.cholesky(0.05 * np.eye(5) + 0.95).T
    near = [z @ (np.eye(5) + 0.1 * rng.standard_normal((5, 5))) for _ in range(4)]
    mixed = [z @ rng.standard_normal((5, 5)) for _ in range(4)]
    right, wrong = (metrics.udr(models, "regression") for models in (near, mixed))
    assert 1 >= right.min() > 0.7 > wrong.max()


def test_accuracy_interval_by_hand():
    mean, interval = metrics.mean_ci(np.array([0.8, 1.0, 0.6, 0.8]))
    assert (
        abs(mean - 0.8) < 1e-12
        and abs(interval - 1.96 * np.std([0.8, 1.0, 0.6, 0.8], ddof=1) / 2) < 1e-12
    )


def test_chance_is_that_of_random_mixings_at_every_shape():
    rng = np.random.default_rng(0)
    for d, m in ((6, 6), (6, 10), (4, 4), (5, 3)):
        z = independent(2000, d)
        drawn = [metrics.mcc(z, z @ rng.standard_normal((d, m))) for _ in range(200)]
        assert abs(np.mean(drawn) - metrics.chance(d, m)) < 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_constant_column(bad):
    z = np.random.default_rng(0).standard_normal((50, 4))
    z_hat = z.copy()
    z_hat[7, 2] = bad
    for score in (
        metrics.mcc,
        metrics.r_score,
        metrics.dci,
        metrics.correlation,
        metrics.scores,
        lambda z, z_hat: metrics.block_share(z, z_hat, 2),
        lambda z, z_hat: metrics.udr([z, z_hat]),
        lambda z, z_hat: metrics.ica(z_hat),
        lambda z, z_hat: metrics.assumptions(z_hat, z),
    ):
        with pytest.raises(ValueError, match="finite"):
            score(z, z_hat)
    for score in (metrics.mcc, metrics.r_score, metrics.dci, metrics.correlation):
        with pytest.raises(ValueError, match="of one N"):
            score(z, z_hat[:40])


def test_tensors_are_detached_and_bfloat16_is_read():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    z = torch.randn(60, 3)
    assert metrics.mcc(z, (2 * z).requires_grad_()) == pytest.approx(1)
    assert metrics.mcc(z, z.to(torch.bfloat16)) > 0.99


def test_a_softmax_of_k_logits_is_not_minimal():
    told = metrics.assumptions(np.eye(3), np.eye(3), "categorical")
    assert not told["3.2"][0] and metrics.assumptions(np.eye(3), np.eye(3))["3.2"][0]


def test_block_share_regresses_features_on_factors_and_not_the_other_way():
    z = independent(60, 3)
    shared = np.c_[z[:, 0], z[:, 0] + z[:, 1], z[:, 0] + z[:, 2]]  # shares 1, 1/2 and 1/2
    assert metrics.block_share(z, shared, 1) == pytest.approx((1 + 2**0.5) / (1 + 2 * 2**0.5))


def test_udr_by_correlation_sees_ranks_alone():
    rng = np.random.default_rng(0)
    models = [rng.standard_normal((300, 4)) for _ in range(3)]
    bent = [np.exp(4 * F) for F in models]
    np.testing.assert_allclose(metrics.udr(bent), metrics.udr(models))


def test_the_support_of_several_outputs_is_that_of_any():
    W = np.array([[[1.0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0]]])
    assert metrics.assumptions(np.eye(3), W)["3.6"][0]  # {0, 1}, {1, 2}, {2, 0}
    again = np.repeat([[[1.0, 2], [0, 0]]], 8, axis=0)  # one direction of the plane
    assert metrics.support_of_low_rank(again) == [0, 1]
