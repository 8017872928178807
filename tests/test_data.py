"""Latents and tasks, 3D Shapes, the renderer against real images."""


import types

import numpy as np
import pytest

import data


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes3D()


def row(*factors):
    return int(np.ravel_multi_index(factors, data.LEVELS))


PINNED = [  # (geometry, means, projection)
    (0, [0.278895, 0.293495, 0.294955, 0.067826, 0.003366], -0.2875),
    (97, [0.276049, 0.304098, 0.34226, 0.065013, 0.00425], 2.3168),
    (205, [0.278975, 0.28778, 0.309176, 0.094615, 0.001552], 2.3017),
    (318, [0.279356, 0.268622, 0.266505, 0.13125, 0.006181], 0.5502),
    (479, [0.228846, 0.273061, 0.207747, 0.192754, 0.003637], 2.2421),
]


# ------------------------------------------------------------------------------ latents


def test_latents_are_standardised_and_weighted(shapes):
    z, p = data.latents(shapes, alpha=0.0, rho=0.0)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(p.sum(), 1)
    np.testing.assert_allclose(
        np.log(p[0] / p[7]), ((z[7] ** 2).sum() - (z[0] ** 2).sum()) / 2
    )  # a standard Gaussian's density


def test_correlation_of_the_weights_grows_with_rho(shapes):
    told = [data.describe_latents(*data.latents(shapes, 1.0, rho)) for rho in (0.0, 0.5, 0.9)]
    assert (
        abs(told[0]["realised_correlation"]) < 0.01 and 0.2 < told[1]["realised_correlation"] < 0.5
    )
    assert (
        0.8 < told[2]["realised_correlation"] < 0.84 and 2500 < told[2]["effective_images"] < 3100
    )


def test_the_noise_caps_the_correlation_as_computed(shapes):
    z, _ = data.latents(shapes, alpha=1.0, rho=0.0)
    for k, levels in enumerate(data.LEVELS):
        v = (levels**2 - 1) / 12
        np.testing.assert_allclose(
            np.corrcoef(z[:, k], shapes.factors[:, k])[0, 1], np.sqrt(v / (v + 1 / 12)), atol=1e-3
        )


def test_noise_is_drawn_once_per_image(shapes):
    np.testing.assert_array_equal(
        data.latents(shapes, 1.0, 0.0)[0], data.latents(shapes, 1.0, 0.5)[0]
    )


@pytest.mark.parametrize(
    "alpha, rho", [(1.5, 0), (-0.1, 0), (1, 1.0), (1, -0.2), (float("nan"), 0)]
)
def test_impossible_latents_are_refused(shapes, alpha, rho):
    with pytest.raises(ValueError, match="alpha|rho"):
        data.latents(shapes, alpha, rho)


# ------------------------------------------------------------------------------ tasks


def test_tasks_have_half_their_coefficients_and_never_none():
    w = data.sample_tasks(np.random.default_rng(0), 20_000, 6)
    assert ((w != 0).sum(axis=1) >= 1).all()
    counts = np.bincount((w != 0).sum(axis=1), minlength=7) / 20_000
    expected = (
        np.array([0, 7, 15, 20, 15, 6, 1]) / 64
    )  # binomial, the empty support counted with one
    np.testing.assert_allclose(counts, expected, atol=0.012)
    np.testing.assert_allclose(w[w != 0].std(), 1, atol=0.02)


def test_sampled_labels_are_the_tasks_signal_and_noise(shapes):
    z, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.Tasks(z, p, sets=3, samples=200, per_set=5)
    index, y = tasks.sample(np.random.default_rng(0))
    assert index.shape == (3, 200) and y.shape == (3, 5, 200)
    for g in range(3):
        Z = np.c_[z[index[g]], np.ones(200)]
        residual = y[g] - (Z @ np.linalg.lstsq(Z, y[g].T)[0]).T
        np.testing.assert_allclose(residual.std(axis=1) / y[g].std(axis=1), 0.1, atol=0.03)
    again, y_again = tasks.sample(np.random.default_rng(0))
    assert np.array_equal(index, again) and np.array_equal(y, y_again)


def test_images_are_drawn_by_their_weight(shapes):
    z, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.Tasks(z, p, sets=40, samples=500)
    index = np.concatenate([tasks.sample(np.random.default_rng(s))[0].ravel() for s in range(5)])
    C = np.corrcoef(z[index].T)
    assert (
        abs(C[~np.eye(6, dtype=bool)].mean() - data.describe_latents(z, p)["realised_correlation"])
        < 0.01
    )
    assert p[index].min() > 0


