"""Every hand-derived derivative of the project, once: for `python run.py gradcheck` and for the tests.

A case is (name, f, arrays), as metrics.check_gradient takes them.
"""
import functools

import numpy as np

import solvers
import sparsedis


def quadratic(out, R):
    """A loss with curvature for any output: sum R out + 1/2 sum out^2, and its gradient."""
    return (R * out).sum() + (out * out).sum() / 2, R + out


def gradient_cases():
    """Every hand-derived derivative of the project, once."""
    rng = np.random.default_rng(0)
    N = rng.standard_normal

    def layer(name, forward, backward, pattern=lambda cache: [], **arrays):
        R = N(forward(*arrays.values())[0].shape)

        def f(arrays):
            out, cache = forward(*arrays.values())
            loss, dout = quadratic(out, R)

            def gradients():
                return dict(zip(arrays, backward(dout, cache)))
            return loss, gradients, pattern(cache)
        return name, f, arrays

    def conv(k, stride, pad, C, O, size):
        return layer(f"conv2d {k}x{k}/{stride}, {C} to {O} channels", functools.partial(sparsedis.conv2d, stride=stride, pad=pad),
                     sparsedis.conv2d_backward, x=N((2, size, size, C)), W=N((k, k, C, O)), b=N(O))

    yield layer("linear", sparsedis.linear, sparsedis.linear_backward, x=N((4, 3)), W=N((3, 5)), b=N(5))
    yield layer("relu", sparsedis.relu, sparsedis.relu_backward, lambda out: [out > 0], x=N((4, 5)))
    yield layer("flatten", sparsedis.flatten, sparsedis.flatten_backward, x=N((2, 3, 3, 2)))
    yield conv(4, 2, 1, 1, 5, 8)                                            # thin input: windows
    yield conv(4, 2, 1, 3, 4, 8)                                            # thin output: shift_add
    yield conv(2, 2, 0, 3, 4, 6)
    yield conv(3, 1, 1, 2, 5, 5)
    yield conv(3, 1, 1, 4, 2, 5)
    yield layer("normalise over samples", sparsedis.normalise, sparsedis.normalise_backward, F=N((2, 7, 3)))
    yield layer("normalise over features", functools.partial(sparsedis.normalise, axis=2), sparsedis.normalise_backward, F=N((2, 4, 6)))

    def encoder(name, enc, x):
        params, state = enc.init(rng, dtype=np.float64)
        params = {k: a + 0.1 * N(a.shape) if k.endswith(".b") else a for k, a in params.items()}
        R = N(enc.forward(params, state, x)[0].shape)

        def f(params):
            F, cache, _ = enc.forward(params, state, x)
            loss, dF = quadratic(F, R)
            masks = [c > 0 for (_, stage), parts in zip(enc.stages, cache) for part in parts
                     for (_, kind, _, _), c in zip(stage, part) if kind == "relu"]
            return loss, lambda: enc.backward(cache, dF), masks
        return name, f, params

    yield encoder("encoder mlp", sparsedis.mlp([5, 7, 6, 3]), N((6, 5)))
    yield encoder("encoder cnn", sparsedis.cnn(3), rng.random((2, 64, 64, 3)))

    def problem(T, n, m, correlation=0.0):
        mix = np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation)
        F = N((T, n, m)) @ mix.T
        return {"F": F, "y": np.vecdot(F, (N((T, m)) * (rng.random((T, m)) < 0.5))[:, None, :]) + 0.3 * N((T, n))}

    def solver(name, solve, vjp, arrays, R):
        def f(arrays):
            w = solve(**arrays)
            loss, dw = quadratic(w, R)
            return loss, lambda: dict(zip(arrays, vjp(*arrays.values(), w, dw))), [w != 0]
        return name, f, arrays

    for name, (T, n, m), correlation, eps in (("lasso", (3, 9, 5), 0.0, 0.2), ("lasso, correlation 0.95", (3, 30, 6), 0.95, 0.05),
                                              ("lasso, n < m", (2, 6, 10), 0.0, 0.3)):
        p = problem(T, n, m, correlation)
        p["lam"] = eps * solvers.lasso_lambda_max(**p)
        yield solver(name, lambda F, y, lam: solvers.lasso(F, y, lam)[0], solvers.lasso_vjp, p, N((T, m)))
    p = problem(3, 4, 6) | {"lam": np.array([0.1, 0.5, 2.0])}
    yield solver("ridge, n < m", solvers.ridge, solvers.ridge_vjp, p, N((3, 6)))

    def group_solver(name, F, Y, eps, loss):
        lam, R = eps * solvers.group_lasso_lambda_max(F, Y, loss), N((F.shape[0], Y.shape[2], F.shape[2]))

        def f(arrays):
            W = solvers.group_lasso(arrays["F"], Y, arrays["lam"], loss)[0]
            value, dW = quadratic(W, R)
            return value, lambda: dict(zip(("F", "lam"), solvers.group_lasso_vjp(arrays["F"], Y, arrays["lam"], W, dW, loss))), [W != 0]
        return name, f, {"F": F, "lam": lam}

    one_hot = np.eye(3)[rng.integers(3, size=(2, 20))]
    yield group_solver("group lasso, squared, k = 3", N((2, 12, 5)), N((2, 12, 3)), 0.3, "squared")
    yield group_solver("group lasso, logistic, k = 3", N((2, 20, 5)), one_hot, 0.3, "logistic")

    def head(name, fitted, arrays, **kw):
        def f(arrays):
            loss, dF, info = fitted(arrays["F"])
            return loss, lambda: {"F": dF}, [info["w"] != 0]
        return name, f, arrays

    for name, split in ((name, split) for name in sparsedis.HEADS for split in (None, 14)):
        p, (h, lambda_max) = problem(2, 20, 4), sparsedis.HEADS[name]
        if "group" in name:
            p["y"] = one_hot if "logistic" in name else N((2, 20, 3))
        lam = 0.1 * lambda_max(p["F"][:, :split], p["y"][:, :split])
        yield head(f"head {name}, Problem ({'6' if split is None else '7'})",
                   lambda F, h=h, lam=lam, y=p["y"], split=split: [h(F, y, lam, split)[i] for i in (0, 1, 3)], {"F": p["F"]})
    F, y = N((2, 10, 5)), N((2, 3, 10))                                     # odd m: layer norm makes columns dependent
    for axis in (1, 2):
        yield head(f"head_on_sets, K = 3, {'batch' if axis == 1 else 'layer'} norm",
                   lambda F, axis=axis: sparsedis.head_on_sets(sparsedis.inner_lasso, lambda F, y: np.full(6, 0.4), F, y, 0.1,
                                                               norm_axis=axis), {"F": F})


def wrong_on_purpose():
    """The negative control: a Lasso gradient that is wrong by one part in ten thousand, which the check must refuse."""
    _, f, arrays = next(case for case in gradient_cases() if case[0] == "lasso")

    def wrong(arrays):
        loss, gradients, pattern = f(arrays)
        return loss, lambda: gradients() | {"F": gradients()["F"] * (1 + 1e-4)}, pattern
    return "control: lasso, dF wrong by 1e-4", wrong, arrays
