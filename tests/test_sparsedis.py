"""Heads, training, layers, encoders on every array library, our calls against CuPy."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from conftest import library, to_numpy

import data
import solvers
import sparsedis


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
    with pytest.raises(FloatingPointError, match="features.*step 0"), np.errstate(all="ignore"):
        sparsedis.train(
            sparsedis.Training(encoder, sample, sparsedis.task_objective("inner-lasso"), steps=1),
            (params, state, None, 0),
        )


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


# ------------------------------------------------------------------------------ CuPy


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


@pytest.mark.parametrize("file", ["solvers.py", "sparsedis.py", "data.py"])
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
    """Only the estimator, whose arrays are scikit-learn's, uses NumPy by its name."""
    for file in ("solvers.py", "sparsedis.py"):
        text = (Path(sparsedis.__file__).parent / file).read_text()
        ours = text.partition("-- estimator\n")[0].count("\n")
        names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
        assert all(node.id != "np" or node.lineno > ours for node in names)


# ------------------------------------------------------------------------------ few-shot encoders


def test_evaluation_uses_running_moments_and_drops_nothing():
    rng = np.random.default_rng(0)
    for encoder in (sparsedis.conv4(1, 4), sparsedis.resnet12(1, (2, 3, 4, 5), drop=0.5)):
        params, state = encoder.init(rng, np.float64)
        x = rng.random((12, 32, 32, 1))
        for _ in range(60):  # running moments settle on this batch's
            F_train, _, state = encoder.forward(params, state, x)
        F, _, same = encoder.forward(params, state, x, train=False)
        assert all(np.array_equal(same[k], state[k]) for k in state)
        alone = np.concatenate(
            [encoder.forward(params, state, x[i : i + 1], train=False)[0] for i in range(12)]
        )
        np.testing.assert_allclose(alone, F, atol=1e-12)  # not transductive
        if "drop" not in state:
            np.testing.assert_allclose(F, F_train, rtol=0.05, atol=0.05)
        else:
            assert state["drop"][1] == 60


def test_evaluation_keeps_nothing_for_a_backward_pass():
    encoder = sparsedis.mlp([3, 4, 2])
    params, state = encoder.init(np.random.default_rng(0))
    _, cache, _ = encoder.forward(params, state, np.ones((5, 3), np.float32), train=False)
    assert cache == [None] * 3


def test_features_of_the_few_shot_encoders():
    assert sparsedis.conv4(3).forward(
        *sparsedis.conv4(3).init(np.random.default_rng(0)), np.zeros((2, 84, 84, 3), np.float32)
    )[0].shape == (2, 1600)
    encoder = sparsedis.resnet12()
    shapes = encoder.shapes
    assert sum(np.prod(shape) for shape in shapes.values()) == 12_424_320  # MetaOptNet's backbone
    F, _, _ = encoder.forward(
        *encoder.init(np.random.default_rng(0)), np.zeros((1, 84, 84, 3), np.float32)
    )
    assert F.shape == (1, 16_000)


def test_blocks_and_threads_change_no_bit_of_a_batch_norm_network():
    rng = np.random.default_rng(0)
    encoder, x = sparsedis.conv4(1, 8), rng.random((60, 28, 28, 1)).astype(np.float32)
    params, state = encoder.init(rng)
    results = []
    for threads in (1, 2):
        with sparsedis.cpu_threads(threads):
            F, cache, after = encoder.forward(params, state, x)
            results.append((F, *encoder.backward(cache, F).values(), *after.values()))
    assert all(np.array_equal(a, b) for a, b in zip(*results))


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


