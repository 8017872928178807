"""gradcheck.py -- every derivative that is derived by hand, against central differences.

    python run.py gradcheck                  the table of all cases, the last one wrong on purpose
    check_gradient(f, arrays) -> Check       the same for a function of your own

    f(arrays) -> loss, gradients, pattern    a function of a dict, name -> float64 array
        gradients()                          dL/da for each array a, a dict of the same keys
        pattern                              masks: which weights are not zero, what a ReLU passes;
                                             f is smooth as long as they stay the same
    h = 1e-5                                 the step of a difference
    out, dout                                the output of a layer or a solver, dL/d out

First the checker, then the cases: layers, encoders, solvers, heads, few-shot episodes, objectives.
A case is a small problem of random numbers. What is an input of f is what the derivative is taken
in; all else, such as the lam of a head, is a constant.
"""
import dataclasses
import functools
import itertools
from collections import namedtuple

import numpy as np
from numpy.linalg import norm

import solvers
import sparsedis
from experiments import episode_networks, inner_problems, penalties, sharing, sharing_features
from experiments.episode_heads import EPISODE_HEADS
from experiments.episode_networks import Residual, conv4, resnet12
from experiments.sharing_solver import sparse_sharing, sparse_sharing_vjp

# ------------------------------------------------------------------------------ the checker


# What check_gradient finds; g is the gradient of f, g_fd that of differences.
#     errors   name -> |g - g_fd| / max(|g|, |g_fd|, 1e-6 |all g|), on the entries looked at;
#              "all entries" -> that of <g, v>, v random of all entries, relative to |all g|
#     norms    name -> (|g|, |g_fd|)
#     error    the worst of the errors
#     rate     log2 of how the remainder of the linear model falls as a step halves; 2 if g is right
#     same     whether the pattern stayed the same under every difference
Check = namedtuple("Check", "errors norms error rate same")


def passes(check):
    """Whether a gradient is right, as far as differences in double precision can tell."""
    return check.error <= 1e-6 and check.rate >= 1.9 and check.same


def check_gradient(f, arrays, h=1e-5, entries=20, seed=0):
    """A Check of a gradient: differences on `entries` random entries of each array, and, so that no
    entry goes unseen, a difference and a Taylor test along a random direction of all.

    Where a step changes the pattern, a tenth of it is taken, at most three times.
    """
    rng = np.random.default_rng(seed)
    loss, gradients, pattern = f(arrays)
    grads = gradients()
    line = functools.partial(along, f, arrays, pattern)
    picked, same = {}, True
    for name, a in arrays.items():
        index = rng.permutation(a.size)[:entries]
        g_fd, kept = central_differences(line, name, a.shape, index, h)
        picked[name] = np.reshape(grads[name], -1)[index], g_fd
        same = same and kept
    v = {name: rng.standard_normal(a.shape) for name, a in arrays.items()}
    slope = sum(float(np.sum(grads[name] * v[name])) for name in arrays)
    rate, kept = taylor_rate(line, v, slope, float(loss))
    error, kept_too = slope_error(line, v, slope, grads)
    norms = {name: (norm(g), norm(g_fd)) for name, (g, g_fd) in picked.items()}
    errors = relative_errors(picked) | {"all entries": error}
    worst = float(np.max(list(errors.values())))                    # NaN, where one is
    return Check(errors, norms, worst, rate, same and kept and kept_too)


def along(f, arrays, pattern, direction, steps):
    """f(arrays + t direction) for each t of steps, all of them shrunk until the pattern stays.

    Returns the losses, by how much the steps were shrunk, and whether that sufficed.
    """
    for shrink in (1, 0.1, 0.01, 0.001):
        found = [f(moved(arrays, direction, shrink * t)) for t in steps]
        same = all(equal(pattern, there) for _, _, there in found)
        if same:
            break
    return [float(loss) for loss, _, _ in found], shrink, same


def moved(arrays, direction, t):
    """arrays + t direction; direction may leave out some of them."""
    return arrays | {name: arrays[name] + t * d for name, d in direction.items()}


def equal(pattern, other):
    """Whether two lists of masks are the same."""
    return all(np.array_equal(a, b) for a, b in zip(pattern, other, strict=True))


def central_differences(line, name, shape, index, h):
    """(f(a + h e_i) - f(a - h e_i)) / (2 h) for some entries i of an array, and whether the pattern
    stayed."""
    slopes, same = [], True
    for i in index:
        e = np.zeros(shape)
        e.flat[i] = 1
        (up, down), shrink, kept = line({name: e}, (h, -h))
        slopes.append((up - down) / (2 * h * shrink))
        same = same and kept
    return np.array(slopes), same


