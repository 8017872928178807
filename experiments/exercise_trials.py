"""exercise_trials.py -- what the eight exercises ask, and the words for what goes wrong.

    theirs           name -> function of one task: F (n, m), y (n,), no leading T
    trial            (title, f): f() returns what is wrong, in words, or None

A function is right by its optimality conditions, or because gradcheck's differences say so, on its
cases. Then exercise_words.py says what is wrong: beside each exercise are its usual mistakes.
"""
import functools
from collections import namedtuple

import numpy as np

import solvers
import sparsedis
from experiments import episode_networks, gradcheck
from experiments.exercise_words import as_numbers, fault, gradient_fault, near, parts

# title; functions of docs/ and code to read; ours (name -> function); trials(theirs); hints, words
# -> titles of the trials of which some fail, and no others, when that is the reason
Exercise = namedtuple("Exercise", "name title read ours trials hints", defaults=({},))


# ------------------------------------------------------------------------------ 1 soft_threshold

POINTS = {  # title: a, tau
    "a above tau": ([1.5, 4.0], 1.0),
    "a below -tau": ([-1.5, -4.0], 1.0),
    "a between, 0 and the thresholds": ([0.4, -0.7, 0.0, 1.0, -1.0], 1.0),
    "tau = 0": ([-2.0, 0.0, 3.0], 0.0),
    "a matrix": ([[-3.0, 0.2, 1.1], [0.0, 2.5, -0.4]], 0.7)}


def threshold_trials(theirs):
    """soft_threshold(a, tau) at points."""
    for title, (a, tau) in POINTS.items():
        yield title, functools.partial(
            threshold_fault, theirs["soft_threshold"], np.array(a), tau)


def threshold_fault(f, a, tau):
    """What is wrong at a; right is what minimises (x - a)^2/2 + tau |x|."""
    x = as_numbers(f(a, tau), a)
    slope = x - a
    violation = np.where(x != 0, np.abs(slope + tau * np.sign(x)), np.abs(slope) - tau)
    if np.max(violation) <= 1e-9:
        return None
    size, sign = np.abs(a), np.sign(a)
    return fault(x, solvers.soft_threshold(a, tau), {
        "is right for a > 0 only": np.maximum(a - tau, 0),
        "is never below 0: where is the sign of a?": np.maximum(size - tau, 0),
        "goes past 0 where |a| < tau: there the minimum is at 0": sign * (size - tau),
        "keeps what is beyond tau as it is: that is the hard threshold": a * (size > tau),
        "shrinks in proportion, and makes nothing 0: that is ridge's": a / (1 + tau),
        "moves away from 0, by tau": sign * (size + tau) * (size > tau),
        "shrinks by tau/2: is it (x - a)^2/2?": sign * np.maximum(size - tau / 2, 0),
        "shrinks by 2 tau: is it (x - a)^2/2?": sign * np.maximum(size - 2 * tau, 0)})


# ------------------------------------------------------------------------------ 2 lasso


def lasso_trials(theirs):
    """lasso(F, y, lam) on problems, lasso_gap(F, y, lam, w) at weights right and wrong."""
    for title, (F, y, lam) in lasso_problems().items():
        yield title, functools.partial(lasso_fault, theirs["lasso"], F, y, lam)
    F, y, _ = lasso_problems()[CORRELATED]
    for title, points in gap_points(F, y).items():
        yield title, functools.partial(gaps_fault, theirs["lasso_gap"], F, points)


def gap_points(F, y):
    """title -> (y, lam, w), at which each feature is the worst, with either sign, somewhere."""
    top = lasso_lambda_max(F, y)
    lam = 0.02 * top                                                # where weights have both signs
    right = lasso_of(F, y, lam)
    moved = [right + step for step in 0.1 * np.vstack([np.eye(6), -np.eye(6)])]
    return {
        "lasso_gap: the solution": [(y, lam, right)],
        "lasso_gap: w = 0": [(y, lam, 0 * right), (-y, lam, 0 * right)],
        "lasso_gap: signs turned": [(y, lam, -right)],
        "lasso_gap: a weight moved": [(y, lam, w) for w in moved],
        "lasso_gap: y and w turned": [(-y, lam, -w) for w in moved],
        "lasso_gap: half the penalty": [(y, lam, lasso_of(F, y, lam / 2))],
        "lasso_gap: no penalty": [(y, lam, lasso_of(F, y, 0.0))],
        "lasso_gap: lam above lambda_max": [(y, 1.5 * top, 0 * right)]}


IN_SINGLE = 1e-6  # a certificate of 0, as single precision gives it
CORRELATED, LENGTHS = "correlated features", "features of other lengths"