def test_drop_block_drops_its_share_in_blocks():
    x = np.ones((50, 10, 10, 8))
    out, keep = sparsedis.drop_block(x, (0, 10), rate=0.3, ramp=0, size=3, layer=0)
    assert 0.6 < (keep > 0).mean() < 0.8 and abs(out.mean() - 1) < 1e-9
    assert (
        sparsedis.drop_block(x, (0, 0), rate=0.3, ramp=1000, size=1, layer=0)[1] == 0
    ).mean() < 0.01  # the rate grows
    for step, share in ((499, 0.15), (999, 0.3), (5000, 0.3)):  # to its end, and no further
        assert (
            abs(
                (
                    sparsedis.drop_block(x, (0, step), rate=0.3, ramp=1000, size=1, layer=0)[1] == 0
                ).mean()
                - share
            )
            < 0.02
        )
    padded = np.pad(
        keep == 0, ((0, 0), (1, 1), (1, 1), (0, 0))
    )  # a dropped pixel has dropped neighbours
    neighbours = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1]
    assert neighbours[keep == 0].all()


def test_sgd_is_torchs_nesterov():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    params, opt = {"W": rng.standard_normal(5)}, None
    theirs = torch.tensor(params["W"].copy(), requires_grad=True)
    optimiser = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for _ in range(5):
        g = rng.standard_normal(5)
        theirs.grad = torch.tensor(g)
        optimiser.step()
        params, opt = sparsedis.sgd(params, {"W": g}, opt, 0.1)
        np.testing.assert_allclose(params["W"], theirs.detach().numpy(), atol=1e-12)


def test_schedules_fall():
    assert sparsedis.cosine(2.0, 0) == 2 and abs(sparsedis.cosine(2.0, 1)) < 1e-12
    np.testing.assert_allclose(
        [sparsedis.stairs(0.1, p) for p in (0, 0.34, 0.67, 0.84)], [0.1, 0.006, 0.0012, 0.00024]
    )


