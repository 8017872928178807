"""Every score against cases worked out by hand."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics


def independent(N, d, seed=0):
    """N samples of d exactly uncorrelated columns."""
    Q, _ = np.linalg.qr(np.c_[np.ones(N), np.random.default_rng(seed).standard_normal((N, d))])
    return Q[:, 1:] * np.sqrt(N)


def test_permuted_and_scaled_factors_are_perfect():
    z = independent(100, 5)
    z_hat = z[:, [3, 0, 4, 1, 2]] * [1, -2, 30, 0.1, -5] + 7
    assert metrics.mcc(z, z_hat) == pytest.approx(1) and metrics.r_score(z, z_hat) == pytest.approx(1)
    assert metrics.dci(z, z_hat) == (pytest.approx(1), pytest.approx(1))


def test_matching_is_optimal_and_not_greedy():
    # features a, b with |corr| factor 0: (0.9, 0.8), factor 1: (0.85, 0.1): greedy takes 0.9 + 0.1, the best is 0.8 + 0.85
    C = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert C[metrics.match(C)].mean() == pytest.approx((0.8 + 0.85) / 2)


def test_mcc_of_a_rotation_by_45_degrees():
    z = independent(50, 2)
    z_hat = z @ np.array([[1, -1], [1, 1]])
    assert metrics.mcc(z, z_hat) == pytest.approx(np.sqrt(0.5)) and metrics.r_score(z, z_hat) == pytest.approx(1)
    assert metrics.dci(z, z_hat) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))       # uniform coefficients


def test_constant_and_missing_features_score_nothing():
    z = independent(60, 3)
    assert metrics.mcc(z, np.c_[z[:, :2], np.ones(60)]) == pytest.approx(2 / 3)
    assert metrics.mcc(z, z[:, :2]) == pytest.approx(2 / 3)
    assert metrics.mcc(z, np.ones((60, 3))) == 0 and metrics.r_score(z, np.ones((60, 3))) == 0
    d, c = metrics.dci(z, np.c_[z[:, :2], np.ones(60)])
    assert (d, c) == (pytest.approx(2 / 3), pytest.approx(2 / 3))           # a zero column of B, and a zero row


def test_r_is_the_coefficient_of_multiple_correlation():
    z = independent(80, 2)
    noise = independent(80, 3, seed=1)[:, 2:]
    noise -= z @ (z.T @ noise) / 80                                         # uncorrelated with both factors
    noise /= noise.std()
    z_hat = np.c_[z[:, :1], z[:, 1:] + noise]
    assert metrics.r_score(z, z_hat) == pytest.approx((1 + np.sqrt(0.5)) / 2)


def test_dci_by_hand():
    # feature 0 = z0, feature 1 = z1, factors: z0 needs f0 only, z1 needs f1 and f2 alike (f2 = z1's other half)
    a = independent(90, 3)
    z = np.c_[a[:, 0], a[:, 1] + a[:, 2]]
    d, c = metrics.dci(z, a)
    assert d == pytest.approx(1)                                            # each feature serves one factor
    assert c == pytest.approx((1 + 1 - np.log(2) / np.log(3)) / 2)          # z1 is spread over two of three features
    d, c = metrics.dci(a, z)                                                # two features, three factors
    assert d == pytest.approx((1 + 1 - np.log(2) / np.log(3)) / 2) and c == pytest.approx(1)


def test_concentration_ends_and_weights():
    assert metrics.concentration(np.eye(4)) == 1 and metrics.concentration(np.ones((3, 5))) == pytest.approx(0)
    assert metrics.concentration(np.zeros((3, 5))) == 0
    B = np.array([[1.0, 0.0], [3.0, 3.0]])
    assert metrics.concentration(B) == pytest.approx(0.5) and metrics.concentration(B, weighted=True) == pytest.approx(1 / 7)


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