@functools.cache
def lasso_problems():
    """title -> F (n, m), y (n,), lam."""
    F, y = (a[0] for a in gradcheck.regression(np.random.default_rng(5), 1, 30, 6, 0.9).values())
    F = F / np.sqrt(np.mean(F * F, axis=0))                         # F_j'F_j/n = 1
    apart = np.linalg.qr(F)[0] * 30 ** 0.5
    scaled = apart * [0.3, 1, 2, 0.5, 1, 3]
    top = lasso_lambda_max(F, y)
    return {
        "uncorrelated features": (apart, y, 0.2 * lasso_lambda_max(apart, y)),
        LENGTHS: (scaled, y, 0.2 * lasso_lambda_max(scaled, y)),
        CORRELATED: (F, y, 0.1 * top), "lam = 0": (F, y, 0.0),
        "lam above lambda_max": (F, y, 1.5 * top)}


def lasso_of(F, y, lam):
    """solvers.lasso of one task."""
    return solvers.lasso(F[None], y[None], lam)[0][0]


def lasso_lambda_max(F, y):
    """solvers.lasso_lambda_max of one task."""
    return float(solvers.lasso_lambda_max(F[None], y[None])[0])


def gap_of(F, y, lam, w):
    """solvers.lasso_gap of one task."""
    G, c = solvers.gram(F[None]), solvers.correlations(F[None], y[None])
    gap, _ = solvers.lasso_gap(w[None], G, c, np.array([lam]), lasso_lambda_max(F, y))
    return float(gap[0])


def lasso_fault(f, F, y, lam):
    """What is wrong with weights."""
    w = as_numbers(f(F, y, lam), F[0])
    gap = gap_of(F, y, lam, w)
    if gap <= 1e-6:
        return None
    n, free = len(y), lasso_of(F, y, 0.0)
    other = {
        "is the solution of n lam: is the square divided by 2 n?": n * lam,
        "is the solution of lam/n: is the square divided by 2 n?": lam / n,
        "is the solution of 2 lam: is the square divided by 2?": 2 * lam,
        "is the solution of lam/2: is the square divided by 2?": lam / 2}
    mistakes = {words: lasso_of(F, y, wrong) for words, wrong in other.items()}
    mistakes = {words: w for words, w in mistakes.items() if np.any(w)}
    mistakes |= {
        "is the solution without penalty": free,
        "is ridge's solution": solvers.ridge(F[None], y[None], lam)[0],
        "is the least-squares solution, thresholded: right only where F'F/n is the identity":
            solvers.soft_threshold(free, lam)}
    unsolved = f"is no solution: it violates optimality by {gap:.0e} of lambda_max"
    known = fault(w, lasso_of(F, y, lam), mistakes)
    return known if known in mistakes or not np.any(w) else unsolved


def gaps_fault(f, F, points):
    """The first that is wrong with a certificate at some points."""
    return next(filter(None, (gap_fault(f, F, *point) for point in points)), None)


def gap_fault(f, F, y, lam, w):
    """What is wrong with a certificate at a point."""
    q = F.T @ (y - F @ w) / len(y)
    top = lasso_lambda_max(F, y)
    on = np.abs(q - lam * np.sign(w)) * (w != 0)
    off = np.maximum(np.abs(q) - lam, 0)
    each = np.where(w != 0, on, off)
    n = len(y)
    without_n = np.max(np.where(
        w != 0, np.abs(n * q - lam * np.sign(w)), np.maximum(np.abs(n * q) - lam, 0)))
    mistakes = {
        "looks at features that are used only: w = 0 would be called right": np.max(on) / top,
        "asks too little of features that are used: there q_j = lam sign(w_j)":
            np.max(off) / top,
        "does not look at features that are used": np.max(off * (w == 0)) / top,
        "is not divided by lambda_max, and so depends on the unit of y": np.max(each),
        "is a sum: one weight may hide behind many": np.sum(each) / top,
        "is a mean: one weight may hide behind many": np.mean(each) / top,
        "asks q_j = lam sign(w_j) of unused features, too: there |q_j| <= lam is enough":
            np.max(np.abs(q - lam * np.sign(w))) / top,
        "has the sign wrong at used features: there q_j = + lam sign(w_j)":
            np.max(np.where(w != 0, np.abs(q + lam * np.sign(w)), off)) / top,
        "lacks the 1/n of F'(y - F w)/n, and of lambda_max": without_n / (n * top),
        "lacks the 1/n of F'(y - F w)/n": without_n / top}
    return fault(f(F, y, lam, w), gap_of(F, y, lam, w), mistakes, rounding=IN_SINGLE)


# ------------------------------------------------------------------------------ 3 lasso_vjp


SUPPORTS = {  # title: eps, seed
    "every weight is used": (1e-3, 0), "some weights are 0": (0.3, 2),
    "one weight is left": (0.8, 1), "all weights are 0": (1.5, 2)}


def lasso_vjp_trials(theirs):
    """lasso_vjp(F, y, lam, w, dw) -> dF, dy, dlam."""
    for title, (eps, seed) in SUPPORTS.items():
        case_of = functools.partial(lasso_vjp_case, eps, seed)
        yield title, functools.partial(
            gradient_fault, case_of, theirs["lasso_vjp"], lasso_vjp, lasso_vjp_mistakes,
            {"n": 12, "m": 5})


