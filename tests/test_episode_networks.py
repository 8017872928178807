"""Layers and networks of few-shot learning, SGD: against PyTorch, on every array library."""

import numpy as np
import pytest
from conftest import to_numpy

import sparsedis
from experiments import episode_networks as nets


def test_evaluation_uses_running_moments_and_drops_nothing():
    rng = np.random.default_rng(0)
    for encoder in (nets.conv4(1, 4), nets.resnet12(1, (2, 3, 4, 5), drop=0.5)):
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
        keys = [name for name in state if name.endswith(".key")]
        if keys:
            assert len(keys) == 4 and all(state[name][1] == 60 for name in keys)
        else:
            np.testing.assert_allclose(F, F_train, rtol=0.05, atol=0.05)


def test_features_of_the_few_shot_encoders():
    assert nets.conv4(3).forward(
        *nets.conv4(3).init(np.random.default_rng(0)), np.zeros((2, 84, 84, 3), np.float32)
    )[0].shape == (2, 1600)
    encoder = nets.resnet12()
    shapes = encoder.shapes
    assert sum(np.prod(shape) for shape in shapes.values()) == 12_424_320  # MetaOptNet's backbone
    F, _, _ = encoder.forward(
        *encoder.init(np.random.default_rng(0)), np.zeros((1, 84, 84, 3), np.float32)
    )
    assert F.shape == (1, 16_000)


def test_blocks_and_threads_change_no_bit_of_a_batch_norm_network():
    rng = np.random.default_rng(0)
    encoder, x = nets.conv4(1, 8), rng.random((60, 28, 28, 1)).astype(np.float32)
    params, state = encoder.init(rng)
    results = []
    for threads in (1, 2):
        with sparsedis.cpu_threads(threads):
            F, cache, after = encoder.forward(params, state, x)
            results.append((F, *encoder.backward(cache, F).values(), *after.values()))
    assert all(np.array_equal(a, b) for a, b in zip(*results))


def test_drop_block_drops_its_share_in_blocks():
    x = np.ones((50, 10, 10, 8))
    out, keep = nets.drop_block(x, (0, 10), rate=0.3, ramp=0, size=3)
    assert 0.6 < (keep > 0).mean() < 0.8 and abs(out.mean() - 1) < 1e-9
    assert (
        nets.drop_block(x, (0, 0), rate=0.3, ramp=1000, size=1)[1] == 0
    ).mean() < 0.01  # the rate grows
    for step, share in ((499, 0.15), (999, 0.3), (5000, 0.3)):  # to its end, and no further
        assert (
            abs(
                (
                    nets.drop_block(x, (0, step), rate=0.3, ramp=1000, size=1)[1] == 0
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
        params, opt = nets.sgd(params, {"W": g}, opt, 0.1)
        np.testing.assert_allclose(params["W"], theirs.detach().numpy(), atol=1e-12)


def test_schedules_fall():
    np.testing.assert_allclose(
        [nets.stairs(0.1, p) for p in (0, 0.34, 0.67, 0.84)], [0.1, 0.006, 0.0012, 0.00024]
    )


def test_few_shot_encoders_agree_with_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    encoder, x = nets.conv4(2, 4), rng.random((6, 21, 16, 2))
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


def test_equal_pixels_share_one_gradient():
    """Plain backgrounds pool equal pixels: the first takes the gradient, as PyTorch's does of four
    equal ones; of some, the left one, then the upper one."""
    x = np.zeros((1, 4, 4, 1))
    out, cache = nets.max_pool2d(x)
    dx, _ = nets.max_pool2d_backward(np.ones_like(out), cache)
    assert dx.sum() == 4 and (dx[:, ::2, ::2] == 1).all()
    out, cache = nets.max_pool2d(np.asarray([[0.0, 1], [1, 0]])[None, :, :, None])
    dx, _ = nets.max_pool2d_backward(np.ones_like(out), cache)
    assert dx[0, 1, 0, 0] == 1 and dx.sum() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nets.conv4(1, 4),
        lambda: nets.resnet12(1, (2, 3, 4, 5), drop=0.3),
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


NORM = nets.BatchNorm("n", 3)
REFUSED = {
    "a norm in blocks": (lambda s: s.Blocks(NORM, size=2), "state: n.mean"),
    "in a layer of blocks": (lambda s: s.Blocks(s.Sequential(NORM), size=2), "state: n.mean"),
    "DropBlock in blocks": (lambda s: s.Blocks(nets.DropBlock("d", rate=0.1), size=2), "d.key"),
    "a name twice": (lambda s: s.Sequential(s.dense("a", 3, 3), s.dense("a", 3, 3)), "a.W"),
    "one pixel to pool": (lambda s: nets.POOL, "2 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_do_not_fit_are_refused(case):
    """Rather than trained by a wrong gradient."""
    make, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        encoder = sparsedis.Encoder(make(sparsedis))
        params, state = encoder.init(np.random.default_rng(0))
        encoder.forward(params, state, np.ones((5, 1, 1, 3), np.float32))


def test_a_gradient_of_more_rows_than_images_is_refused():
    encoder = nets.cnn(3, norm=True)
    params, state = encoder.init(np.random.default_rng(0))
    F, cache, _ = encoder.forward(params, state, np.ones((4, 64, 64, 3), np.float32))
    with pytest.raises(ValueError):
        encoder.backward(cache, np.ones((6, 3), np.float32))