def test_task_distributions():
    rng = np.random.default_rng(0)
    w = {
        kind: data.sample_tasks(rng, 4000, 6, kind)
        for kind in ("laplace", "gauss", "sphere", "blocks-2", "blocks-6", "fixed-2", "finite-3")
    }
    for kind in ("laplace", "gauss"):
        assert (w[kind] != 0).all() and abs(w[kind].std() - 1) < 0.05
    assert (
        np.mean(w["laplace"] ** 4) > 4 > np.mean(w["gauss"] ** 4) > 2.5
    )  # 6 and 3 for unit variance
    np.testing.assert_allclose(np.linalg.norm(w["sphere"], axis=1), 1)
    S = w["blocks-2"] != 0
    assert (S[:, 0::2] == S[:, 1::2]).all() and (S.sum(axis=1) == 2).all()  # one block of three
    assert np.abs(S.mean(axis=0) - 1 / 3).max() < 0.05
    assert (w["blocks-6"] != 0).all() and ((w["fixed-2"] != 0).sum(axis=1) == 2).all()
    assert len(np.unique(w["finite-3"], axis=0)) == 3
    for kind in ("blocks-4", "fixed-7", "fixed-0", "finite-0", "finite-x", "gaussian", "",
                 "fixed-\u00b2", "finite-\u0663", "fixed-03"):
        with pytest.raises(ValueError, match="--tasks"):
            data.sample_tasks(rng, 5, 6, kind)
    z, p = rng.standard_normal((9, 6)), np.full(9, 1 / 9)
    for wrong in ({"likelihood": "categorial"}, {"outputs": 0},
                  {"likelihood": "categorical", "outputs": 1}):
        with pytest.raises(ValueError, match="|".join(f"--{name}" for name in wrong)):
            data.Tasks(z, p, **wrong)


SUMS = {
    "bernoulli-gauss": -2470.813749,
    "laplace": -2797.594241,
    "gauss": 277.358983,
    "sphere": -457.527070,
    "blocks-2": 4100.645561,
    "fixed-2": -544.594804,
    "finite-3": 4831.436798,
}


@pytest.mark.parametrize("kind", SUMS)
def test_a_seed_draws_the_tasks_that_it_drew(kind):
    """In the same order of draws, so that a result of a seed can be made again."""
    w = data.sample_tasks(np.random.default_rng(5), 50, 6, kind)
    assert (w * np.arange(1, 301).reshape(50, 6)).sum() == pytest.approx(SUMS[kind], abs=1e-5)


def test_categorical_labels_are_one_hot(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    index, y = data.Tasks(
        z, p, sets=2, samples=300, per_set=4, outputs=3, likelihood="categorical"
    ).sample(np.random.default_rng(0))
    assert y.shape == (2, 4, 300, 3) and (y.sum(axis=3) == 1).all()
    _, y = data.Tasks(z, p, sets=2, samples=30, per_set=4, outputs=3).sample(
        np.random.default_rng(0)
    )
    assert y.shape == (2, 4, 30, 3)


def test_shift_moves_each_set_towards_its_tasks(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    for shift in (1.5, 3.0):
        tasks = data.Tasks(z, p, sets=40, samples=100, per_set=1, kind="fixed-1", shift=shift)
        rng = np.random.default_rng(0)
        w = tasks.sample_coefficients(rng)
        mean = z[tasks.sample_images(rng, w)].mean(axis=1)  # (G, 6)
        on = w[:, 0, 0] != 0
        tilted = p[:, None] * np.exp(shift * z)  # v is a unit vector
        exact = (tilted * z).sum(axis=0) / tilted.sum(axis=0)
        exact = np.broadcast_to(exact, mean.shape)
        np.testing.assert_allclose(mean[on].mean(), exact[on].mean(), atol=0.02)
        assert abs(mean[~on].mean()) < 0.03


# ------------------------------------------------------------------------------ the renderer


def test_the_renderer_reproduces_real_images(shapes, real_data):
    with np.load(real_data("3dshapes_real_images.npz")) as file:
        real, factors = file["images"], file["factors"]
    ours = 255 * shapes.images(np.ravel_multi_index(factors.T, data.LEVELS))
    psnr = 10 * np.log10(255**2 / ((ours - real) ** 2).mean(axis=(1, 2, 3)))
    print(
        f"PSNR of {len(real)} real images: mean {psnr.mean():.2f} dB, minimum {psnr.min():.2f} dB"
    )
    assert psnr.mean() >= 38 and psnr.min() >= 34


def test_geometries_are_what_they_were():
    """Pinned: mean light of each map, and one projection that sees every pixel's place."""
    place = np.cos(np.arange(64 * 64))
    for geometry, means, projection in PINNED:
        maps = data.geometry_maps()[geometry].astype(np.float64)
        np.testing.assert_allclose(maps.mean(axis=0), means, atol=2e-6)
        np.testing.assert_allclose(place @ maps.sum(axis=1), projection, atol=2e-3)


def test_images_are_quantised_and_coloured_by_their_factors(shapes):
    x = shapes.images(np.array([row(0, 3, 6, 7, 2, 7), row(5, 3, 6, 7, 2, 7)]))
    assert x.shape == (2, 64, 64, 3) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
    np.testing.assert_allclose(x * 255, np.round(x * 255), atol=1e-3)
    assert (
        x[0, -1, 0].argmax() == 0 and x[0, -1, 0, 1:].max() == 0
    )  # floor hue 0 is red, without green or blue
    np.testing.assert_array_equal(x[0, :20], x[1, :20])  # the floor's hue touches only the floor
    sky = np.round(255 * x[0, 0, 32])
    np.testing.assert_allclose(sky, data.SKY)


def test_scale_shape_and_orientation_change_the_picture(shapes):
    base = [1, 2, 3, 4, 1, 7]
    x = shapes.images(np.array([row(*base)]))
    for k in (3, 4, 5):
        other = list(base)
        other[k] = 0
        assert np.abs(shapes.images(np.array([row(*other)])) - x).max() > 0.2


@pytest.mark.parametrize("p", [np.zeros(9), -np.ones(9), np.full(9, np.nan), np.ones(8)])
def test_weights_that_draw_no_image_are_refused(p):
    with pytest.raises(ValueError, match="^p: expected a weight for each row"):
        data.Tasks(np.ones((9, 2)), p)


def test_what_was_not_read_has_no_fingerprint():
    with pytest.raises(ValueError, match="rendered, not read"):
        data.Shapes3D().fingerprint()


def test_a_factor_that_never_varies_is_0():
    grid = types.SimpleNamespace(factors=np.c_[np.full(60, 3), np.arange(60) % 5])
    z, p = data.latents(grid, alpha=1.0, rho=0.9)
    assert not z[:, 0].any() and z[:, 1].std() == pytest.approx(1)


def test_the_realised_correlation_is_about_the_weighted_mean():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 3))
    p = np.exp(z.sum(axis=1) / 2)
    p = p / p.sum()
    C = np.cov(z.T, aweights=p)
    R = C / np.sqrt(np.outer(np.diag(C), np.diag(C)))
    told = data.describe_latents(z, p)
    assert told["realised_correlation"] == pytest.approx(R[~np.eye(3, dtype=bool)].mean())
    assert told["effective_images"] == pytest.approx(1 / np.sum(p**2))


