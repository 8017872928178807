"""Every gradient against finite differences, the checker itself, and the command."""

import sys

import numpy as np
import pytest

import run
import solvers
import sparsedis
from experiments import episode_heads, gradcheck, inner_problems, sharing_solver
from experiments import episode_networks as nets

CASES = {case.name: case for case in gradcheck.cases()}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    case = CASES[name]
    entries = 5 if len(case.arrays) > 20 else 20  # of the many arrays of an encoder
    found = gradcheck.check_gradient(case.f, case.arrays, entries=entries)
    assert found.same, "a support or mask changed at every step tried"
    assert found.error <= 1e-6, found.norms
    assert found.rate >= 1.9, found


def test_the_gradient_check_can_fail():
    control = gradcheck.wrong_on_purpose()
    found = gradcheck.check_gradient(control.f, control.arrays)
    assert found.error > 1e-5 and not gradcheck.passes(found)


def test_every_head_layer_and_encoder_has_a_case():
    names = " ".join(CASES)
    heads = [*sparsedis.HEADS, *inner_problems.HEADS, "subset-size"]
    assert all(f"head {name}, Problem ({n})" in names for name in heads for n in (6, 7))
    assert all(f"episode {name}" in names for name in episode_heads.EPISODE_HEADS)
    assert all(f"encoder {name}" in names for name in nets.ENCODERS)


@pytest.fixture(scope="module")
def called_by_cases():
    """The names of all functions that the gradients of the cases call."""
    called = set()

    def hear(frame, event, argument):
        called.add(frame.f_code.co_name)

    sys.setprofile(hear)
    try:
        for case in CASES.values():
            _, gradients, _ = case.f(case.arrays)
            gradients()
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize(
    "module", [solvers, sparsedis, episode_heads, nets, sharing_solver, inner_problems],
    ids=lambda m: m.__name__
)
def test_every_backward_and_vjp_is_called_by_a_case(module, called_by_cases):
    names = {
        name
        for name, f in vars(module).items()
        if name.endswith(("_backward", "_vjp")) and f.__module__ == module.__name__
    }
    assert names and names <= called_by_cases


def test_the_error_is_relative_and_on_each_array():
    def f(arrays):
        a, b = arrays["a"], arrays["b"]
        return (a**2).sum() + b.sum(), lambda: {"a": 2 * a, "b": 1.5 + 0 * b}, []

    found = gradcheck.check_gradient(f, {"a": np.arange(1.0, 4.0), "b": np.ones(2)})
    assert found.errors["a"] < 1e-9 and found.error == found.errors["b"]
    np.testing.assert_allclose(found.errors["b"], 0.5 / 1.5, rtol=1e-6)
    np.testing.assert_allclose(found.norms["b"], (1.5 * 2**0.5, 2**0.5), rtol=1e-6)


def test_a_wrong_entry_is_found_where_no_difference_looked():
    case = CASES["conv2d 3x3/1, 2 to 5 channels"]
    index = np.random.default_rng(0).permutation(case.arrays["x"].size)

    def one_wrong(factor, arrays):
        loss, gradients, pattern = case.f(arrays)
        grads = gradients()
        grads["x"] = np.array(grads["x"])
        grads["x"].flat[index[25]] *= factor
        return loss, lambda: grads, pattern

    assert gradcheck.passes(gradcheck.check_gradient(lambda a: one_wrong(1, a), case.arrays))
    found = gradcheck.check_gradient(lambda a: one_wrong(-1, a), case.arrays)
    assert found.errors["x"] < 1e-9 and not gradcheck.passes(found)


def test_a_gradient_that_is_not_a_number_fails():
    arrays = {"a": np.ones(3), "b": np.ones(3)}

    def f(arrays):
        grads = {"a": 2 * arrays["a"], "b": np.full(3, np.nan)}
        return sum(np.sum(a * a) for a in arrays.values()), lambda: grads, []

    found = gradcheck.check_gradient(f, arrays)
    assert np.isnan(found.error) and np.isnan(found.rate)


def test_the_rate_tells_a_right_gradient_from_a_wrong_one():
    def cubic(arrays, factor=1.0):
        x = arrays["x"]
        return (x**3).sum(), lambda: {"x": factor * 3 * x**2}, []

    x = {"x": np.arange(1.0, 5.0)}
    assert abs(gradcheck.check_gradient(cubic, x).rate - 2) < 0.01
    wrong = gradcheck.check_gradient(lambda arrays: cubic(arrays, 1.2), x)
    assert wrong.rate < 1.2


def test_a_kink_that_no_step_avoids_is_told():
    def f(arrays):
        x = arrays["x"]
        return np.abs(x).sum(), lambda: {"x": np.sign(x)}, [x > 0]

    assert not gradcheck.check_gradient(f, {"x": np.zeros(2)}).same
    near = {"x": np.array([2e-3, 1.0])}  # a smaller step stays on one side
    assert gradcheck.check_gradient(f, near).same


@pytest.mark.parametrize(
    "encoder, shape, masks",
    [
        (sparsedis.mlp([5, 7, 6, 3]), (6, 5), 2),
        (nets.conv4(2, 4), (3, 16, 16, 2), 4 * (2 + 1)),  # a pool has two masks
        # of each residual block two in its branch, one and a pool behind it, image by image
        (nets.resnet12(2, (3, 4, 5, 6)), (3, 16, 16, 2), 4 * 3 * (2 + 1 + 2)),
    ],
)
def test_the_masks_of_an_encoder_are_found_wherever_they_lie(encoder, shape, masks):
    params, state = encoder.init(np.random.default_rng(0))
    x = np.random.default_rng(1).random(shape)
    _, cache, _ = encoder.forward(params, state, x)
    assert len(list(gradcheck.masks(encoder.layer, cache))) == masks


def test_the_command_prints_its_table_and_fails_on_a_wrong_gradient(monkeypatch, capsys):
    few = [CASES["linear"], CASES["lasso"]]
    monkeypatch.setattr(gradcheck, "cases", lambda: iter(few))
    assert run.main(["gradcheck"]) == 0
    out = capsys.readouterr().out
    assert "caught" in out and out.count("pass") == 2
    control = gradcheck.wrong_on_purpose()
    few.insert(0, control._replace(name="broken"))
    assert run.main(["gradcheck"]) == 1
    assert "FAIL" in capsys.readouterr().out
    few.pop(0)
    monkeypatch.setattr(gradcheck, "wrong_on_purpose", lambda: CASES["lasso"])
    assert run.main(["gradcheck"]) == 1
    assert "NOT CAUGHT" in capsys.readouterr().out
