"""A linear map alone, trained through sparse fits: what it finds, and what it is scored by."""

import itertools
import json
import types

import numpy as np
import pytest

import data
import metrics
import run
from experiments import maps

SHORT = {"threads": 1, "steps": 60}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer images and tasks."""
    monkeypatch.setattr(maps, "MANY", 3000)
    monkeypatch.setattr(maps, "FRESH", 200)
    maps.features_of_images.cache_clear()
    yield
    maps.features_of_images.cache_clear()


@pytest.fixture
def given():
    return maps.features_of_images("factors", 0.9, 0, "unused")


def trained(tmp_path, **settings):
    return maps.maps(maps.Maps(results=str(tmp_path), **SHORT | settings))[0]


def test_the_map_finds_the_factors_and_the_rotation_too(tmp_path):
    found = trained(tmp_path, steps=200)
    assert found["mcc"] > 0.98 > found["mcc_ica"] and found["r"] == pytest.approx(1)
    assert found["mcc_rotated"] > 0.999 and found["identified"] == 6 and found["fails"] == 0
    assert found["steps_to_0.9"] <= 200
    # the relaxation's minimum is not at the factors where these are correlated
    assert found["loss"] < found["loss_at_truth"]


def test_the_number_of_factors_makes_the_truth_a_minimum(tmp_path):
    settings = {"head": "subset-size", "eps": 0.0, "lr": 0.02, "start": "factors"}
    found = trained(tmp_path, **settings)
    assert found["mcc"] > 0.999 and found["loss"] < 1.003 * found["loss_at_truth"]


KINDS = [{"head": "subset", "eps": 0.01}, {"head": "step"}, {"tasks": "pool", "count": 12}]
MORE = [{"head": "relaxed", "eps": 0.1, "start": "lasso"}, {"head": "mcp"},
        {"head": "unfinished", "tolerance": 1e-2}, {"tasks": "example"}]


@pytest.mark.parametrize(
    "settings", [*KINDS, *(pytest.param(own, marks=pytest.mark.slow) for own in MORE)], ids=str)
def test_every_kind_of_run_trains_and_is_kept(settings, tmp_path, capsys):
    found = trained(tmp_path, **settings | {"steps": 20})
    assert 0 < found["mcc"] <= 1 and 0 < found["inside"] <= 1
    if settings.get("head") in ("unfinished", "step"):
        assert 0 < found["gradient_error"] < 10 and 0 <= found["support_error"] < 1
    assert trained(tmp_path, **settings | {"steps": 20}) == found
    assert "already there" in capsys.readouterr().out


def test_an_exact_fit_has_no_error_of_its_gradient(tmp_path):
    found = trained(tmp_path, head="unfinished", tolerance=1e-12, steps=20)
    assert found["gradient_error"] < 1e-6 and found["support_error"] == 0


def test_where_all_weights_are_0_the_gradient_has_no_error(tmp_path):
    found = trained(tmp_path, head="unfinished", eps=1.0, warmup=0.0, steps=20)
    assert found["gradient_error"] == 0


def test_what_may_mix_is_what_always_comes_together():
    blocks = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    assert np.array_equal(maps.may_mix(blocks), np.kron(np.eye(2), np.ones((2, 2))) > 0)
    nested = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)  # 0 never without 1
    assert maps.may_mix(nested).tolist() == [[True, True, False], [False, True, False],
                                             [False, False, True]]
    apart = np.array(list(itertools.product([0, 1], repeat=3)), bool)
    assert np.array_equal(maps.may_mix(apart), np.eye(3) > 0)
    for world in range(20):
        S = maps.violating_supports(world, 6)
        assert not metrics.supports_are_sufficient(S) and S.any(axis=0).all()
        assert maps.may_mix(S).sum() > 6


def test_mixtures_inside_the_pattern_count_fully(given):
    S = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0]], bool)
    z = given.z_uniform
    B = np.where(maps.may_mix(S), np.random.default_rng(0).uniform(0.2, 1, (6, 6)), 0)
    F = z @ np.linalg.inv(B + 2 * np.eye(6)).T  # z = F (B + 2 I)'
    order = [3, 0, 5, 1, 4, 2]
    assert maps.share_inside(z, -3 * F[:, order], maps.may_mix(S)) == pytest.approx(1, abs=1e-6)
    dense = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    assert maps.share_inside(z, z @ dense, maps.may_mix(S)) < 0.7


def test_pools_and_their_verdicts():
    def verdict(**settings):
        return maps.failing_assumption(maps.Maps(**settings), 6)

    assert verdict() == 0 and verdict(tasks="sets") == 3.6
    assert verdict(tasks="pool", count=3) == 3.4
    assert verdict(tasks="pool", count=200) == 3.5  # finitely many coefficients on a support
    assert maps.failing_assumption(maps.Maps(tasks="example"), 3) == 3.5
    P = maps.pool_of(1, 8, 6)
    draw = maps.draw_of(maps.Maps(tasks="pool", count=8, world=1), 6)
    some = draw(np.random.default_rng(0), 50)
    assert all((row == P).all(axis=1).any() for row in some)
    assert not np.array_equal(P, maps.pool_of(2, 8, 6))


def test_features_of_an_encoder_are_given(tmp_path, monkeypatch):
    from experiments import disentangle

    few = {"steps": 2, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
    real = disentangle.Disentangle
    monkeypatch.setattr(maps.disentangle, "Disentangle", lambda **own: real(**own | few))
    monkeypatch.setattr(maps, "MANY", 300)
    found = trained(tmp_path, on="encoder", steps=20)
    assert found["r"] < 0.999 and found["loss_at_truth"] > 0
    own = maps.features_of_images("encoder", 0.9, 0, str(tmp_path))
    assert own.X.shape == own.X_uniform.shape == own.z.shape == (300, 6)
    np.testing.assert_allclose(own.X.T @ own.X / 300, np.eye(6), atol=1e-9)
    (folder,) = tmp_path.glob("disentangle/*")
    assert found["encoder"] == own.encoder and own.encoder.startswith(f"{folder.name}-")
    params = {"b": np.zeros(2), "a": np.ones(3)}
    same, other = dict(reversed(params.items())), params | {"b": np.array([0, 1e-9])}
    assert maps.digest_of(params) == maps.digest_of(same) != maps.digest_of(other)


def test_the_command_tells_scores_and_refuses_wrong_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["maps", "--steps", "20", "--threads", "1"]) == 0
    assert "rotated" in capsys.readouterr().out
    (path,) = tmp_path.glob("results/maps/*/result.json")
    assert json.loads(path.read_text())["head"] == "inner-lasso"
    with pytest.raises(SystemExit, match="2"):
        run.main(["maps", "--head", "outer-lasso"])
    assert run.main(["maps", "--on", "encoder", "--tasks", "example"]) == 2
    assert "of factors" in capsys.readouterr().err


def test_given_features_are_white_in_training_and_a_map_of_the_factors(given):
    np.testing.assert_allclose(given.X.T @ given.X / len(given.X), np.eye(6), atol=1e-9)
    assert metrics.r_score(given.z_uniform, given.X_uniform) == pytest.approx(1)
    assert metrics.mcc(given.z_uniform, given.X_uniform) < 0.85
    other = maps.features_of_images("factors", 0.9, 1, "unused")
    assert metrics.mcc(given.X, other.X) < 0.85  # another seed, another rotation


def test_scores_are_of_uniform_images_and_those_seen_of_training(given):
    V = np.random.default_rng(0).standard_normal((6, 6))
    found = maps.scores(maps.Maps(), given, V)
    between = ~np.eye(6, dtype=bool)
    assert np.corrcoef(given.z.T)[between].min() > 0.7
    assert np.abs(np.corrcoef(given.z_uniform.T)[between]).max() < 0.1
    assert found["mcc"] == metrics.mcc(given.z_uniform, given.X_uniform @ V)
    assert found["mcc_seen"] == metrics.mcc(given.z, given.X @ V)
    by_ica = metrics.ica(given.X_uniform, given.X)
    assert found["mcc_ica"] == pytest.approx(metrics.mcc(given.z_uniform, by_ica))


def test_errors_of_a_fit_are_shares_of_the_exact_one(given, monkeypatch):
    """Of a fit that is 0, and has no gradient: all of the gradient, and every weight that is on."""
    config = maps.Maps(head="unfinished", warmup=0.0)
    objective, tasks = maps.Objective(config), maps.tasks_of(config, given.z)
    rng = np.random.default_rng(0)
    W = tasks.sample_coefficients(rng)
    index, y = tasks.sample_labels(rng, W)
    _, _, _, info = objective(0.0, [given.X[index.ravel()]], (y, maps.sizes_of(W)), {})

    def nothing(F, y, lam, n_support=None):
        return 0.0, 0 * F, {}, {"w": 0 * F[:, 0]}

    monkeypatch.setattr(maps, "head_of", lambda *args: (nothing, lambda F, y: np.ones(len(F))))
    gradient, support = objective.error()
    assert gradient == 1 and support == pytest.approx(np.mean(info["w"] != 0), abs=0.02)


def test_the_first_look_at_which_mcc_is_0_9_is_told(given, monkeypatch):
    looks = iter([0.5, 0.85, 0.91, 0.7, 0.95])
    monkeypatch.setattr(maps.metrics, "mcc", lambda z, F: next(looks))
    config = maps.Maps(steps=100)
    _, path = maps.learn(config, given, maps.tasks_of(config, given.z))
    assert path == {"steps_to_0.9": 60}


def test_a_pool_unmixes_by_each_of_its_tasks_once(given, monkeypatch):
    asked = []

    def unmixed(given, W, rng):
        asked.append(W)
        return types.SimpleNamespace(M=np.eye(6), identified=np.ones(6))

    monkeypatch.setattr(maps, "unmixed", unmixed)
    for settings in ({}, {"tasks": "pool", "count": 9, "world": 2}, {"tasks": "example"}):
        maps.rotation(maps.Maps(**settings), given._replace(z=given.z[:, :3])
                      if "example" in settings.values() else given)
    fresh, pool, example = asked
    assert fresh.shape == (maps.FRESH, 6) and len(np.unique(fresh, axis=0)) == maps.FRESH
    np.testing.assert_array_equal(pool, maps.pool_of(2, 9, 6))
    np.testing.assert_array_equal(example, maps.EXAMPLE)


def test_an_encoders_features_are_of_the_rows_of_their_factors(monkeypatch):
    """Of an encoder that gives the factors: those of training are correlated, others are not."""
    z, p = data.latents(data.Shapes3D(), 1.0, 0.9)
    encoder = types.SimpleNamespace(encode=lambda params, state, images, index: 3 * z[index] + 1)
    end = types.SimpleNamespace(params={}, state={})
    run = types.SimpleNamespace(path=lambda name: name, name="a")
    monkeypatch.setattr(maps.disentangle, "other_run", lambda config: run)
    monkeypatch.setattr(maps.results, "load_checkpoint", lambda path: (end, encoder))
    given = maps.encoded_images("inner-lasso", 0.3, 0.9, 0, "unused")
    for factors, features, low, high in (
            (given.z, given.X, 0.7, 1), (given.z_uniform, given.X_uniform, -0.1, 0.1)):
        assert np.diag(metrics.correlation(factors, features)) == pytest.approx(1)
        assert low < np.corrcoef(factors.T)[0, 1] < high
    np.testing.assert_allclose(given.X.std(axis=0), 1)