def relative_errors(picked):
    """|g - g_fd| of each array, relative to its norm, or to a millionth of all norms together."""
    floor = max(1e-6 * size(g for g, _ in picked.values()), 1e-300)
    errors = {}
    for name, (g, g_fd) in picked.items():
        errors[name] = norm(g - g_fd) / max(norm(g), norm(g_fd), floor)
    return errors


def size(arrays):
    """The norm of all arrays together."""
    return norm([norm(a) for a in arrays])


def slope_error(line, v, slope, grads):
    """|<g, v> - (f(a + t v) - f(a - t v)) / (2 t)| / |g|, and whether the pattern stayed; <g, v> is
    about |g| for normal v."""
    t = 1e-4 / size(v.values())
    (up, down), shrink, same = line(v, (t, -t))
    return abs(slope - (up - down) / (2 * t * shrink)) / max(size(grads.values()), 1e-300), same


def taylor_rate(line, v, slope, loss):
    """log2 of r(t)/r(t/2), where r(t) = |f(a + t v) - f(a) - t <g, v>| is the remainder of the
    linear model; and whether the pattern stayed."""
    t = 1e-2 / size(v.values())
    (full, half), shrink, same = line(v, (t, t / 2))
    expected = shrink * t * slope
    remainder = abs(full - loss - expected)
    remainder_half = abs(half - loss - expected / 2)
    rate = np.inf if remainder_half == 0 else np.log2(remainder / remainder_half)
    return float(rate), same


# ------------------------------------------------------------------------------ two kinds of cases


# A derivative to check: its name, and what check_gradient takes.
Case = namedtuple("Case", "name f arrays")


def output_case(rng, title, forward, arrays):
    """A layer or a solver: forward(*arrays) -> out, pull_back, pattern.

    pull_back(dout) returns the gradients in the order of the arrays, and perhaps more. The loss is
    <R, out> + |out|^2/2 for random R, so that it has curvature in every output.
    """
    R = rng.standard_normal(forward(*arrays.values())[0].shape)

    def f(arrays):
        out, pull_back, pattern = forward(*arrays.values())
        loss = np.sum(R * out) + np.sum(out * out) / 2
        return loss, lambda: dict(zip(arrays, pull_back(R + out), strict=False)), pattern

    return Case(title, f, arrays)


def loss_case(title, fitted, **arrays):
    """A head: fitted(**arrays) -> loss, gradients (a dict), info, with the weights info["w"]."""
    def f(arrays):
        loss, grads, info = fitted(**arrays)
        return loss, lambda: grads, [info["w"] != 0, info.get("Lam", 0) > 0]

    return Case(title, f, arrays)


# ------------------------------------------------------------------------------ layers


def passed(f, cache):
    """The masks of a layer's function: where ReLU keeps its input, where a pixel is the largest."""
    if f is sparsedis.relu:
        return [cache]
    if f in (episode_networks.leaky_relu, episode_networks.larger):
        return [cache[0]]
    if f is episode_networks.max_pool2d:
        return [is_first for is_first, _ in cache[:2]]
    return []


def layer_case(rng, title, name, shapes, **settings):
    """The pair name, name_backward of sparsedis or episode_networks, on random arguments of the
    shapes given: the input first, then parameters."""
    module = sparsedis if hasattr(sparsedis, name) else episode_networks
    layer, backward = getattr(module, name), getattr(module, f"{name}_backward")
    arrays = {argument: rng.standard_normal(shape) for argument, shape in shapes.items()}

    def forward(*arrays):
        out, cache = layer(*arrays, **settings)

        def pull_back(dout):
            dx, grads = backward(dout, cache)
            return dx, *(grads[name] for name in list(shapes)[1:])

        return out, pull_back, passed(layer, cache)

    return output_case(rng, title, forward, arrays)