def test_few_shot_encoders_agree_with_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    encoder, x = sparsedis.conv4(2, 4), rng.random((6, 21, 16, 2))
    params, state = encoder.init(rng, np.float64)
    F, cache, after = encoder.forward(params, state, x)
    out, theirs = (
        torch.tensor(x).permute(0, 3, 1, 2),
        {k: torch.tensor(v, requires_grad=True) for k, v in params.items()},
    )
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for i in (1, 2, 3, 4):
        out = torch.nn.functional.conv2d(
            out, theirs[f"block{i}.conv.W"].permute(3, 2, 0, 1), padding=1
        )
        out = torch.nn.functional.batch_norm(
            out,
            mean if i == 1 else None,
            variance if i == 1 else None,
            theirs[f"block{i}.norm.g"],
            theirs[f"block{i}.norm.b"],
            training=True,
        )
        out = torch.nn.functional.max_pool2d(torch.relu(out), 2)
    out = out.permute(0, 2, 3, 1).reshape(6, -1)
    np.testing.assert_allclose(F, out.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(after["block1.norm.variance"], variance.numpy(), atol=1e-12)
    (out**2).sum().backward()
    for name, g in encoder.backward(cache, 2 * F).items():
        np.testing.assert_allclose(g, theirs[name].grad.numpy(), atol=1e-9)


@pytest.mark.parametrize("k, pad", [(1, 1), (1, 3), (2, 3), (3, 3)])
def test_padding_may_be_wider_than_the_kernel(k, pad):
    """conv2d is bilinear: <out, dout> = <dx, x> = <dW, W>."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((k, k, 3, 2))
    out, cache = sparsedis.conv2d(x, W, pad=pad)
    dout = rng.standard_normal(out.shape)
    dx, dW = sparsedis.conv2d_backward(dout, cache)
    assert np.vdot(out, dout) == pytest.approx(np.vdot(dx, x))
    assert np.vdot(out, dout) == pytest.approx(np.vdot(dW, W))


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="must fit"):
        sparsedis.conv2d(np.zeros((1, 2, 2, 1)), np.zeros((4, 4, 1, 1)))


def test_equal_pixels_share_one_gradient():
    """Plain backgrounds pool equal pixels: the first takes the gradient, as PyTorch's does of four
    equal ones; of some, the left one, then the upper one."""
    x = np.zeros((1, 4, 4, 1))
    out, cache = sparsedis.max_pool2d(x)
    (dx,) = sparsedis.max_pool2d_backward(np.ones_like(out), cache)
    assert dx.sum() == 4 and (dx[:, ::2, ::2] == 1).all()
    out, cache = sparsedis.max_pool2d(np.asarray([[0.0, 1], [1, 0]])[None, :, :, None])
    (dx,) = sparsedis.max_pool2d_backward(np.ones_like(out), cache)
    assert dx[0, 1, 0, 0] == 1 and dx.sum() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparsedis.conv4(1, 4),
        lambda: sparsedis.resnet12(1, (2, 3, 4, 5), drop=0.3, pool=True),
    ],
)
def test_few_shot_encoders_on_every_array_library(backend, make):
    xp, device = backend
    encoder, x = make(), np.random.default_rng(1).random((6, 32, 32, 1))
    params, state = encoder.init(np.random.default_rng(0), np.float64)
    F, cache, _ = encoder.forward(params, state, x)
    params_, state_ = encoder.init(np.random.default_rng(0), xp.float64, xp, device)
    F_, cache_, after = encoder.forward(params_, state_, xp.asarray(x, device=device))
    np.testing.assert_allclose(to_numpy(F_), F, atol=1e-10)
    grads_ = encoder.backward(cache_, F_)
    for name, g in encoder.backward(cache, F).items():
        np.testing.assert_allclose(to_numpy(grads_[name]), g, atol=1e-8)
    assert (
        encoder.forward(params_, after, xp.asarray(x, device=device), train=False)[0].shape
        == F.shape
    )


def test_neighbours_may_have_blocks_of_other_sizes():
    rng, s = np.random.default_rng(0), sparsedis
    x, grads = rng.random((11, 6, 6, 2)), []
    for first, second in ((4, 4), (4, 3), (5, 11), (11, 4)):
        own = s.conv("a", 3, 2, 3, pad=1, bias=False)
        layers = [
            s.InBlocks(own, size=first),
            s.TRIM,  # joins the blocks
            s.InBlocks(s.BatchNorm("n", 3), s.RELU, size=second),
        ]
        encoder = s.Encoder(s.Sequential(*layers, s.FLATTEN))
        params, state = encoder.init(np.random.default_rng(1), np.float64)
        F, cache, _ = encoder.forward(params, state, x)
        grads.append(encoder.backward(cache, F))
    for other in grads[1:]:
        for name, g in grads[0].items():
            np.testing.assert_allclose(other[name], g, atol=1e-10)


REFUSED = {
    "a batch norm alone": (lambda s: s.BatchNorm("n", 3), "InBlocks"),
    "in a layer": (lambda s: s.InBlocks(s.Sequential(s.BatchNorm("n", 3)), size=2), "own"),
    "a name twice": (lambda s: s.Sequential(s.dense("a", 3, 3), s.dense("a", 3, 3)), "a.W"),
    "DropBlock in blocks": (lambda s: s.InBlocks(s.DropBlock(rate=0.1), size=2), "DropBlock"),
    "blocks in blocks": (lambda s: s.InBlocks(s.InBlocks(s.RELU, size=2), size=2), "InBlocks"),
    "one pixel to pool": (lambda s: s.POOL, "2 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_do_not_fit_are_refused(case):
    """Rather than trained by a wrong gradient."""
    make, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        encoder = sparsedis.Encoder(make(sparsedis))
        params, state = encoder.init(np.random.default_rng(0))
        encoder.forward(params, state, np.ones((5, 1, 1, 3), np.float32))


def test_a_batch_norm_evaluates_anywhere():
    s = sparsedis
    encoder = s.Encoder(s.Sequential(s.InBlocks(s.RELU, size=2), s.BatchNorm("n", 3)))
    params, state = encoder.init(np.random.default_rng(0))
    assert encoder.forward(params, state, np.ones((5, 3)), train=False)[0].shape == (5, 3)


def test_a_gradient_of_more_rows_than_images_is_refused():
    encoder = sparsedis.cnn(3, norm=True)
    params, state = encoder.init(np.random.default_rng(0))
    F, cache, _ = encoder.forward(params, state, np.ones((4, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="expected 4"):
        encoder.backward(cache, np.ones((6, 3), np.float32))
