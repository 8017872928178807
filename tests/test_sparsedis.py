"""Heads, training, layers, encoders on every array library, our calls against CuPy."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from conftest import library, to_numpy
from test_solvers import group_problem

import data
import solvers
import sparsedis
from experiments import gradcheck


@pytest.mark.parametrize(
    "k, stride, pad, C, O",
    [
        (4, 2, 1, 1, 5),
        (4, 2, 1, 3, 4),
        (2, 2, 0, 3, 4),
        (3, 1, 1, 2, 5),
        (1, 1, 0, 3, 2),
        (6, 2, 2, 2, 3),
    ],
)
def test_conv2d_is_a_sum_over_the_window(k, stride, pad, C, O):
    rng = np.random.default_rng(0)
    x, W, b = (
        rng.standard_normal((2, 8, 10, C)),
        rng.standard_normal((k, k, C, O)),
        rng.standard_normal(O),
    )
    out, _ = sparsedis.conv2d(x, W, b, stride, pad)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    assert out.shape == (2, (8 + 2 * pad - k) // stride + 1, (10 + 2 * pad - k) // stride + 1, O)
    for i, j in np.ndindex(out.shape[1:3]):
        window = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
        np.testing.assert_allclose(out[:, i, j], np.tensordot(window, W, axes=3) + b, atol=1e-12)


@pytest.mark.parametrize("norm, axis", [("batch", 1), ("layer", 2)])
def test_normalise_gives_mean_zero_and_variance_one(norm, axis):
    F = np.random.default_rng(0).standard_normal((3, 20, 8)) * 5 + 2
    out, _ = sparsedis.normalise(F, norm)
    np.testing.assert_allclose(out.mean(axis), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(axis), 1, atol=1e-4)


def test_normalise_by_the_support_leaves_the_query_its_own_moments():
    F = np.random.default_rng(0).standard_normal((2, 9, 3)) * 3 + 1
    out, _ = sparsedis.normalise(F, n_support=6)
    np.testing.assert_allclose(out[:, :6].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(out[:, :6].std(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(
        out[:, 6:],
        (F[:, 6:] - F[:, :6].mean(axis=1, keepdims=True))
        / (F[:, :6].var(axis=1, keepdims=True) + 1e-5) ** 0.5,
    )
    with pytest.raises(ValueError, match="batch"):
        sparsedis.normalise(F, "layer", n_support=6)
    with pytest.raises(ValueError, match="norm: found groups"):
        sparsedis.normalise(F, "groups")


def test_a_constant_feature_survives_normalisation():
    F = np.ones((2, 5, 3))
    out, cache = sparsedis.normalise(F)
    assert not out.any() and np.isfinite(sparsedis.normalise_backward(F, cache)[0]).all()


def test_inner_ridge_is_least_squares_without_penalty():
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((3, 20, 4)), rng.standard_normal((3, 20))
    loss, _, _, info = sparsedis.inner_ridge(F, y, 0.0)
    residuals = [y[t] - F[t] @ np.linalg.lstsq(F[t], y[t])[0] for t in range(3)]
    np.testing.assert_allclose(loss, np.mean([r @ r / 40 for r in residuals]))


def test_problem_7_scores_on_samples_that_were_not_fitted():
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((3, 20, 4)), rng.standard_normal((3, 20))
    loss, _, _, info = sparsedis.inner_lasso(F, y, 0.1, n_support=12)
    w, _ = solvers.lasso(F[:, :12], y[:, :12], 0.1)
    np.testing.assert_allclose(info["w"], w)
    np.testing.assert_allclose(
        loss, np.mean((np.vecdot(F[:, 12:], w[:, None, :]) - y[:, 12:]) ** 2) / 2
    )


def test_tasks_that_share_a_set_are_tasks_on_copies_of_it():
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((2, 20, 4)), rng.standard_normal((2, 3, 20))
    h = sparsedis.HEADS["inner-lasso"]
    loss, dF, _ = sparsedis.head_on_sets(*h, F, y, 0.2)
    apart = [sparsedis.head_on_sets(*h, F, y[:, k : k + 1], 0.2) for k in range(3)]
    np.testing.assert_allclose(loss, np.mean([a[0] for a in apart]))
    np.testing.assert_allclose(dF, np.mean([a[1] for a in apart], axis=0), atol=1e-12)


def test_adam_takes_the_steps_of_the_paper():
    p, opt = {"a": np.array([1.0, -2.0])}, None
    m = v = 0
    expected = p["a"].copy()
    for t in range(1, 4):
        g = np.array([0.5, -t])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p, opt = sparsedis.adam(p, {"a": g}, opt, 0.1)
        np.testing.assert_allclose(p["a"], expected, rtol=1e-12)


def outer_step(xp, device, dtype=None, images=20):
    """One whole outer step: images, forward, inner fit, adjoint, backward, Adam."""
    rng = np.random.default_rng(0)
    encoder = sparsedis.cnn(3)
    params, state = encoder.init(rng, dtype or xp.float64, xp, device)
    x = data.compose(rng.integers(480, size=images), rng.integers(10, size=(images, 3)), xp, device)
    y = xp.asarray(rng.standard_normal((2, 3, images // 2)), device=device)
    training = sparsedis.Training(
        encoder,
        lambda step: ([xp.astype(x, dtype or xp.float64)], y),
        sparsedis.task_objective("inner-lasso", warmup=0.0),
        steps=1,
    )
    seen = {}
    params, *_ = sparsedis.train(
        training, (params, state, None, 0), lambda now, loss, info: seen.update(loss=loss)
    )
    return seen["loss"], params


def test_labels_may_be_integers_or_bools(backend):
    xp, device = backend
    F = xp.asarray(np.random.default_rng(0).standard_normal((2, 12, 3)), device=device)
    y = xp.asarray(np.arange(24).reshape(2, 12) % 2 == 0, device=device)
    told = [sparsedis.inner_lasso(F, xp.astype(y, dtype), 0.1)[0]
            for dtype in (xp.bool, xp.int64, xp.float64)]
    assert told[0] == told[1] == told[2]


def test_an_outer_step_on_every_array_library(backend):
    loss, params = outer_step(*library("numpy"))
    loss_, params_ = outer_step(*backend)
    assert abs(loss_ - loss) <= 1e-8 * abs(loss)  # images are float32 products on either side
    for name in params:
        np.testing.assert_allclose(to_numpy(params_[name]), params[name], atol=1e-6)


@pytest.mark.parametrize("images", [40, 47, 53])
def test_threads_do_not_change_a_bit(images):
    rng = np.random.default_rng(0)
    x, encoder = rng.random((images, 64, 64, 3)).astype(np.float32), sparsedis.cnn(6)
    params, state = encoder.init(rng)
    results = []
    for threads in (1, 2, 3):
        with sparsedis.cpu_threads(threads):
            F, cache, _ = encoder.forward(params, state, x)
            results.append([F, *encoder.backward(cache, F).values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_training_stops_on_a_loss_that_is_not_finite():
    encoder = sparsedis.mlp([4, 3])
    params, state = encoder.init(np.random.default_rng(0), np.float64)
    params["linear1.W"][0, 0] = 1e200
    sample = lambda step: ([np.full((6, 4), 1e200)], np.ones((1, 1, 6)))
    with pytest.raises(FloatingPointError, match="step 0: .* batch 0"), np.errstate(all="ignore"):
        sparsedis.train(
            sparsedis.Training(encoder, sample, sparsedis.task_objective("inner-lasso"), steps=1),
            (params, state, None, 0),
        )


def test_a_training_that_is_past_its_end_stays_where_it_is():
    encoder = sparsedis.mlp([4, 3])
    params, state = encoder.init(np.random.default_rng(0))
    start = sparsedis.Snapshot(params, state, None, 9)
    assert sparsedis.train(sparsedis.Training(encoder, None, None, steps=5), start).step == 9


def test_no_images_give_no_features_and_misfitting_ones_are_named():
    cnn = sparsedis.cnn(3)
    params, state = cnn.init(np.random.default_rng(0))
    images = np.zeros((2, 64, 64, 3), np.float32)
    assert cnn.forward(params, state, images[:0])[0].shape == (0, 3)
    assert cnn.encode(params, state, lambda i: images[i], np.arange(0)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"linear: found x \(2, 256\), expected \(N, 1024\)"):
        cnn.forward(params, state, images[:, :32, :32])
    for x, W in ((images[..., :2], np.ones((4, 4, 3, 5))), (images, np.ones((3, 2, 3, 5)))):
        with pytest.raises(ValueError, match="conv2d: found x .* and W .*, expected"):
            sparsedis.conv2d(x, W)


def test_moments_of_no_samples_are_refused():
    for n_support in (0, -1, 99):
        with pytest.raises(ValueError, match=f"n_support: found {n_support}"):
            sparsedis.normalise(np.ones((2, 6, 3)), n_support=n_support)


def test_a_split_leaves_samples_on_both_sides():
    F, y = np.random.default_rng(0).standard_normal((2, 6, 3)), np.ones((2, 6))
    for n_support in (0, 6, 7):
        with pytest.raises(ValueError, match="n_support"):
            sparsedis.inner_lasso(F, y, 0.1, n_support)


def test_a_device_need_not_be_hashable(monkeypatch):
    """CuPy's Device is not."""

    class Device:
        __hash__ = None

    xp, _ = library("numpy")
    monkeypatch.setattr(xp, "asarray", lambda a, device=None, **kw: np.asarray(a, **kw))
    monkeypatch.setattr(xp, "empty", lambda shape, dtype=None, device=None: np.empty(shape, dtype))
    assert data.compose(np.array([3]), np.array([[1, 2, 3]]), xp, Device()).shape == (1, 64, 64, 3)