def lasso_vjp_case(eps, seed, vjp):
    """gradcheck's case of a Lasso, with this vjp of one task."""
    def batched(F, y, lam, w, dw):
        out = vjp(F[0], y[0], float(lam[0]), w[0], dw[0])
        return [a[None] for a in parts(out, F=F[0], y=y[0], lam=0.0)]

    how = solvers.lasso, batched, solvers.lasso_lambda_max
    rng = np.random.default_rng(seed)
    return gradcheck.regression_case(rng, "lasso", how, 1, 12, 5, eps, correlation=0.5)


def lasso_vjp(F, y, lam, w, dw):
    """solvers.lasso_vjp of one task."""
    return [a[0] for a in solvers.lasso_vjp(F[None], y[None], lam, w[None], dw[None])]


def solved_on(S, A, b):
    """u with A_SS u_S = b_S, 0 off S."""
    u = np.zeros_like(b)
    u[S] = np.linalg.solve(A[np.ix_(S, S)], b[S])
    return u


def wrong_adjoints(G, S, dw, n):
    """What u is where its system is another one."""
    of_all = np.linalg.solve(G, dw)
    return {
        "u is taken on all features: off the support it is 0, and their rows leave the system":
            of_all,
        "u is that of all features' system, cut to the support: cut the system first": of_all * S,
        "u solves the system of all rows, with dw cut to the support: cut both":
            np.linalg.solve(G, dw * S),
        "A lacks its 1/n": solved_on(S, n * G, dw),
        "A is its diagonal alone": solved_on(S, np.diag(np.diag(G)), dw),
        "u is dw itself: A u = dw is still to be solved": dw,
        "u is dw on the support: A u = dw is still to be solved": dw * S,
        "u is A dw: A u = dw is to be solved": G @ dw}


def lasso_vjp_mistakes(F, y, lam, w, dw):
    """What dF, dy and dlam are where this or that is forgotten."""
    n, G, r = len(y), F.T @ F / len(y), y - F @ w
    u = solved_on(w != 0, G, dw)
    mistakes = {
        "F": {
            "is the part through y - F w alone: F is there twice, and the part of F' is missing":
                -np.outer(F @ u, w) / n,
            "is the part of F' alone: the part through y - F w is missing": np.outer(r, u) / n,
            "has r = F w - y in the first part: there it is y - F w":
                (-np.outer(r, u) - np.outer(F @ u, w)) / n,
            "adds the parts r u' and (F u) w': the second is subtracted":
                (np.outer(r, u) + np.outer(F @ u, w)) / n,
            "has w and u exchanged": (np.outer(r, w) - np.outer(F @ w, u)) / n},
        "y": {"lacks the 1/n": F @ u, "is F dw/n: u is not dw": F @ dw / n},
        "lam": {
            "lacks sign(w): right where weights are positive": -np.sum(u),
            "has the wrong sign": np.sum(np.sign(w) * u),
            "has a factor lam: lam s in lam has the derivative s": -lam * np.sum(np.sign(w) * u),
            "has w for sign(w), as ridge has": -np.sum(w * u)}}
    for words, wrong in wrong_adjoints(G, w != 0, dw, n).items():
        mistakes["F"][words] = (np.outer(r, wrong) - np.outer(F @ wrong, w)) / n
        mistakes["y"][words] = F @ wrong / n
        mistakes["lam"][words] = -np.sum(np.sign(w) * wrong)
        mistakes["lam"][f"{words}; and the sign is wrong"] = np.sum(np.sign(w) * wrong)
    return mistakes


# ------------------------------------------------------------------------------ 4, 5 layers


def batch_norm_trials(theirs):
    """batch_norm_backward(dout, x, g) -> dx, dg, db."""
    for title, shift, N in (("x of mean 0", 0.0, 8), ("x of any mean", 3.0, 8),
                            ("three samples", 1.0, 3)):
        case_of = functools.partial(batch_norm_case, shift, N)
        yield title, functools.partial(
            gradient_fault, case_of, theirs["batch_norm_backward"], batch_norm_backward,
            batch_norm_mistakes, {"N": N, "C": 4})


def batch_norm_case(shift, N, backward):
    """gradcheck's case of a batch norm of x (N, 4), with this backward."""
    rng = np.random.default_rng(N)
    x = rng.standard_normal((N, 4))
    arrays = {"x": x - x.mean(axis=0) + shift * np.arange(1, 5), "g": rng.standard_normal(4),
              "b": rng.standard_normal(4)}

    def forward(x, g, b):
        out, _ = episode_networks.batch_norm(x, g, b)
        return out, lambda dout: parts(backward(dout, x, g), x=x, g=g, b=b), []

    return gradcheck.output_case(rng, "batch_norm", forward, arrays)