def layer_cases(rng):
    """Every pair of functions that a layer is made of."""
    case = functools.partial(layer_case, rng)
    yield case("linear", "linear", {"x": (4, 3), "W": (3, 5), "b": (5,)})
    yield case("relu", "relu", {"x": (4, 5)})
    yield case("leaky relu", "leaky_relu", {"x": (4, 5)})
    yield case("flatten", "flatten", {"x": (2, 3, 3, 2)})
    own = np.random.default_rng(1)                                  # other draws stay theirs
    yield layer_case(own, "trim, odd sides", "trim", {"x": (2, 5, 4, 3)})
    yield layer_case(own, "larger of two columns", "larger", {"x": (2, 5, 4, 3)}, axis=2)
    yield conv_case(rng, 8, k=4, C=1, O=5, stride=2, pad=1)
    yield conv_case(rng, 8, k=4, C=3, O=4, stride=2, pad=1)
    yield conv_case(rng, 6, k=2, C=3, O=4, stride=2, pad=0)
    yield conv_case(rng, 5, k=3, C=2, O=5, stride=1, pad=1)
    yield conv_case(rng, 5, k=3, C=4, O=2, stride=1, pad=1)
    yield case("max_pool2d, odd sides", "max_pool2d", {"x": (2, 5, 4, 3)})
    yield case("global_pool", "global_pool", {"x": (2, 3, 4, 3)})
    yield case("batch_norm", "batch_norm", {"x": (3, 2, 3, 4), "g": (4,), "b": (4,)})
    drop = {"key": (0, 0), "rate": 0.3, "ramp": 0, "size": 2}
    yield case("drop_block", "drop_block", {"x": (2, 5, 5, 3)}, **drop)
    yield case("normalise over samples", "normalise", {"F": (2, 7, 3)})
    yield case("normalise over features", "normalise", {"F": (2, 4, 6)}, norm="layer")
    yield case("normalise by the support", "normalise", {"F": (3, 8, 4)}, n_support=5)


def conv_case(rng, height, k, C, O, stride, pad):
    """A convolution from C to O channels with a k x k kernel, of two images, wider than high."""
    shapes = {"x": (2, height, height + stride, C), "W": (k, k, C, O), "b": (O,)}
    title = f"conv2d {k}x{k}/{stride}, {C} to {O} channels"
    return layer_case(rng, title, "conv2d", shapes, stride=stride, pad=pad)


# ------------------------------------------------------------------------------ encoders


def encoder_cases(rng):
    """Whole encoders, in their parameters; images as small as each takes them."""
    yield encoder_case(rng, "encoder mlp", sparsedis.mlp([5, 7, 6, 3], classes=2), (6, 5))
    yield encoder_case(rng, "encoder cnn", sparsedis.cnn(3), (2, 64, 64, 3))
    convnet = sparsedis.convnet(3, (9, 12, 2), (4, 5), 7)
    yield encoder_case(np.random.default_rng(1), "encoder convnet", convnet, (3, 9, 12, 2))
    small = conv4(2, 4)
    for layer in small.layer.layers:
        if hasattr(layer, "size"):
            layer.size = 2                          # batch norm across blocks of 2, 2 and 1 images
    yield encoder_case(rng, "encoder conv4", small, (5, 19, 16, 2))
    small = resnet12(2, (3, 4, 5, 6), drop=0.2, ramp=2)
    yield encoder_case(rng, "encoder resnet12", small, (3, 36, 34, 2))


def encoder_case(rng, title, encoder, shape):
    """An encoder on random inputs of a shape, its biases and scales off their starting values."""
    x = rng.random(shape)
    params, state = encoder.init(rng, dtype=np.float64)
    for name, a in params.items():
        if name.endswith((".b", ".g")):
            params[name] = a + 0.1 * rng.standard_normal(a.shape)

    def forward(*arrays):
        own = dict(zip(params, arrays, strict=True))
        F, cache, _ = encoder.forward(own, state, x)
        pattern = list(masks(encoder.layer, cache))
        return F, lambda dF: encoder.backward(cache, dF).values(), pattern

    return output_case(rng, title, forward, params)


def masks(layer, cache):
    """What ReLU and pooling pass on, wherever it lies in a layer made of layers and its cache."""
    if isinstance(layer, sparsedis.Sequential):
        for part, own in zip(layer.layers, cache, strict=True):
            yield from masks(part, own)
    elif isinstance(layer, sparsedis.Blocks):
        for block in cache:
            yield from masks(layer.layer, block)
    elif isinstance(layer, Residual):
        yield from masks(layer.branch, cache[0])
        yield from masks(layer.shortcut, cache[1])
    elif isinstance(layer, sparsedis.Layer):
        yield from passed(layer.f, cache)


# ------------------------------------------------------------------------------ solvers


def regression(rng, T, n, m, correlation=0.0):
    """F (T, n, m) of correlated features, and y (T, n) of sparse weights, with noise."""
    mix = np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation)
    F = rng.standard_normal((T, n, m)) @ mix.T
    w = rng.standard_normal((T, 1, m)) * (rng.random((T, 1, m)) < 0.5)
    return {"F": F, "y": np.vecdot(F, w) + 0.3 * rng.standard_normal((T, n))}