def test_evaluation_keeps_nothing_for_a_backward_pass():
    encoder = sparsedis.mlp([3, 4, 2])
    params, state = encoder.init(np.random.default_rng(0))
    _, cache, _ = encoder.forward(params, state, np.ones((5, 3), np.float32), train=False)
    assert cache == [None] * 3


def test_labels_are_smoothed_towards_all_classes():
    Z, rng = np.zeros((1, 2, 4)), np.random.default_rng(0)
    Y = np.eye(4)[[0, 3]][None]
    np.testing.assert_allclose(sparsedis.score_loss(Z, Y, 0.2)[1], (0.25 - (0.8 * Y + 0.05)) / 2)
    z, y = (
        rng.standard_normal((1, 3, 1)),
        np.array([0.0, 1, 1])[None, :, None],
    )  # binary: halfway to 1/2
    np.testing.assert_allclose(
        sparsedis.score_loss(z, y, 0.2)[1], (1 / (1 + np.exp(-z)) - (0.8 * y + 0.1)) / 3
    )


@pytest.mark.parametrize("k, pad", [(1, 1), (1, 3), (2, 3), (3, 3)])
def test_padding_may_be_wider_than_the_kernel(k, pad):
    """conv2d is bilinear: <out, dout> = <dx, x> = <dW, W>."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((k, k, 3, 2))
    out, cache = sparsedis.conv2d(x, W, pad=pad)
    dout = rng.standard_normal(out.shape)
    dx, grads = sparsedis.conv2d_backward(dout, cache)
    assert np.vdot(out, dout) == pytest.approx(np.vdot(dx, x))
    assert np.vdot(out, dout) == pytest.approx(np.vdot(grads["W"], W))


@pytest.mark.parametrize("sides", [(2, 2), (2, 8), (8, 2)])
def test_a_kernel_larger_than_the_image_is_refused(sides):
    with pytest.raises(ValueError, match="must fit"):
        sparsedis.conv2d(np.zeros((1, *sides, 1)), np.zeros((4, 4, 1, 1)))


@pytest.mark.parametrize("sides", [(9, 12), (12, 9), (4, 4)])
def test_a_convnet_takes_images_of_any_shape(sides):
    encoder, x = sparsedis.convnet(3, (*sides, 2), (4, 5), 7), np.ones((2, *sides, 2), np.float32)
    params, state = encoder.init(np.random.default_rng(0))
    F, cache, _ = encoder.forward(params, state, x)
    assert F.shape == (2, 3) and encoder.backward(cache, F).keys() == params.keys()
    with pytest.raises(ValueError, match="at least 4"):
        sparsedis.convnet(3, (3, 12, 2))
    with pytest.raises(ValueError, match="sizes"):
        sparsedis.mlp([3])


def test_the_cosine_falls_from_lr_to_0():
    assert sparsedis.cosine(2.0, 0) == 2 and abs(sparsedis.cosine(2.0, 1)) < 1e-12
    assert sparsedis.cosine(2.0, 0.5) == pytest.approx(1)
    assert sparsedis.cosine(2.0, 0.2, flat=0.3) == 2


def test_neighbours_may_have_blocks_of_other_sizes():
    rng, s = np.random.default_rng(0), sparsedis
    x, grads = rng.random((11, 6, 6, 2)), []
    for first, second in ((4, 4), (4, 3), (5, 11), (11, 4)):
        own = s.conv("a", 3, 2, 3, pad=1, bias=False)
        layers = [s.Blocks(own, size=first), s.TRIM, s.Blocks(s.RELU, size=second)]
        encoder = s.Encoder(s.Sequential(*layers, s.FLATTEN))
        params, state = encoder.init(np.random.default_rng(1), np.float64)
        F, cache, _ = encoder.forward(params, state, x)
        grads.append(encoder.backward(cache, F))
    for other in grads[1:]:
        for name, g in grads[0].items():
            np.testing.assert_allclose(other[name], g, atol=1e-10)


# ------------------------------------------------------------------------------ CuPy


FEW_SHOT = ["experiments/episode_networks.py", "experiments/episode_heads.py"]


def calls_of_xp(path):
    """Every call xp.name(...) of a file: (line, name, positional arguments, keywords)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.startswith("xp."):
                starred = any(isinstance(a, ast.Starred) for a in node.args)
                yield (
                    node.lineno,
                    name[3:],
                    None if starred else len(node.args),
                    [k.arg for k in node.keywords if k.arg],
                )