def batch_norm_backward(dout, x, g):
    """episode_networks.batch_norm_backward from x itself."""
    _, cache = episode_networks.batch_norm(x, g, 0 * g)
    dx, grads = episode_networks.batch_norm_backward(dout, cache)
    return dx, grads["g"], grads["b"]


def batch_norm_mistakes(dout, x, g):
    """What dx and dg are where this or that is forgotten."""
    centred = x - x.mean(axis=0)
    variance = x.var(axis=0) + 1e-5
    deviation, bare, wide = variance ** 0.5, x.std(axis=0), (x.var(axis=0, ddof=1) + 1e-5) ** 0.5
    x_hat, d = centred / deviation, dout * g

    def dx_of(d, x_hat, deviation, mean=np.mean):
        return (d - mean(d, axis=0) - x_hat * mean(d * x_hat, axis=0)) / deviation

    return {
        "x": {
            "holds mean and deviation constant: both move with x": d / deviation,
            "lets the mean move with x, and not the deviation": (d - d.mean(axis=0)) / deviation,
            "lets the deviation move with x, and not the mean":
                dx_of(d, x_hat, deviation) + d.mean(axis=0) / deviation,
            "lacks the 1e-5 under the root": dx_of(d, centred / bare, bare),
            "divides by N - 1 in the variance: here by N": dx_of(d, centred / wide, wide),
            "has sums over samples where means are": dx_of(d, x_hat, deviation, np.sum),
            "adds the part along x_hat: it is subtracted":
                dx_of(d, x_hat, deviation) + 2 * x_hat * np.mean(d * x_hat, axis=0) / deviation,
            "lacks the factor g": dx_of(dout, x_hat, deviation),
            "is divided by the variance, not by the deviation": dx_of(d, x_hat, variance),
            "has the variance in the place of the deviation":
                dx_of(d, centred / variance, variance)},
        "g": {
            "lacks the 1e-5 under the root": np.sum(dout * centred / bare, axis=0),
            "divides by N - 1 in the variance: here by N": np.sum(dout * centred / wide, axis=0),
            "has a factor g: the slope of out in g is x_hat": np.sum(d * x_hat, axis=0),
            "is the sum of dout x: the scale g multiplies x_hat": np.sum(dout * x, axis=0),
            "is the sum of dout (x - mean): divide by the deviation":
                np.sum(dout * centred, axis=0),
            "has the variance in the place of the deviation":
                np.sum(dout * centred / variance, axis=0)},
        "b": {"has a factor g that the shift has not": d.sum(axis=0)}}


CONVOLUTIONS = {  # title: height, k, C, O, stride, pad; images are a step wider than high
    "1 x 1": (3, 1, 2, 3, 1, 0), "2 x 2, stride 2": (6, 2, 2, 3, 2, 0),
    "3 x 3": (5, 3, 2, 3, 1, 0), "3 x 3, padded": (5, 3, 2, 3, 1, 1),
    "4 x 4, stride 2, padded": (6, 4, 2, 3, 2, 1)}


def conv2d_trials(theirs):
    """conv2d_backward(dout, x, W, stride, pad) -> dx, dW, db."""
    for title, setting in CONVOLUTIONS.items():
        case_of = functools.partial(conv2d_case, setting)
        yield title, functools.partial(
            gradient_fault, case_of, theirs["conv2d_backward"], conv2d_backward, conv2d_mistakes,
            {"N": 5})