def test_a_shift_is_along_all_tasks_of_a_set_whatever_their_signs():
    z = np.random.default_rng(0).standard_normal((5000, 3))
    tasks = data.Tasks(z, np.full(5000, 1 / 5000), sets=1, samples=4000, per_set=2, shift=1.5)
    W = np.array([[[[1.0, 0, 0]], [[0, -1, 0]]]])  # (1, 2, 1, 3)
    mean = z[tasks.sample_images(np.random.default_rng(1), W)].mean(axis=(0, 1))
    np.testing.assert_allclose(mean, [1.5 / 2**0.5, 1.5 / 2**0.5, 0], atol=0.15)


def test_classes_have_the_probabilities_of_the_softmax():
    rng = np.random.default_rng(0)
    z, W = rng.standard_normal((500, 2)), 0.3 * rng.standard_normal((1, 1, 3, 2))
    tasks = data.Tasks(z, np.full(500, 1 / 500), 1, 20_000, 1, outputs=3, likelihood="categorical")
    index, y = tasks.sample_labels(rng, W)
    logits = 5 * z[index[0]] @ W[0, 0].T
    P = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for along in (np.ones((len(P), 1)), logits, z[index[0]][:, :1]):  # what is left has no slope
        assert np.abs(((y[0, 0] - P) * along).mean(axis=0)).max() < 0.02
    assert 0.5 < (y[0, 0].argmax(axis=1) == P.argmax(axis=1)).mean() < 0.95


def test_outputs_of_a_task_share_a_support_and_not_their_coefficients():
    z = np.random.default_rng(0).standard_normal((400, 6))
    tasks = data.Tasks(z, np.full(400, 1 / 400), 3, 100, 4, outputs=2)
    W = tasks.sample_coefficients(np.random.default_rng(1))  # (3, 4, 2, 6)
    on = W != 0
    np.testing.assert_array_equal(on[:, :, 0], on[:, :, 1])
    assert (W[:, :, 0] != W[:, :, 1])[on[:, :, 0]].all() and 0.3 < on.mean() < 0.7
    W[:, :, 1] *= 100  # each output's noise is a tenth of its own signal
    index, y = tasks.sample_labels(np.random.default_rng(2), W)
    signal = z[index][:, None] @ W.mT
    share = (y - signal).std(axis=2) / signal.std(axis=2)
    np.testing.assert_allclose(share, 0.1, atol=0.04)


def test_another_seed_draws_other_noise():
    grid = types.SimpleNamespace(factors=np.arange(60)[:, None] % [5, 7])
    one, other = (data.latents(grid, 1.0, 0.0, seed)[0] for seed in (0, 1))
    assert (one != other).all() and np.corrcoef(one[:, 0], other[:, 0])[0, 1] > 0.8


def test_images_that_a_disk_does_not_hold_are_refused(tmp_path, monkeypatch):
    from experiments.render import write_hdf5

    write_hdf5(tmp_path / "a.h5", 5)
    full = types.SimpleNamespace(free=5 * 64 * 64 * 3)  # not 2 % more than the images
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match="GB are needed to unpack"):
        data.Shapes3D(tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