@pytest.mark.parametrize("file", ["solvers.py", "sparsedis.py", "data.py", *FEW_SHOT])
def test_every_call_fits_cupy(file):
    """CuPy imports without a GPU, so names and signatures can be checked anywhere."""
    pytest.importorskip("cupy", reason="no GPU (CuPy is not installed)")
    import array_api_compat.cupy as xp

    root = Path(sparsedis.__file__).parent
    seen = 0
    for line, name, positional, keywords in calls_of_xp(root / file):
        f = xp
        for part in name.split("."):
            assert hasattr(f, part), f"{file}:{line} CuPy has no {name}"
            f = getattr(f, part)
        seen += 1
        if positional is None or isinstance(f, type):
            continue
        if hasattr(f, "nin"):
            assert f.nin == positional and not keywords, f"{file}:{line} {name}"
        else:
            inspect.signature(f).bind(*[None] * positional, **dict.fromkeys(keywords))
    assert seen > 3


def test_no_numpy_on_arrays_that_may_live_on_a_device():
    for file in ("solvers.py", "sparsedis.py"):
        text = (Path(sparsedis.__file__).parent / file).read_text()
        names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
        assert all(node.id != "np" for node in names)


def test_the_penalty_of_problem_7_is_of_the_samples_fitted():
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((3, 20, 4)), rng.standard_normal((3, 2, 20))
    h = sparsedis.HEADS["inner-lasso"]
    none, one = (sparsedis.head_on_sets(*h, F, y, eps, n_support=12)[2]["w"] for eps in (1, 0.999))
    assert not none.any() and ((one != 0).sum(axis=1) == 1).all()