def classes(rng, T, n, k):
    """Random classes Y (T, n, k), one-hot, each as frequent as the others."""
    numbers = np.tile(np.arange(n) % k, (T, 1))
    return np.eye(k)[rng.permuted(numbers, axis=1)]


LASSO = solvers.lasso, solvers.lasso_vjp, solvers.lasso_lambda_max
RIDGE = sparsedis.fit_ridge, solvers.ridge_vjp, solvers.ridge_lambda_max
MCP = inner_problems.mcp, inner_problems.mcp_vjp, solvers.lasso_lambda_max


def regression_case(rng, title, how, T, n, m, eps, correlation=0.0):
    """A batch of regressions of one output, in F, y and, unless it is 0, lam; how is LASSO or
    RIDGE."""
    solve, vjp, lambda_max = how
    arrays = regression(rng, T, n, m, correlation)
    if eps:
        arrays["lam"] = eps * lambda_max(**arrays)

    def solved(F, y, lam=0.0):
        w, _ = solve(F, y, lam)
        return w, functools.partial(vjp, F, y, lam, w), [w != 0]

    return output_case(rng, title, solved, arrays)


def group_lasso_case(rng, loss, Y, m=5):
    """A batch of group Lassos with Y (T, n, 3), in F and lam."""
    F = rng.standard_normal((*Y.shape[:2], m))
    arrays = {"F": F, "lam": 0.3 * solvers.group_lasso_lambda_max(F, Y, loss)}

    def solved(F, lam):
        W, _ = solvers.group_lasso(F, Y, lam, loss)
        pull_back = functools.partial(solvers.group_lasso_vjp, F, Y, lam, W, loss=loss)
        return W, pull_back, [W != 0]

    return output_case(rng, f"group lasso, {loss}, k = 3", solved, arrays)


def svm_case(rng, title, n, m, k, share, lam2=1.0, T=2):
    """A batch of SVMs with lam1 at a share of its maximum, in F, lam2 and, unless it is 0, lam1."""
    Y = classes(rng, T, n, k)
    F = rng.standard_normal((T, n, m)) + 0.3 * Y @ rng.standard_normal((T, k, m))
    arrays = {"F": F, "lam2": np.full(T, lam2)}
    if share:
        arrays["lam1"] = share * solvers.svm_lambda_max(F, Y)

    def solved(F, lam2, lam1=0.0):
        W, Lam, _ = solvers.group_svm(F, Y, lam1, lam2)

        def pull_back(dW):
            dF, dlam1, dlam2 = solvers.group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW)
            return dF, dlam2, dlam1

        return W, pull_back, [W != 0, Lam > 0]

    return output_case(rng, title, solved, arrays)


def binary_tasks(rng, T, n, m):
    """F (T, n, m) and labels Y (T, n, 1) of 0 and 1 by sparse weights, with noise."""
    F, y = regression(rng, T, n, m).values()
    return F, (y[..., None] > 0).astype(float)


def sharing_case(rng):
    """Heads of four binary tasks that share features, in F, alpha and beta.

    J has several minima: from the one found first, the solver goes to the one nearby.
    """
    F, Y = binary_tasks(rng, 4, 25, 5)
    near, _ = sparse_sharing(F, Y, 0.1, 0.05)

    def solved(F, *lam):
        alpha, beta = (float(a) for a in lam)
        phi, _ = sparse_sharing(F, Y, alpha, beta, start=near, stages=1)
        pull_back = functools.partial(sparse_sharing_vjp, F, Y, alpha, beta, phi)
        return phi, pull_back, [phi != 0]

    arrays = {"F": F, "alpha": np.array(0.1), "beta": np.array(0.05)}
    return output_case(rng, "sparse sharing", solved, arrays)


