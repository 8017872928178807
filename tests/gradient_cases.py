"""Every hand-derived derivative of the project, once: for `python run.py gradcheck` and for the tests.

A case is (name, f, arrays), as metrics.check_gradient takes them.
"""
import functools

import numpy as np

import metrics
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
    yield layer("leaky relu", sparsedis.leaky_relu, sparsedis.leaky_relu_backward, lambda slopes: [slopes], x=N((4, 5)))
    yield layer("max_pool2d, odd sides", sparsedis.max_pool2d, sparsedis.max_pool2d_backward,
                lambda c: [c[0][at] == c[1] for at in sparsedis.quarters(c[0].shape)], x=N((2, 5, 4, 3)))
    yield layer("global_pool", sparsedis.global_pool, sparsedis.global_pool_backward, x=N((2, 3, 4, 3)))
    yield layer("batch_norm", sparsedis.batch_norm, sparsedis.batch_norm_backward, x=N((3, 2, 3, 4)), g=N(4), b=N(4))
    yield layer("drop_block", functools.partial(sparsedis.drop_block, key=(0, 0), rate=0.3, ramp=0, size=2, layer=0),
                sparsedis.drop_block_backward, x=N((2, 5, 5, 3)))
    yield layer("normalise over samples", sparsedis.normalise, sparsedis.normalise_backward, F=N((2, 7, 3)))
    yield layer("normalise over features", functools.partial(sparsedis.normalise, axis=2), sparsedis.normalise_backward, F=N((2, 4, 6)))

    def masks(layers, caches):
        """What ReLU and pooling pass on, wherever it lies in an encoder's caches."""
        for run, cache in zip(sparsedis.runs_of(layers), caches):
            if run[0][1] == "residual":
                for part, c in zip(("branch", "shortcut"), cache):
                    yield from masks(run[0][3][part], c)
            for (_, kind, _, _), c in ((layer, c) for block in cache if run[0][1] != "residual" for layer, c in zip(run, block)):
                if kind in ("relu", "leaky_relu"):
                    yield c == (0 if kind == "relu" else 1)
                if kind == "max_pool2d":
                    yield from (c[0][at] == c[1] for at in sparsedis.quarters(c[0].shape))

    def encoder(name, enc, x):
        params, state = enc.init(rng, dtype=np.float64)
        params = {k: a + 0.1 * N(a.shape) if k.endswith((".b", ".g")) else a for k, a in params.items()}
        R = N(enc.forward(params, state, x)[0].shape)

        def f(params):
            F, cache, _ = enc.forward(params, state, x)
            loss, dF = quadratic(F, R)
            return loss, lambda: enc.backward(cache, dF), list(masks(enc.layers, cache))
        return name, f, params

    yield encoder("encoder mlp", sparsedis.mlp([5, 7, 6, 3]), N((6, 5)))
    yield encoder("encoder cnn", sparsedis.cnn(3), rng.random((2, 64, 64, 3)))
    conv4 = sparsedis.conv4(2, 4)
    conv4.block = 2                                                         # batch norm across blocks of unequal size
    yield encoder("encoder conv4", conv4, rng.random((5, 19, 16, 2)))
    yield encoder("encoder resnet12", sparsedis.resnet12(2, (3, 4, 5, 6), drop=0.2, ramp=2), rng.random((3, 36, 34, 2)))

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

    def svm(name, T, n, m, k, share, lam2=1.0):
        Y = np.eye(k)[rng.permuted(np.tile(np.arange(n) % k, (T, 1)), axis=1)]
        F, R = N((T, n, m)) + 0.3 * Y @ N((T, k, m)), N((T, k, m))

        lam1 = share * solvers.svm_lambda_max(F, Y)

        def f(arrays):
            lams = arrays.get("lam1", 0.0), arrays["lam2"]
            W, Lam, info = solvers.group_svm(arrays["F"], Y, *lams)
            loss, dW = quadratic(W, R)
            return loss, lambda: dict(zip(("F", "lam1", "lam2"), solvers.group_svm_vjp(arrays["F"], Y, *lams, W, Lam, dW))), \
                [(W != 0).any(axis=1), Lam > 0]
        return name, f, {"F": F, "lam2": np.full(T, lam2)} | ({"lam1": lam1} if share else {})

    yield svm("group SVM, k = 2, n < m", 2, 14, 20, 2, 0.3)
    yield svm("group SVM, k = 4, n < m", 2, 12, 30, 4, 0.15, 5.0)
    yield svm("group SVM without lam1, k = 3", 2, 12, 4, 3, 0.0)

    def sharing(name, k, pooled, alpha, beta):
        F, W = N((4, 25, 5)), N((4, k, 5)) * (rng.random((4, 1, 5)) < 0.6)
        Z, R = 3 * F @ np.swapaxes(W, 1, 2) + rng.gumbel(size=(4, 25, k)), N((4, k, 5))
        Y = np.eye(k)[Z.argmax(-1)] if k > 1 else (Z > 0).astype(float)
        near = solvers.sparse_sharing(F, Y, alpha, beta, pooled)[0]

        def f(arrays):
            a, b = float(arrays["alpha"]), float(arrays["beta"])
            phi = solvers.sparse_sharing(arrays["F"], Y, a, b, pooled, start=near, stages=1)[0]             # the same branch
            loss, dphi = quadratic(phi, R)
            return loss, lambda: dict(zip(("F", "alpha", "beta"), solvers.sparse_sharing_vjp(arrays["F"], Y, a, b, phi, dphi, pooled))), [phi != 0]
        return name, f, {"F": F, "alpha": np.array(alpha), "beta": np.array(beta)}

    yield sharing("sparse sharing, pooled, k = 3", 3, True, 0.1, 0.05)
    yield sharing("sparse sharing, per head, k = 3", 3, False, 0.05, 0.01)
    yield sharing("sparse sharing, pooled, binary", 1, True, 0.1, 0.05)
    yield sharing("sparse sharing, per head, binary", 1, False, 0.02, 0.01)

    def binary(method):
        F, W = N((4, 26, 5)), N((4, 5)) * (rng.random((4, 5)) < 0.6)
        Y, tasks = (np.einsum("tnm,tm->tn", F, W) + 0.5 * N((4, 26)) > 0)[..., None].astype(float), np.arange(4)[::-1]
        objective = sparsedis.binary_objective(method, 0.1, 0.02, 0.2, 0.5, 16)

        def f(arrays):
            params = {"head.W": arrays["W"]} if "W" in arrays else {}
            loss, (dF,), dparams, info = objective(0.4, [arrays["F"].reshape(-1, 5)], (Y, tasks), params)
            return loss, lambda: {"F": dF.reshape(F.shape), **({"W": dparams["head.W"]} if "W" in arrays else {})}, [info["w"] != 0]
        return f"binary tasks, {method}", f, {"F": F} | ({"W": N((6, 5))} if method == "erm" else {})

    yield binary("sharing")
    yield binary("erm")
    yield layer("normalise by the support", lambda x: sparsedis.normalise(x, n_support=5), sparsedis.normalise_backward, x=N((3, 8, 4)))
    Y_plain = np.eye(3)[rng.integers(3, size=12)]
    yield "plain cross-entropy", lambda arrays: (lambda told: (told[0], lambda: {"F": told[1][0]}, []))(
        sparsedis.plain_objective(0.5, [arrays["F"]], Y_plain, {})), {"F": N((12, 3))}

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
    def few_shot(title, lam, m=8, **learned):
        name = title.split(",")[0]
        Y = np.eye(3)[np.tile(np.arange(14) % 3, (2, 1))]                   # 9 support and 5 query samples
        start = {"F": N((2, 14, m)) + Y @ N((2, 3, m)), "scale": np.array(1.3)} | {k: np.array(v) for k, v in learned.items()}

        def f(arrays):
            params = {k: v for k, v in arrays.items() if k != "F"}
            loss, dF, dparams, info = sparsedis.EPISODE_HEADS[name](arrays["F"], Y, lam, 9, params, smoothing=0.1)
            return loss, lambda: {"F": dF, **dparams}, [info["w"] != 0, info.get("Lam", 0) > 0]
        return f"episode {title}", f, start

    yield few_shot("svm, lam1 and lam2 learned", (2.0, 3.0), log_lam1=0.1, log_lam2=-0.2)
    yield few_shot("svm, dense", (0.0, 3.0))
    yield few_shot("ridge", np.array([0.5, 0.1]))
    yield few_shot("logistic", np.array([0.1, 0.05]))
    yield few_shot("prototypes", None)
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


def gradcheck():
    """The table of all cases; True where every derivative passes and the control fails."""
    print(f"{'derivative':<40}{'error':>10}{'Taylor rate':>13}   result")
    good = True
    for name, f, arrays in gradient_cases():
        r = metrics.check_gradient(f, arrays)
        ok = r["error"] <= 1e-6 and r["rate"] >= 1.9 and r["same"]
        good &= ok
        print(f"{name:<40}{r['error']:>10.1e}{r['rate']:>13.2f}   {'pass' if ok else f'FAIL {r}'}", flush=True)
    name, f, arrays = wrong_on_purpose()
    r = metrics.check_gradient(f, arrays)
    caught = r["error"] > 1e-6
    print(f"{name:<40}{r['error']:>10.1e}{r['rate']:>13.2f}   {'caught, as it must be' if caught else 'NOT CAUGHT'}")
    return good and caught