def test_features_are_normalised_by_all_samples_of_their_set():
    rng = np.random.default_rng(0)
    F, y = 3 + rng.standard_normal((1, 20, 4)), rng.standard_normal((1, 1, 20))
    _, _, info = sparsedis.head_on_sets(*sparsedis.HEADS["inner-lasso"], F, y, 0.1, n_support=12)
    G = (F - F.mean(axis=1)) / np.sqrt(F.var(axis=1) + 1e-5)
    lam = 0.1 * solvers.lasso_lambda_max(G[:, :12], y[0, :, :12])
    np.testing.assert_allclose(
        info["w"], solvers.lasso(G[:, :12], y[0, :, :12], lam)[0], atol=1e-12
    )


def sets_with_gaps(name):
    """Features of two sets, labels of three tasks with gaps: 0, or any class."""
    rng = np.random.default_rng(0)
    F, known = rng.standard_normal((2, 12, 5)), rng.random((2, 3, 12)) < 0.7
    if name == "inner-lasso":
        return F, rng.standard_normal((2, 3, 12)) * known, known
    return F, np.eye(3)[rng.integers(3, size=(2, 3, 12))], known


@pytest.mark.parametrize("name", ["inner-lasso", "inner-group-logistic"])
def test_the_gradient_of_sets_with_missing_labels(name):
    F, y, known = sets_with_gaps(name)
    head, _ = sparsedis.HEADS[name]

    def fitted(F):
        loss, dF, info = sparsedis.head_on_sets(
            head, lambda F, y: np.full(6, 0.4), F, y, 0.1, known=known
        )
        return loss, {"F": dF}, info

    case = gradcheck.loss_case(name, fitted, F=F)
    assert gradcheck.passes(gradcheck.check_gradient(case.f, case.arrays, entries=60))