def solver_cases(rng):
    """Every inner problem, in all that it depends on but the classes."""
    case = functools.partial(regression_case, rng)
    yield case("lasso", LASSO, 3, 9, 5, eps=0.2)
    yield case("lasso, correlation 0.95", LASSO, 3, 30, 6, eps=0.05, correlation=0.95)
    yield case("lasso, n < m", LASSO, 2, 6, 10, eps=0.3)
    yield regression_case(np.random.default_rng(6), "lasso, least norm, n < m", LASSO, 3, 4, 6, 0)
    yield regression_case(np.random.default_rng(3), "minimax concave penalty", MCP, 3, 20, 5, 0.2)
    yield case("ridge, n < m", RIDGE, 3, 4, 6, eps=0.2)
    yield regression_case(np.random.default_rng(4), "least norm, n < m", RIDGE, 3, 4, 6, eps=0)
    yield group_lasso_case(rng, "squared", rng.standard_normal((2, 12, 3)))
    yield group_lasso_case(rng, "logistic", classes(rng, 2, 20, 3))
    yield svm_case(rng, "group SVM, k = 2, n < m", 14, 20, 2, share=0.3)
    yield svm_case(rng, "group SVM, k = 4, n < m", 12, 30, 4, share=0.15, lam2=5.0)
    yield svm_case(rng, "group SVM without lam1, k = 3", 12, 4, 3, share=0)
    yield sharing_case(rng)


# ------------------------------------------------------------------------------ heads


def task_head_case(rng, name, n_support):
    """A head of HEADS on two tasks, fitted on all samples or on the first n_support of 20."""
    head, lambda_max = (sparsedis.HEADS | inner_problems.HEADS)[name]
    F, y = regression(rng, 2, 20, 4).values()
    labels = {
        "inner-group-lasso": rng.standard_normal((2, 20, 3)),
        "inner-group-logistic": classes(rng, 2, 20, 3)}
    y = labels.get(name, y)
    lam = 0.1 * lambda_max(F[:, :n_support], y[:, :n_support])

    def fitted(F):
        loss, dF, _, info = head(F, y, lam, n_support)
        return loss, {"F": dF}, info

    problem = 6 if n_support is None else 7
    return loss_case(f"head {name}, Problem ({problem})", fitted, F=F)


def subset_size_case(n_support):
    """Best subsets of two and of three features.  [L23, (4)]"""
    F, y = regression(np.random.default_rng(5), 2, 20, 4).values()

    def fitted(F):
        loss, dF, _, info = inner_problems.head_of_size(F, y, np.array([2, 3]), n_support)
        return loss, {"F": dF}, info

    problem = 6 if n_support is None else 7
    return loss_case(f"head subset-size, Problem ({problem})", fitted, F=F)


def learned_penalty_case(n_support):
    """A Lasso whose penalties are a common factor of fixed ones, in F and in that factor's log."""
    rng = np.random.default_rng(4)
    F, y = regression(rng, 3, 20, 4).values()
    lam = 0.1 * solvers.lasso_lambda_max(F, y)

    def fitted(F, log_lam):
        loss, dF, _, info = penalties.lasso_and_penalty(F, y, lam * np.exp(log_lam), n_support)
        return loss, {"F": dF, "log_lam": info["dlog_lam"]}, info

    problem = 6 if n_support is None else 7
    return loss_case(f"learned penalty, Problem ({problem})", fitted, F=F, log_lam=np.array(0.3))


def sets_case(rng, kind):
    """A Lasso for each of K = 3 tasks on two image sets, through the normalisation of features.

    m is odd: at an even m, normalising over features makes columns dependent.
    """
    F, y = rng.standard_normal((2, 10, 5)), rng.standard_normal((2, 3, 10))

    def fitted(F):
        loss, dF, info = sparsedis.head_on_sets(
            sparsedis.inner_lasso, lambda F, y: np.full(6, 0.4), F, y, eps=0.1, norm=kind)
        return loss, {"F": dF}, info

    return loss_case(f"head_on_sets, K = 3, {kind} norm", fitted, F=F)


def episode_case(rng, title, lam, m=8, **learned):
    """An episode of 9 support and 5 query samples for a head of EPISODE_HEADS, in F, the scale of
    the logits and what else the head learns."""
    name, _, _ = title.partition(",")
    Y = np.eye(3)[np.tile(np.arange(14) % 3, (2, 1))]
    F = rng.standard_normal((2, 14, m)) + Y @ rng.standard_normal((2, 3, m))
    own = {key: np.array(value) for key, value in {"scale": 1.3, **learned}.items()}

    def fitted(F, **params):
        head = EPISODE_HEADS[name]
        loss, dF, dparams, info = head(F, Y, lam, 9, params, smoothing=0.1)
        return loss, {"F": dF, **dparams}, info

    return loss_case(f"episode {title}", fitted, F=F, **own)