def conv2d_case(setting, backward):
    """gradcheck's case of a convolution of five images, with this backward."""
    height, k, C, O, stride, pad = setting
    rng = np.random.default_rng(height)
    shapes = {"x": (5, height, height + stride, C), "W": (k, k, C, O), "b": (O,)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def forward(x, W, b):
        out, _ = sparsedis.conv2d(x, W, b, stride, pad)
        return out, lambda dout: parts(backward(dout, x, W, stride, pad), x=x, W=W, b=b), []

    return gradcheck.output_case(rng, "conv2d", forward, arrays)


def conv2d_backward(dout, x, W, stride, pad):
    """sparsedis.conv2d_backward from x itself."""
    _, cache = sparsedis.conv2d(x, W, 0 * W[0, 0, 0], stride, pad)
    dx, grads = sparsedis.conv2d_backward(dout, cache)
    return dx, grads["W"], grads["b"]


def conv2d_mistakes(dout, x, W, stride, pad):
    """What dx, dW and db are where this or that is done instead."""
    turned = W[::-1, ::-1]
    _, dW, _ = conv2d_backward(dout, x, W, stride, pad)
    return {
        "x": {
            "has the kernel turned by 180 degrees once too often":
                conv2d_backward(dout, x, turned, stride, pad)[0],
            "is overwritten where windows overlap: add to what is there":
                overwritten(dout, W, x.shape, stride, pad)},
        "W": {"is turned by 180 degrees": dW[::-1, ::-1],
              "has rows and columns exchanged": dW.transpose(1, 0, 2, 3)},
        "b": {"is the sum over images alone, at one pixel": dout[:, 0, 0].sum(axis=0),
              "is a mean over images and pixels: the same b is added at all of them":
                  dout.mean(axis=(0, 1, 2))}}


def overwritten(dout, W, shape, stride, pad):
    """dx where each window replaces what others have left."""
    k, (N, H, width, C) = len(W), shape
    dx = np.zeros((N, H + 2 * pad, width + 2 * pad, C))
    for i in range(dout.shape[1]):
        for j in range(dout.shape[2]):
            rows, columns = (slice(stride * a, stride * a + k) for a in (i, j))
            dx[:, rows, columns] = np.einsum("no,abco->nabc", dout[:, i, j], W)
    return dx[:, pad:pad + H, pad:pad + width]


# ------------------------------------------------------------------------------ 6 norm_curvature


def curvature_trials(theirs):
    """norm_curvature(W, U, lam) -> (k, m)."""
    for title, k, lengths in (
            ("three outputs", 3, (1, 1, 1, 1)), ("columns of other lengths", 3, (0.2, 1, 3, 0.5)),
            ("a column is 0", 3, (1, 0, 2, 1)), ("one output", 1, (1, 2, 1, 0.5))):
        yield title, functools.partial(
            curvature_fault, theirs["norm_curvature"], k, np.array(lengths, dtype=float))


def curvature_fault(f, k, lengths):
    """What is wrong with the derivative of lam W_j/||W_j||: columns that are 0 stay 0."""
    on, lam = lengths > 0, 0.7
    rng = np.random.default_rng(k)
    W = solvers.directions(rng.standard_normal((1, k, len(lengths))))[0] * lengths
    if np.any(as_numbers(f(W, rng.standard_normal(W.shape), lam), W)[:, ~on]):
        return "is not 0 in a column where W_j = 0: it leaves the system"

    def all_columns(some):
        out = np.zeros(W.shape)
        out[:, on] = some
        return out

    def case_of(curvature):
        def forward(columns):
            def pull_back(dout):
                out = curvature(all_columns(columns), all_columns(dout), lam)
                return [as_numbers(out, W)[:, on]]

            return lam * solvers.directions(columns[None])[0], pull_back, []

        return gradcheck.output_case(np.random.default_rng(1), "norm", forward, {"U": W[:, on]})

    def mistakes(*args):
        wrong = curvature_mistakes(*args)
        return {"U": {words: a[:, on] for words, a in wrong.items()}}

    words = gradient_fault(case_of, f, norm_curvature, mistakes, {"lam": lam})
    return words and words.removeprefix("dU: ")                     # it gives one array only


def norm_curvature(W, U, lam):
    """solvers.group_curvature of features that are 0, times U; 0 where W_j = 0."""
    k, m = W.shape
    H, = solvers.group_curvature(np.zeros((1, 1, m)), np.array([lam]), W[None], "squared")
    return np.where(np.any(W, axis=0), (H @ U.T.ravel()).reshape(m, k).T, 0)


def curvature_mistakes(W, U, lam):
    """What the curvature is where this or that is forgotten."""
    size = np.linalg.norm(W, axis=0)
    size = np.where(size > 0, size, 1)
    v = W / size
    across = U - v * np.sum(v * U, axis=0)
    rows = np.linalg.norm(W, axis=1, keepdims=True)
    whole = W / np.linalg.norm(W)
    return {
        "keeps the part along W_j: a longer W_j has the same direction": lam * U / size,
        "is the part along W_j: what turns it is the part across": lam * (U - across) / size,
        "lacks 1/||W_j||": lam * across,
        "is divided by ||W_j||^2: v' is W_j'/||W_j|| already": lam * across / size ** 2,
        "adds the part along W_j: it is subtracted": lam * (2 * U - across) / size,
        "has the norm of rows: a group is a feature, a column of W":
            lam * (U - W / rows * np.sum(W / rows * U, axis=1, keepdims=True)) / rows,
        "has the norm of all of W: each column has its own":
            lam * (U - whole * np.sum(whole * U)) / np.linalg.norm(W),
        "projects with W_j, which has not norm 1": lam * (U - W * np.sum(W * U, axis=0)) / size}


# ------------------------------------------------------------------------------ 7 the SVM's dual


def svm_trials(theirs):
    """weights, step and gap of (F, Y, Lam, lam1, lam2)."""
    svm, right = svm_problem()
    even = np.full_like(right, 1 / right.shape[1])
    some = np.random.default_rng(2).dirichlet(np.ones(right.shape[1]), len(right))
    points = {"Lam even": even, "Lam random": some, "the solution": right}
    for title, Lam in (points | {"Lam = Y, V = 0": svm[1]}).items():
        yield f"weights: {title}", functools.partial(weights_fault, theirs["weights"], svm, Lam)
    for title, Lam in points.items():
        yield f"gap: {title}", functools.partial(svm_gap_fault, theirs["gap"], svm, Lam)
    yield "step: from Lam even", functools.partial(step_fault, theirs["step"], svm, even)
    yield "step: from Lam random", functools.partial(step_fault, theirs["step"], svm, some)
    yield "step: from Lam = Y", functools.partial(step_fault, theirs["step"], svm, svm[1])
    yield "step: at the solution", functools.partial(stay_fault, theirs["step"], svm, right)
    small, _ = svm_problem(0.1)
    yield "weights: lam2 = 0.1", functools.partial(weights_fault, theirs["weights"], small, even)
    yield "gap: lam2 = 0.1", functools.partial(svm_gap_fault, theirs["gap"], small, even)
    yield "100 steps, lam2 = 0.1", functools.partial(
        steps_fault, theirs["step"], small, even, 100, np.inf)
    yield "5,000 steps", functools.partial(steps_fault, theirs["step"], svm, even)


@functools.cache
def svm_problem(lam2=3.0):
    """(F, Y, lam1, lam2) of one task of three classes, and its Lam."""
    rng = np.random.default_rng(0)
    Y = gradcheck.classes(rng, 1, 15, 3)
    F = rng.standard_normal((1, 15, 6)) + Y @ rng.standard_normal((1, 3, 6))
    lam1 = float(0.2 * solvers.svm_lambda_max(F, Y)[0])
    _, Lam, _ = solvers.group_svm(F, Y, lam1, lam2)
    return (F[0], Y[0], lam1, lam2), Lam[0]


def svm_point(F, Y, Lam, lam1, lam2):
    """W (k, m) and grad_D (n, k) of solvers.svm_primal, of one task."""
    lams = np.array([lam1]), np.array([lam2])
    _, W, grad_D = solvers.svm_primal(solvers.svm_problem(F[None], Y[None], *lams), Lam[None])
    return W[0], grad_D[0]


def svm_weights(*point):
    """W that belongs to Lam, (k, m)."""
    return svm_point(*point)[0]


def svm_primal(W, F, Y, lam1, lam2):
    """P(W) of [L23, (81)]."""
    Z = F @ W.T
    hinge = np.max(1 - Y + Z, axis=1) - np.sum(Y * Z, axis=1)
    return hinge.sum() + lam1 * np.linalg.norm(W, axis=0).sum() + lam2 / 2 * np.sum(W * W)


def svm_dual(F, Y, Lam, lam1, lam2):
    """D(Lam) of [L23, (10)], with its 1/2."""
    W = svm_weights(F, Y, Lam, lam1, lam2)
    return lam2 / 2 * np.sum(W * W) + np.sum(Y * Lam)


def svm_gap(F, Y, Lam, lam1, lam2):
    """P(W) + D(Lam) - n, as the sum that solvers.svm_gap makes of it: <Lam, slacks>."""
    _, grad_D = svm_point(F, Y, Lam, lam1, lam2)
    return np.sum(Lam * solvers.slacks(grad_D[None])[0])


def svm_step(F, Y, Lam, lam1, lam2):
    """A projected step down D, of length 1/L, L = ||F||^2/lam2 bounding its curvature."""
    _, grad_D = svm_point(F, Y, Lam, lam1, lam2)
    L = np.linalg.norm(F, 2) ** 2 / lam2
    return solvers.project_simplex(Lam - grad_D / L)


def weights_fault(f, svm, Lam):
    """What is wrong with the weights at a dual point."""
    F, Y, lam1, lam2 = svm
    V = (Y - Lam).T @ F
    block = functools.partial(solvers.block_soft_threshold, axis=0)
    return fault(f(F, Y, Lam, lam1, lam2), svm_weights(F, Y, Lam, lam1, lam2), {
        "has V of Lam - Y: the label pulls, the others push": -block(V, lam1) / lam2,
        "is not divided by lam2": block(V, lam1),
        "is V/lam2: without the threshold lam1": V / lam2,
        "divides by lam2 first, and then the threshold is lam1/lam2": block(V / lam2, lam1),
        "is not 0 where ||V_j|| <= lam1: cut it there":
            (V - lam1 * solvers.directions(V[None])[0]) / lam2,
        "thresholds the rows: a group is a feature, a column":
            solvers.block_soft_threshold(V, lam1, axis=1) / lam2,
        "thresholds each number by itself: groups go to 0 as one":
            solvers.soft_threshold(V, lam1) / lam2})


def svm_gap_fault(f, svm, Lam):
    """What is wrong with the gap at a dual point."""
    F, Y, lam1, lam2 = svm
    W, n = svm_weights(F, Y, Lam, lam1, lam2), len(F)
    P, D = svm_primal(W, F, Y, lam1, lam2), svm_dual(F, Y, Lam, lam1, lam2)
    square, Z = lam2 / 2 * np.sum(W * W), F @ W.T
    plain = np.sum(np.max(Z, axis=1) - np.sum(Y * Z, axis=1))
    hinge = P - lam1 * np.linalg.norm(W, axis=0).sum() - square
    others = np.sum(np.max(np.where(Y, -np.inf, 1 + Z), axis=1) - np.sum(Y * Z, axis=1))
    return fault(f(F, Y, Lam, lam1, lam2), svm_gap(F, Y, Lam, lam1, lam2), {
        "has a square without its 1/2: D's, as the paper's (10), or P's": P + D - n + square,
        "lacks <Y, Lam> in D": P + square - n,
        "lacks the - n: min P = n - min D": P + D,
        "has D with the wrong sign: min P = n - min D": P - D - n,
        "has a hinge without its margin 1 - Y": P - hinge + plain + D - n,
        "leaves the own class out of the max: there it is 0, the least a hinge can be":
            P - hinge + others + D - n,
        "has the mean of hinges for their sum": P - hinge + hinge / n + D - n,
        "lacks lam1 sum ||W_j|| in P": hinge + square + D - n}, rounding=n * IN_SINGLE)


def step_fault(f, svm, Lam):
    """What is wrong with a step from a dual point."""
    F, Y, lam1, lam2 = svm
    new = as_numbers(f(F, Y, Lam, lam1, lam2), Lam)
    if np.min(new) < -1e-9:
        return "leaves the simplex: numbers below 0"
    if not np.allclose(new.sum(axis=1), 1):
        return f"leaves the simplex: rows sum to {new.sum(axis=1).min():.2f} and more, expected 1"
    before, after = svm_dual(F, Y, Lam, lam1, lam2), svm_dual(F, Y, new, lam1, lam2)
    if after > before + 1e-9:
        uphill = np.sum((new - Lam) * svm_point(F, Y, Lam, lam1, lam2)[1]) > 0
        return ("goes up D: is the gradient Y - F W', and is D made less?" if uphill else
                "goes too far: D rises; a step of at most 1/L is safe")
    return None if after < before - 1e-9 else "does not lower D"


def stay_fault(f, svm, Lam):
    """What is wrong with a step from the solution, which should stay there."""
    F, Y, lam1, lam2 = svm
    new = as_numbers(f(F, Y, Lam, lam1, lam2), Lam)
    away = np.abs(new - Lam).max()
    if away <= 1e-6:
        return None
    return (f"moves by {away:.2g}: is the gradient Y - F W', and the way back to the simplex its "
            "nearest point?")


def steps_fault(f, svm, Lam, steps=5000, enough=1e-3):
    """What is wrong with many steps: D should never rise, and the gap end below `enough`."""
    F, Y, lam1, lam2 = svm
    heights = []
    for _ in range(steps):
        new = as_numbers(f(F, Y, Lam, lam1, lam2), Lam)
        heights.append(svm_dual(F, Y, new, lam1, lam2))
        if near(new, Lam, 1e-12):
            break
        Lam = new
    left = svm_gap(F, Y, Lam, lam1, lam2)
    if max(np.diff(heights), default=0) > 1e-6:
        return (f"end at a gap of {left:.2g}: D goes up and down; where gradient and nearest point "
                "are right, a step of at most 1/L is safe, L = ||F||^2/lam2")
    if left > enough:
        return f"end at a gap of {left:.2g}: steps that are too short, or to another end"


# ------------------------------------------------------------------------------ 8 sparse_basis


def sparse_trials(theirs):
    """sparse_basis(W) -> Q, an orthogonal (m, m)."""
    for title, m, T, noise in (
            ("two features", 2, 100, 0.0), ("five features", 5, 300, 0.0),
            ("five features, noisy weights", 5, 300, 0.05)):
        yield title, functools.partial(sparse_fault, theirs["sparse_basis"], m, T, noise)


def mixed_weights(m, T, noise):
    """Sparse weights S (T, m), and W = S Q' mixed by an orthogonal Q, with noise."""
    rng = np.random.default_rng(m)
    on = rng.random((T, m)) < 0.3
    on[np.arange(T), rng.integers(m, size=T)] = True
    S = rng.standard_normal((T, m)) * on
    Q = np.linalg.qr(rng.standard_normal((m, m)))[0]
    return S, S @ Q.T + noise * rng.standard_normal((T, m)), Q


def sparse_basis(W):
    """solvers.sparse_rotation on white features, made orthogonal."""
    M, _ = solvers.sparse_rotation(W, np.eye(W.shape[1]), width=0.1)
    U, _, Vt = np.linalg.svd(np.linalg.inv(M).T)
    return U @ Vt


TOLERANCE = 1e-3  # of a cosine: 2.5 degrees


def sparse_fault(f, m, T, noise):
    """What is wrong with a basis: each column should be a column of the true Q, up to its sign."""
    _, W, true = mixed_weights(m, T, noise)
    Q = as_numbers(f(W), true)
    if np.abs(Q.T @ Q - np.eye(m)).max() > 1e-6:
        return "is not orthogonal: Q'Q is not the identity"
    if missed(Q, true) <= TOLERANCE:
        return None
    if missed(Q.T, true) <= TOLERANCE:
        return "is the transpose: W Q is asked to be sparse, not W Q'"
    _, principal = np.linalg.eigh(W.T @ W)
    found = int(np.sum(np.max(np.abs(true.T @ Q), axis=0) > 1 - TOLERANCE))
    dense = np.abs(W @ Q).sum() > np.abs(W).sum()
    off = np.degrees(np.arccos(1 - missed(Q, true)))
    return next(words for words, so in {
        "is the identity: nothing is turned": near(np.abs(Q), np.eye(m), 1e-3),
        "is that of principal components: they make loadings uncorrelated, not sparse":
            missed(Q, principal) <= 1e-3,
        "makes loadings dense: is what you minimise really lower where they are sparse?": dense,
        f"comes within {off:.0f} degrees of every direction: on to the least sum of |W Q|; other "
        "measures of sparsity, such as varimax's, have their optimum beside it": off < 20,
        f"finds {found} of {m} directions: a local optimum, or too early an end; try more starts "
        "and steps, and keep the best": True}.items() if so)


def missed(Q, true):
    """How far the columns of Q are from those of another basis, up to order and sign."""
    C = np.abs(true.T @ Q)
    return float(1 - min(C.max(axis=0).min(), C.max(axis=1).min()))


# ------------------------------------------------------------------------------ all of them

EXERCISES = {
    1: Exercise(
        "soft_threshold", "the minimum of (x - a)^2/2 + tau |x|",
        "solvers.soft_threshold; docs/derivations.md, 1",
        {"soft_threshold": solvers.soft_threshold}, threshold_trials),
    2: Exercise(
        "lasso", "a Lasso by coordinate descent, and its certificate",
        "solvers.coordinate_descent_step, lasso_violation; docs/derivations.md, 2",
        {"lasso": lasso_of, "lasso_gap": gap_of}, lasso_trials,
        {"where features have another length: is the step divided by G_jj = F_j'F_j/n?": [LENGTHS],
         "where features are correlated: does a weight's step see the others' last ones, and are "
         "there enough sweeps?": [CORRELATED, "lam = 0"]}),
    3: Exercise(
        "lasso_vjp", "the gradient through the solution of a Lasso",
        "solvers.lasso_vjp, pull_back; docs/derivations.md, 0 and 2",
        {"lasso_vjp": lasso_vjp}, lasso_vjp_trials,
        {"where every weight is 0: no u is left, and all gradients are 0": ["all weights are 0"],
         "where a weight is 0: is u zero off the support, and does the system have the support's "
         "rows and columns alone?":
            ["some weights are 0", "one weight is left", "all weights are 0"]}),
    4: Exercise(
        "batch_norm_backward", "a batch normalisation, backward",
        "sparsedis.normalise_backward, episode_networks.batch_norm_backward; "
        "docs/derivations.md, 8",
        {"batch_norm_backward": batch_norm_backward}, batch_norm_trials,
        {"where x has a mean: is it x_hat, with the mean taken off, everywhere?":
            ["x of any mean", "three samples"]}),
    5: Exercise(
        "conv2d_backward", "a convolution, backward",
        "sparsedis.conv2d, conv2d_backward; docs/derivations.md, 8",
        {"conv2d_backward": conv2d_backward}, conv2d_trials,
        {"with padding: pad x before, and cut the border of dx off after":
            ["3 x 3, padded", "4 x 4, stride 2, padded"],
         "with a stride: window i begins at row stride * i":
            ["2 x 2, stride 2", "4 x 4, stride 2, padded"],
         "where windows overlap: a pixel's gradient is the sum over all windows that it is in":
            ["3 x 3", "3 x 3, padded", "4 x 4, stride 2, padded"]}),
    6: Exercise(
        "norm_curvature", "the curvature of group Lasso's penalty",
        "solvers.group_curvature; docs/derivations.md, 1 and 4",
        {"norm_curvature": norm_curvature}, curvature_trials,
        {"where columns have another length: has each its own norm?":
            ["columns of other lengths", "a column is 0", "one output"]}),
    7: Exercise(
        "svm_dual", "the group-Lasso SVM's dual: weights, a step on the simplex, the gap",
        "solvers, from \"group-Lasso SVM\" on; docs/derivations.md, 5",
        {"weights": svm_weights, "step": svm_step, "gap": svm_gap}, svm_trials),
    8: Exercise(
        "sparse_basis", "a rotation that makes tasks' weights sparse",
        "solvers.sparse_rotation; docs/derivations.md, 10",
        {"sparse_basis": sparse_basis}, sparse_trials)}