def test_a_sample_without_a_label_changes_no_predictor():
    F, y, known = sets_with_gaps("inner-lasso")
    h = sparsedis.HEADS["inner-lasso"]
    w = sparsedis.head_on_sets(*h, F, y, 0.2, known=known)[2]["w"]
    G, _ = sparsedis.normalise(F)
    for t, (g, k) in enumerate(np.ndindex(2, 3)):
        on = known[g, k]
        few, labels = G[g][None, on], y[g, k][None, on]
        lam = 0.2 * solvers.lasso_lambda_max(few, labels)
        np.testing.assert_allclose(w[t], solvers.lasso(few, labels, lam)[0][0], atol=1e-10)


def test_eps_rises_to_its_value_and_no_further():
    assert [sparsedis.rise(p, 0.5) for p in (0, 0.25, 0.5, 0.9)] == [0, 0.5, 1, 1]
    assert sparsedis.rise(0.0, 0) == 1


def test_training_begins_at_progress_0():
    encoder, seen = sparsedis.mlp([4, 3]), []
    params, state = encoder.init(np.random.default_rng(0))

    def objective(progress, batches, y, params):
        seen.append((progress, batches[0].dtype))
        return np.float64(0), [0 * batches[0]], {}, {}

    rates = []
    optimiser = lambda p, g, opt, lr: (p, rates.append(lr)), lambda lr, progress: (lr, progress)
    training = sparsedis.Training(
        encoder, lambda step: ([np.ones((6, 4), np.float32)], None), objective, 4, 0.1, optimiser
    )
    sparsedis.train(training, (params, state, None, 0))
    assert seen == [(t, np.float64) for t in (0, 0.25, 0.5, 0.75)]
    assert rates == [(0.1, t) for t in (0, 0.25, 0.5, 0.75)]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_training_stops_where_only_a_loss_or_a_gradient_is_not_finite(bad):
    encoder = sparsedis.mlp([4, 3])
    params, state = encoder.init(np.random.default_rng(0))
    loss, d = (np.nan, 0.0) if bad == "loss" else (0.0, np.nan)

    def objective(progress, batches, y, params):
        return np.float64(loss), [d + 0 * batches[0]], {}, {}

    sample = lambda step: ([np.ones((6, 4), np.float32)], None)
    training = sparsedis.Training(encoder, sample, objective, 2)
    match = "step 0: .* the loss" if bad == "loss" else r"step 0: .* dlinear1\.W"
    with pytest.raises(FloatingPointError, match=match):
        sparsedis.train(training, (params, state, None, 0))