def binary_case(rng, method):
    """The objective of binary tasks in the middle of its rise, 16 of 26 samples the support.

    That of the Lasso is taken at eps = 0: its lam follows F, but is a constant of the derivative.
    """
    F, Y = binary_tasks(rng, 4, 26, 5)
    tasks = np.arange(4)[::-1]
    eps = 0.0 if method == "lasso" else 0.2
    objective = sharing.binary_objective(method, 0.1, 0.02, eps, 0.5, 16)
    heads = {"W": rng.standard_normal((6, 5))} if method == "erm" else {}

    def fitted(F, **heads):
        params = {f"head.{name}": a for name, a in heads.items()}
        loss, dFs, dparams, info = objective(0.4, [F.reshape(-1, 5)], (Y, tasks), params)
        grads = {name: dparams[f"head.{name}"] for name in heads}
        return loss, {"F": dFs[0].reshape(F.shape), **grads}, info

    return loss_case(f"binary tasks, {method}", fitted, F=F, **heads)


def plain_case(rng):
    """Cross-entropy of an encoder that puts out logits."""
    Y = classes(rng, 1, 12, 3)[0]

    def fitted(F):
        loss, dFs, _, _ = sharing_features.plain_objective(0.5, [F], Y, {})
        return loss, {"F": dFs[0]}, {"w": Y}

    return loss_case("plain cross-entropy", fitted, F=rng.standard_normal((12, 3)))


def head_cases(rng):
    """Every head and objective, in the features and in what the head learns."""
    for name, n_support in itertools.product(sparsedis.HEADS, (None, 14)):
        yield task_head_case(rng, name, n_support)
    own = np.random.default_rng(3)                                  # the cases below are as before
    for name, n_support in itertools.product(inner_problems.HEADS, (None, 14)):
        yield task_head_case(own, name, n_support)
    yield subset_size_case(None)
    yield subset_size_case(14)
    yield learned_penalty_case(None)
    yield learned_penalty_case(14)
    yield sets_case(rng, "batch")
    yield sets_case(rng, "layer")
    yield sets_case(rng, "none")
    yield episode_case(
        rng, "svm, lam1 and lam2 learned", (2.0, 3.0), log_lam1=0.1, log_lam2=-0.2)
    yield episode_case(rng, "svm, dense", (0.0, 3.0))
    yield episode_case(rng, "ridge", np.array([0.5, 0.1]))
    yield episode_case(rng, "logistic", np.array([0.1, 0.05]))
    yield episode_case(rng, "prototypes", None)
    for method in sharing.METHODS:
        yield binary_case(rng, method)
    yield plain_case(rng)


# ------------------------------------------------------------------------------ the command


def cases():
    """All cases, the same at every call."""
    rng = np.random.default_rng(0)
    yield from layer_cases(rng)
    yield from encoder_cases(rng)
    yield from solver_cases(rng)
    yield from head_cases(rng)


def wrong_on_purpose():
    """The negative control, which a check must refuse: the gradient of a Lasso in F, too long by
    one part in ten thousand."""
    right = next(solver_cases(np.random.default_rng(0)))

    def wrong(arrays):
        loss, gradients, pattern = right.f(arrays)
        grads = gradients()
        return loss, lambda: grads | {"F": (1 + 1e-4) * grads["F"]}, pattern

    return Case("control: lasso, dF wrong by 1e-4", wrong, right.arrays)


@dataclasses.dataclass(frozen=True)
class GradCheck:
    """Check every derivative against central differences, in half a minute.

    A derivative passes if its error is at most 1e-6 in double precision, the remainder of its
    linear model falls at a rate of at least 1.9, and no difference crosses a kink. The last row
    is wrong on purpose. Exit status 1 if a derivative fails, or if the wrong one is not caught.
    """


def gradcheck(config):
    """Print the table; returns the exit status."""
    print(f"{'derivative':<40}{'error':>10}{'Taylor rate':>13}   result")
    with sparsedis.cpu_threads(1):                  # small products: more threads would only wait
        good = all_pass()
        control = wrong_on_purpose()
        found = check_gradient(control.f, control.arrays)
    caught = found.error > 1e-6
    tell(control, found, "caught, as it must be" if caught else "NOT CAUGHT")
    return int(not (good and caught))


def all_pass():
    """Print a row for each case; returns whether all pass."""
    good = True
    for case in cases():
        found = check_gradient(case.f, case.arrays)
        tell(case, found, "pass" if passes(found) else f"FAIL {found}")
        good = good and passes(found)
    return good


def tell(case, found, verdict):
    """A row of the table."""
    print(f"{case.name:<40}{found.error:>10.1e}{found.rate:>13.2f}   {verdict}", flush=True)