@pytest.mark.parametrize("head", sparsedis.HEADS)
def test_a_head_names_what_is_not_finite(head):
    F, y = np.full((1, 4, 2), np.nan), np.ones((1, 4, 1) if "group" in head else (1, 4))
    with pytest.raises(ValueError, match="F or y holds"):
        sparsedis.HEADS[head][0](F, y, np.nan)


def test_outer_penalties_and_losses_are_means_over_tasks():
    """The values that the docstrings give, by hand: differences see a slope, not its unit."""
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((3, 20, 4)), rng.standard_normal((3, 20))
    lam = np.array([0.1, 0.2, 0.3])
    w = np.stack([np.linalg.lstsq(a, b)[0] for a, b in zip(F, y)])
    fit = np.mean((np.vecdot(F, w[:, None, :]) - y) ** 2) / 2
    for name, penalty in (("outer-lasso", np.abs(w)), ("outer-ridge", w**2 / 2)):
        loss = sparsedis.HEADS[name][0](F, y, lam)[0]
        assert loss == pytest.approx(fit + np.mean(lam * penalty.sum(axis=1)), rel=1e-5)
    F, Y = group_problem(3, 20, 4, 3, "logistic")
    loss, _, _, info = sparsedis.inner_group_lasso(F, Y, 0.05, loss="logistic")
    Z = F @ np.swapaxes(info["w"], 1, 2)
    log_p = Z - np.log(np.exp(Z).sum(axis=2, keepdims=True))
    assert loss == pytest.approx(-np.mean((Y * log_p).sum(axis=2)))


def test_each_penalty_has_the_scale_of_its_norm():
    """[L23, App. D.2.3]: ||F'y||_inf / n of Lassos, ||F||_F^2 / n of ridges."""
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((2, 9, 4)), rng.standard_normal((2, 9))
    for name, (_, largest) in sparsedis.HEADS.items():
        if name.endswith("-lasso") and "group" not in name:
            np.testing.assert_allclose(
                largest(F, y), np.abs(np.vecdot(np.swapaxes(F, 1, 2), y[:, None])).max(axis=1) / 9
            )
        if name.endswith("-ridge"):
            np.testing.assert_allclose(largest(F, y), (F**2).sum(axis=(1, 2)) / 9)


def test_a_ridge_that_is_not_solved_is_told(monkeypatch):
    ridge = solvers.ridge
    off = np.array([[0.0], [0.01], [0.0]])
    monkeypatch.setattr(solvers, "ridge", lambda F, y, lam: ridge(F, y, lam) + off)
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((3, 20, 4)), rng.standard_normal((3, 20))
    for name in ("inner-ridge", "outer-ridge", "outer-lasso"):
        _, dF, _, info = sparsedis.HEADS[name][0](F, y, 0.1)
        assert info["converged"].tolist() == [True, False, True] and info["unsolved"] == 1
        assert not dF[1].any() and dF[0].any()
