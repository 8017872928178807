"""solvers.py -- the inner problems: solve each one exactly, certify it, differentiate it exactly.

    T, n, m       tasks, samples a task, features: T = 64, n = 25, m = 6. T leads every array:
                  one call solves all tasks
    F  (T, n, m)  features           y  (T, n)     labels             w  (T, m)     weights
    k             outputs, k = 5     Y  (T, n, k)  their labels       W  (T, k, m)  their weights
    lam           strength of the penalty, a number or (T,)
    G  (T, m, m)  F'F/n, the Gram matrix                        c  (T, m)  F'y/n
    q  (T, m)     c - G w = F'(y - F w)/n, the correlation of each feature with what is left
    ST, BST       soft_threshold, block_soft_threshold (made of: thresholds)
    S  (T, m)     the support {j : w_j != 0}, a mask
    F_i, F_j, F'  a sample, a feature's column, the transpose
    dX            dL/dX for a loss L of the solution, with the shape of X
    u             the adjoint solution: curvature u = dw (U and dW; the SVM's u and dLam on a face)

In this order: Lasso; ridge; losses of k outputs; group Lasso; the group-Lasso SVM, from its dual;
its interior-point method; sparse rotation; what these are made of. An iterative solver returns a
certificate with its solution. Every vjp takes three steps, 1 curvature, 2 adjoint, 3 pull back (the
SVM's a step 0 before). Arrays may be NumPy's, CuPy's or PyTorch's, by array-api-compat.
Derivations: docs/derivations.md.

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023.
"""
import contextlib
import contextvars
import functools
import math
import os
import threading
from collections import namedtuple
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import numpy
from array_api_compat import array_namespace, device, is_numpy_array
from threadpoolctl import ThreadpoolController

# ------------------------------------------------------------------------------ Lasso


def lasso_lambda_max(F, y):
    """||F'y||_inf / n, (T,): from this lam on, the Lasso solution is w = 0.   [L23, App. D.2.3]"""
    F, y = check_shapes(F, y, ndim=2)
    xp = array_namespace(F)
    return xp.max(xp.abs(correlations(F, y)), axis=1)


def lasso(F, y, lam, max_iter=None):
    """argmin_w  ||y - F w||^2 / (2 n) + lam ||w||_1  for every task. [L23, Problem (6), inner]

    F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m), info with n_iter and, per task,
        gap        the largest violation of the optimality conditions, in units of lasso_lambda_max
        converged  gap <= 1e-12 in float64, 1e-5 in float32
    From w = 0, an iteration takes a step of proximal coordinate descent (the paper's solver, here
    greedy: the coordinate that violates optimality most), or two where m is large, then a Newton
    step on the support so found, which ends the search once that is right. Neither raises the
    objective, so no support with its signs is minimised over twice. A task that is not solved after
    max_iter iterations (100 + 20 m if not given) has converged False, as may one whose columns are
    correlated at 1 - 1e-6 or more: there q is not known to 1e-12. Where the minimiser is not unique
    one of them is returned: at lam = 0 that of least norm, ridge's, with the gap of ridge_residual,
    converged at the root of eps; with equal columns any, which has no derivative. Columns are
    expected to be of similar scale, as normalised features are. Raises ValueError as check_problem
    does.
    """
    F, y, lam = check_problem(F, y, lam, ndim=2)
    xp = array_namespace(F)
    G, c = gram(F), correlations(F, y)
    unit = safe_divisor(xp.max(xp.abs(c), axis=1))                  # lasso_lambda_max
    limit = 100 + 20 * F.shape[2] if max_iter is None else max_iter
    problem = G, c, lam, unit                                       # of lasso_gap and lasso_step
    # w <- lasso_step(w) until lasso_gap is small (made of: iterations)
    w, info = until_solved("lasso", lasso_step, lasso_gap, xp.zeros_like(c), problem, limit)
    return of_least_norm(F, y, lam, w, info) if bool(xp.any(lam == 0)) else (w, info)


def of_least_norm(F, y, lam, w, info):
    """Where lam = 0 and G is singular, of all minimisers ridge's, with its certificate."""
    xp = array_namespace(F)
    least, singular = solve_psd(gram(F), correlations(F, y))
    free = singular & (lam == 0)
    gap = xp.where(free, ridge_residual(F, y, lam, least), info["gap"])
    solved = xp.where(free, gap <= xp.finfo(F.dtype).eps ** 0.5, info["converged"])
    return xp.where(free[:, None], least, w), info | {"gap": gap, "converged": solved}


def lasso_gap(w, G, c, lam, unit):
    """The gap of each task, (T,); and what a step starts from: q and the violations v, (T, m)."""
    q = c - matvec(G, w)
    v = lasso_violation(q, lam, w)
    return array_namespace(w).max(v, axis=1) / unit, (q, v)


def lasso_violation(q, lam, w):
    """By how much each coordinate misses optimality, (T, m):
    q_j = lam sign(w_j) where w_j != 0, |q_j| <= lam elsewhere."""
    xp = array_namespace(w)
    lam = lam[:, None]
    return xp.where(w != 0, xp.abs(q - lam * xp.sign(w)), xp.maximum(xp.abs(q) - lam, 0))


def lasso_step(w, q, v, G, c, lam, unit):
    """Coordinate descent, and a Newton step on the support it leaves."""
    w, q = coordinate_descent_step(G, lam, w, q, v)
    if w.shape[1] > WIDE:                                           # a Newton step costs more
        w, q = coordinate_descent_step(G, lam, w, q, lasso_violation(q, lam, w))
    return newton_step(G, lam, w, q)


def coordinate_descent_step(G, lam, w, q, v):
    """Minimise over the coordinate j of largest v: w_j <- ST(q_j + G_jj w_j, lam) / G_jj."""
    xp = array_namespace(w)
    j = xp.argmax(v, axis=1)[:, None]                               # (T, 1)
    G_j = xp.take_along_axis(G, j[:, :, None], axis=1)[:, 0, :]     # row j
    G_jj, w_j, q_j = (xp.take_along_axis(a, j, axis=1) for a in (G_j, w, q))
    step = soft_threshold(q_j + G_jj * w_j, lam[:, None]) / safe_divisor(G_jj) - w_j
    is_j = xp.arange(w.shape[1], device=device(w)) == j             # (T, m)
    return xp.where(is_j, w + step, w), q - step * G_j


def newton_step(G, lam, w, q):
    """From w towards the minimiser with w's support and signs.

    A coordinate that reaches 0 ends the step (at lam = 0 none does).
    """
    xp = array_namespace(w)
    lam, s = lam[:, None], xp.sign(w)
    G_S, q_S, back = restrict(G, w != 0, q - lam * s)
    d = back(descent_direction(G_S, q_S))
    crosses = (s * (w + d) <= 0) & (w != 0) & (lam > 0)
    t_j = xp.where(crosses, w, 1) / xp.where(crosses, -d, 1)        # to w_j = 0
    t = xp.min(xp.where(crosses, t_j, 1), axis=1)[:, None]          # (T, 1)
    return xp.where(crosses & (t_j <= t), 0, w + t * d)


def lasso_vjp(F, y, lam, w, dw):
    """Pull dw back through the solution w(F, y, lam).  [L23, Sec. 3.4; Bertrand et al. 2022]

    On the support S (at lam = 0, where nothing is kinked, all features), with s = sign(w_S), it
    satisfies  R := F_S'(F_S w_S - y)/n + lam s = 0.
      1. curvature   A = dR/dw_S = F_S'F_S/n
      2. adjoint     A u_S = dw_S,  u = 0 off S
      3. pull back   dX = -(dR/dX)' u   for X = F, y, lam

    F (T, n, m), y (T, n), lam a number or (T,), w and dw (T, m)  ->  dF (T, n, m), dy (T, n),
    dlam (T,), at lam = 0 from above, where F'F is regular and no w_j is 0. Valid where S does not
    change; where F_S'F_S is singular, u is of least norm, and at lam = 0 w, too.
    """
    F, y, lam = check_shapes(F, y, lam, ndim=2)
    xp = array_namespace(F)
    S = (w != 0) | (lam == 0)[:, None]                              # (T, m)
    # 1 curvature
    A = gram(F)                                                     # (T, m, m)
    # 2 adjoint
    u, singular = solve_on_support(A, S, dw)                        # (T, m), (T,)
    # 3 pull back
    dF, dy = pull_back(F, y, w, u)
    dF = dF + through_range(F, A, w, dw, u, singular & (lam == 0))
    return dF, dy, -xp.sum(xp.sign(w) * u, axis=1)


def pull_back(F, y, w, u):
    """-(d/dX)' u of F'(F w - y)/n, for X = F and y: what Lasso and ridge share.

    With r = (y - F w)/n,  dy = F u/n  and  dF = r u' - dy w'.
    """
    n = F.shape[1]
    r, dy = (y - matvec(F, w)) / n, matvec(F, u) / n                # (T, n)
    return outer_product(r, u) - outer_product(dy, w), dy


def through_range(F, A, w, dw, u, least):
    """What dF has besides where least (T,) marks a w of least norm: w lies in A's range, which
    turns with F.  F z dw_0'/n  for A z = w and dw_0 = dw - A u, the part of dw off the range."""
    xp = array_namespace(F)
    if not bool(xp.any(least)):
        return xp.zeros_like(F)
    z, _ = solve_psd(A, w)
    turned = outer_product(matvec(F, z), dw - matvec(A, u)) / F.shape[1]
    return xp.where(least[:, None, None], turned, 0)


# ------------------------------------------------------------------------------ ridge


def ridge_lambda_max(F, y=None):
    """||F||_F^2 / n, (T,): the scale of the ridge penalty, the trace of G.   [L23, App. D.2.3]

    y is not used: called as lasso_lambda_max is.
    """
    F, _ = check_shapes(F, F)                                       # F stands in for y
    return array_namespace(F).sum(F * F, axis=(1, 2)) / F.shape[1]


def ridge(F, y, lam):
    """argmin_w  ||y - F w||^2 / (2 n) + lam/2 ||w||^2  for every task.            [L23, Sec. 5.1]

    (F'F/n + lam I) w = F'y/n. F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m). At lam = 0
    with singular F'F, the least-norm solution. (The paper says "an L2 norm"; half its square is our
    reading.) Raises ValueError as check_problem does.
    """
    F, y, lam = check_problem(F, y, lam, ndim=2)
    w, _ = solve_psd(ridge_curvature(F, lam), correlations(F, y))
    return w


def ridge_residual(F, y, lam, w):
    """The certificate of ridge, (T,): max_j |c - A w|_j/sqrt(A_jj) over its value at w = 0, with
    A = F'F/n + lam I. At lam = 0 the root makes it independent of the columns' units."""
    F, y, lam = check_shapes(F, y, lam, ndim=2)
    xp = array_namespace(F)
    A, c = ridge_curvature(F, lam), correlations(F, y)
    scale = xp.sqrt(safe_divisor(xp.linalg.diagonal(A)))
    top = xp.max(xp.abs(c) / scale, axis=1)
    return xp.max(xp.abs(c - matvec(A, w)) / scale, axis=1) / safe_divisor(top)


def ridge_curvature(F, lam):
    """A = F'F/n + lam I, (T, m, m)."""
    return gram(F) + lam[:, None, None] * identity(F.shape[2], F)


def ridge_vjp(F, y, lam, w, dw):
    """Pull dw back through ridge(F, y, lam).                       [docs/derivations.md, 3]

    The solution satisfies  R := F'(F w - y)/n + lam w = 0.
      1. curvature   A = dR/dw = F'F/n + lam I
      2. adjoint     A u = dw
      3. pull back   dX = -(dR/dX)' u   for X = F, y, lam:  dlam = -w'u
         and, at lam = 0 with singular A, where w is of least norm, through_range

    Shapes as of lasso_vjp. Valid where the rank of A does not change.
    """
    F, y, lam = check_shapes(F, y, lam, ndim=2)
    xp = array_namespace(F)
    # 1 curvature
    A = ridge_curvature(F, lam)                                     # (T, m, m)
    # 2 adjoint
    u, singular = solve_psd(A, dw)                                  # (T, m), (T,)
    # 3 pull back
    dF, dy = pull_back(F, y, w, u)
    dF = dF + through_range(F, A, w, dw, u, singular)
    return dF, dy, -xp.sum(w * u, axis=1)


# ------------------------------------------------------------------------------ losses of k outputs
# "squared": 1/2 ||Z_i - Y_i||^2; "logistic": the cross-entropy of softmax(Z_i) and Y_i, or of the
# sigmoid where k = 1; Z = F W' (T, n, k) are the scores, R the derivative in Z, R_Z[X] that of R
# along X.


def scores(F, W):
    """Z = F W', (T, n, k)."""
    return F @ W.mT


def data_loss(Z, Y, loss):
    """(1/n) sum_i loss(Z_i, Y_i), (T,)."""
    xp = array_namespace(Z)
    if loss == "squared":
        return xp.sum((Z - Y) ** 2, axis=(1, 2)) / (2 * Z.shape[1])
    return xp.mean(log_sum_exp(Z)[..., 0] - xp.sum(Y * Z, axis=-1), axis=1)


def loss_gradient(Z, Y, loss):
    """R (T, n, k), the derivative of (1/n) sum_i loss(Z_i, Y_i) in Z, and the function R_Z[X]."""
    xp, n = array_namespace(Z), Z.shape[1]
    if loss == "squared":
        return (Z - Y) / n, lambda X: X / n
    if loss != "logistic":
        raise ValueError(f"loss: found {loss}, expected squared or logistic")
    P = softmax(Z)
    return (P - Y) / n, lambda X: P * (X - xp.sum(P * X, axis=-1, keepdims=True)) / n


def log_sum_exp(Z):
    """log sum_l exp(Z_l) over the last axis, which is kept; one column Z means (Z, 0)."""
    xp = array_namespace(Z)
    Z = xp.concat([Z, 0 * Z], axis=-1) if Z.shape[-1] == 1 else Z
    top = xp.max(Z, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(Z - top), axis=-1, keepdims=True))


def softmax(Z):
    """exp(Z) / sum exp(Z) over the last axis; of one column, the sigmoid."""
    return array_namespace(Z).exp(Z - log_sum_exp(Z))


# ------------------------------------------------------------------------------ group Lasso
# Feature j is used by no output (W_j = 0) or by all: W_j is column j of W (T, k, m).


def group_lasso_lambda_max(F, Y, loss="squared"):
    """max_j ||F_j' R(0)||, (T,): from this lam on, W = 0.      [docs/derivations.md, 4]"""
    F, Y = check_shapes(F, Y, ndim=3)
    check_labels(Y, loss)
    R, _ = loss_gradient(0 * Y, Y, loss)
    return array_namespace(F).max(column_norms(R.mT @ F), axis=1)


def group_lasso(F, Y, lam, loss="squared", max_iter=1000):
    """argmin_W (1/n) sum_i loss(W F_i, Y_i) + lam sum_j ||W_j||_2 for every task.

    F (T, n, m), Y (T, n, k), lam a number or (T,)  ->  W (T, k, m), info as of lasso, gap in units
    of group_lasso_lambda_max, converged at 1e-10 (float32: 1e-4). An iteration is a sweep of block
    coordinate descent, which finds the support, and a Newton step on it, taken by each task where
    it helps. converged is False, too, where lam = 0 and F'F is singular, and where a Newton step
    would move a score by 1/10: at lam = 0 there is no minimiser where F separates classes, all or
    some, and W is only large. Raises ValueError as check_problem and check_labels do.
                                            [L23, Problem (6), inner; Yuan and Lin 2006]
    """
    F, Y, lam = check_problem(F, Y, lam, ndim=3)
    xp = array_namespace(F)
    unit = safe_divisor(group_lasso_lambda_max(F, Y, loss))
    start = xp.zeros((F.shape[0], Y.shape[2], F.shape[2]), dtype=F.dtype, device=device(F))

    def gap(W, F, Y, lam, unit):
        return group_violation(F, Y, lam, W, loss) / unit, ()

    def step(W, F, Y, lam, unit):
        return newton_group_step(F, Y, lam, block_sweep(F, Y, lam, W, loss), loss)

    W, info = until_solved("group_lasso", step, gap, start, (F, Y, lam, unit), max_iter)
    return W, info | {"converged": info["converged"] & has_one_minimiser(F, Y, lam, W, loss)}


def has_one_minimiser(F, Y, lam, W, loss):
    """False where lam = 0 and F'F is singular; and where a Newton step would move a score, which is
    of log odds, by 1/10: without a minimiser each moves one by about 1, however small the gap."""
    xp = array_namespace(F)
    _, singular = solve_psd(gram(F), W[:, 0, :])
    move = xp.max(xp.abs(scores(F, newton_group_direction(F, Y, lam, W, loss))), axis=(1, 2))
    return ~((lam == 0) & singular) & ((move < 0.1) | (loss == "squared"))


def data_gradient(F, Y, W, loss):
    """R'F, the derivative of the data term in W, (T, k, m)."""
    R, _ = loss_gradient(scores(F, W), Y, loss)
    return R.mT @ F


def column_norms(W):
    """||W_j||, (T, k, m) -> (T, m)."""
    return array_namespace(W).linalg.vector_norm(W, axis=1)


def directions(W):
    """W_j/||W_j||, 0 where W_j = 0, (T, k, m)."""
    return W / safe_divisor(column_norms(W))[:, None, :]


def group_violation(F, Y, lam, W, loss):
    """The largest violation of F_j'R + lam W_j/||W_j|| = 0 where W_j != 0, and of
    ||F_j'R|| <= lam elsewhere, (T,)."""
    xp = array_namespace(W)
    g = data_gradient(F, Y, W, loss)
    on = column_norms(g + lam[:, None, None] * directions(W))
    off = xp.maximum(column_norms(g) - lam[:, None], 0)
    return xp.max(xp.where(column_norms(W) > 0, on, off), axis=1)


def group_objective(F, Y, lam, W, loss):
    """(1/n) sum_i loss + lam sum_j ||W_j||, (T,)."""
    return data_loss(scores(F, W), Y, loss) + lam * array_namespace(F).sum(column_norms(W), axis=1)


def block_sweep(F, Y, lam, W, loss):
    """W_j <- BST(W_j - F_j'R/L_j, lam/L_j) for j = 1 ... m.

    L_j = ||F_j||^2/n, half that for softmax, bounds the curvature.
    """
    xp = array_namespace(F)
    Z, W = scores(F, W), W + 0
    curvature = 1 if loss == "squared" else 1 / 2
    L = safe_divisor(xp.sum(F * F, axis=1) / F.shape[1] * curvature)                # (T, m)
    for j in range(F.shape[2]):
        F_j, L_j = F[:, :, j], L[:, j, None]
        R, _ = loss_gradient(Z, Y, loss)
        W_j = W[:, :, j] - matvec(R.mT, F_j) / L_j                  # (T, k)
        W_j = block_soft_threshold(W_j, lam[:, None] / L_j)
        Z += outer_product(F_j, W_j - W[:, :, j])
        W[:, :, j] = W_j
    return W


def newton_group_step(F, Y, lam, W, loss):
    """W + t d for the Newton step d, t the first of 1, 1/2, ..., 1/1024 that lowers the objective,
    or, where it is equal to rounding, the violation; W if none does."""
    xp = array_namespace(F)
    d = newton_group_direction(F, Y, lam, W, loss)
    height, violation = (f(F, Y, lam, W, loss) for f in (group_objective, group_violation))
    rounding = 50 * xp.finfo(F.dtype).eps * height
    found, moved = W, xp.zeros_like(lam, dtype=xp.bool)
    for halvings in range(11):
        new = W + d / 2 ** halvings
        rise = group_objective(F, Y, lam, new, loss) - height
        better = group_violation(F, Y, lam, new, loss) < violation
        lower = (rise < -rounding) | ((rise <= rounding) & better)
        found = xp.where((lower & ~moved)[:, None, None], new, found)
        moved = moved | lower
        if bool(xp.all(moved)):
            break
    return found


def newton_group_direction(F, Y, lam, W, loss):
    """Newton's step on the support of W, (T, k, m)."""
    g = data_gradient(F, Y, W, loss) + lam[:, None, None] * directions(W)
    S = array_namespace(W).any(W != 0, axis=1)
    return solve_on_columns(group_curvature(F, lam, W, loss), S, -g)


def group_lasso_vjp(F, Y, lam, W, dW, loss="squared"):
    """Pull dW back through the solution of group_lasso.            [docs/derivations.md, 4]

    On the support F_j'R + lam W_j/||W_j|| = 0:
      1. curvature   H = F'R_Z[F .] + lam (I - v v')/||W_j||,  v = W_j/||W_j||
      2. adjoint     H U = dW, both as (m k,),  U = 0 off the support
      3. pull back   dF = -(R U + R_Z[F U'] W)       dlam = -sum_j U_j . v_j

    F (T, n, m), Y (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam (T,). Valid where the
    support does not change; at lam = 0 it is all features, and dlam the derivative from above where
    no W_j is 0.
    """
    F, Y, lam = check_shapes(F, Y, lam, ndim=3)
    xp = array_namespace(F)
    S = xp.any(W != 0, axis=1) | (lam == 0)[:, None]                # (T, m)
    # 1 curvature
    H = group_curvature(F, lam, W, loss)                            # (T, m k, m k)
    # 2 adjoint
    U = solve_on_columns(H, S, dW)                                  # (T, k, m)
    # 3 pull back
    R, R_Z = loss_gradient(scores(F, W), Y, loss)
    dF = -(R @ U + R_Z(scores(F, U)) @ W)
    return dF, -xp.sum(directions(W) * U, axis=(1, 2))


def group_curvature(F, lam, W, loss):
    """H, the second derivative of the objective on the support of W, (T, m k, m k), row j k + l for
    feature j and output l:  F'R_Z[F .] + lam (I - v v')/||W_j||,  v = W_j/||W_j||."""
    xp = array_namespace(F)
    T, k, m = W.shape
    eye = identity(k, F)
    if loss == "squared":
        H = gram(F)[:, :, None, :, None] * eye[:, None, :]          # (T, m, k, m, k)
    else:
        H = softmax_curvature(F, W)
    v = directions(W).mT                                            # (T, m, k)
    tiny = xp.finfo(F.dtype).smallest_normal ** 0.5                 # W_j = 0: off S, or lam = 0
    lam_over_norm = lam[:, None] / xp.maximum(column_norms(W), tiny)
    bend = (eye - v[..., None] * v[:, :, None, :]) * lam_over_norm[..., None, None]
    H = H + bend[:, :, :, None, :] * identity(m, F)[:, None, :, None]
    return xp.reshape(H, (T, m * k, m * k))


def softmax_curvature(F, W):
    """F'R_Z[F .] of the logistic loss, (T, m, k, m, k)."""
    xp = array_namespace(F)
    T, k, m = W.shape
    n = F.shape[1]
    P = softmax(scores(F, W))
    R_prime = P[..., None] * (identity(k, F) - P[:, :, None, :]) / n                # (T, n, k, k)
    R_prime_F = xp.reshape(F[..., None, None] * R_prime[:, :, None, :, :], (T, n, m * k * k))
    H = xp.reshape(F.mT @ R_prime_F, (T, m, m, k, k))
    return xp.permute_dims(H, (0, 1, 3, 2, 4))


def solve_on_columns(H, S, rhs):
    """U (T, k, m) with H U = rhs on the features of S (T, m), U = 0 elsewhere."""
    xp = array_namespace(rhs)
    T, k, m = rhs.shape
    entries = xp.repeat(S, k, axis=1)                               # (T, m k)
    U, _ = solve_on_support(H, entries, xp.reshape(rhs.mT, (T, m * k)))
    return xp.reshape(U, (T, m, k)).mT


# ------------------------------------------------------------------------------ group-Lasso SVM
# k classes, Y (T, n, k) one-hot, Lam (T, n, k) dual variables, each row in the simplex
# {Lam_i >= 0, sum_l Lam_il = 1}; V = (Y - Lam)'F (T, k, m). F_i is a sample, W_l a class's row;
# F_j, V_j, W_j are the columns of a feature.
# The primal and its dual, with min P = n - min D:
#     min_W    P = sum_i max_l (1 - Y_il + (W_l - W_{y_i}) . F_i) + lam1 sum_j ||W_j||
#                  + lam2/2 ||W||^2                                       [L23, Problem (81)]
#     min_Lam  D = 1/(2 lam2) sum_j ||BST(V_j, lam1)||^2 + <Y, Lam>        [L23, Problem (10)]
# W = BST(V, lam1)/lam2; grad_D = Y - F W'; the slack of an entry is grad_D_il - min_l' grad_D_il'.
# Misprints: the sign of W_{y_i} - W_l in (8) and (81), the 1 that (8) lacks, 1/lam2 for 1/(2 lam2)
# in (10) and (83). (81) sums over samples where (7) with (8) averages: its lams are n times theirs.


def svm_lambda_max(F, Y):
    """max_j ||F_j'(Y - (1 - Y)/(k - 1))||, (T,): from this lam1 on W = 0; exact where k = 2.

    [docs/derivations.md, 5]
    """
    F, Y = check_shapes(F, Y, ndim=3)
    check_labels(Y, "hinge")
    V = (Y - (1 - Y) / (Y.shape[2] - 1)).mT @ F                     # Lam even over other classes
    return array_namespace(F).max(column_norms(V), axis=1)


def group_svm(F, Y, lam1, lam2, method="interior-point", max_iter=None):
    """The multiclass SVM whose features are switched on and off as groups, for every task.

    F (T, n, m), Y (T, n, k) one-hot, lam1 >= 0 and lam2 > 0 numbers or (T,)  ->  W (T, k, m),
    Lam (T, n, k), info with n_iter and, per task,                [L23, Problems (81), (10)]
        gap        the duality gap P + D - n as a share of n - P, what W gains on W = 0 (or of 1,
                   if that is nothing)
        converged  gap <= 1e-8 in float64, 1e-4 in float32, and Newton's method, which keeps the
                   zeros of Lam (its face), would change Lam by no more than rounding, nor by more
                   than 1e-4 (1e-2) of its largest entry off the labels
        strict     no entry of Lam is about to become or cease to be 0, no feature to enter or
                   leave, and Lam is unique (not asked where W = 0): W is differentiable
    method  "interior-point" (of at most 80 Newton steps, if max_iter is not given), or "pbcd":
    proximal block coordinate descent in the dual, the paper's algorithm [L23, App. D.3] (10,000
    epochs). n_iter counts these. W is unique, Lam need not be.
    Raises ValueError as check_problem does, and for labels that are not one-hot or lam2 = 0.
    """
    F, Y, lam1, lam2 = check_problem(F, Y, lam1, lam2, ndim=3)
    check_labels(Y, "hinge")
    xp = array_namespace(F)
    if not bool(xp.all(lam2 > 0)):
        raise ValueError("lam2: found 0, expected a positive number")
    if method not in SVM_METHODS:
        raise ValueError(f"method: found {method}, expected {' or '.join(SVM_METHODS)}")
    search, limit = SVM_METHODS[method]
    limit = limit if max_iter is None else max_iter
    double, single = TOLERANCE["group_svm"]
    tol = double if F.dtype == xp.float64 else single

    def fit(F, Y, lam1, lam2):                                      # -> arrays of T rows
        Lam, certificate, n_iter = search(compressed(svm_problem(F, Y, lam1, lam2)), tol, limit)
        _, W, _ = svm_primal(svm_problem(F, Y, lam1, lam2), Lam)
        return W, Lam, n_iter + xp.zeros_like(lam1), *certificate

    _, n, m = F.shape
    size = 2 ** 17 // max(n * m, (n * Y.shape[2]) ** 2)             # tasks: F, and H, within 1 MiB
    W, Lam, n_iter, *certificate = on_task_blocks(fit, size, F, Y, lam1, lam2)
    return W, Lam, {"n_iter": int(xp.max(n_iter)), **Certificate(*certificate)._asdict()}


# The problem, and Q (k, c), an orthonormal basis of the vectors that sum to 0. Rows of Y - Lam do,
# and so do the V_j: c coordinates say all of V_j, VQ = Q'V (T, c, m), "V in the coordinates of Q",
# of the same norms. Here and in all that is the SVM's c = k - 1, and not F'y/n.
SVM = namedtuple("SVM", "F Y lam1 lam2 Q")


def svm_problem(F, Y, lam1, lam2):
    """The SVM with its Q."""
    return SVM(F, Y, lam1, lam2, helmert(Y.shape[2], F))


def compressed(svm):
    """At lam1 = 0 only F F' enters: n columns with the same F F' do for more than n features."""
    xp, F = array_namespace(svm.F), svm.F
    if F.shape[2] <= F.shape[1] or bool(xp.any(svm.lam1 > 0)):
        return svm
    return svm._replace(F=xp.linalg.qr(F.mT)[1].mT)


def svm_primal(svm, Lam):
    """V and W, (T, k, m), and grad_D, (T, n, k), at a dual point."""
    V = label_minus_dual(svm.Y, Lam).mT @ svm.F
    W = primal_of(V, svm.lam1, svm.lam2)
    return V, W, svm.Y - scores(svm.F, W)


def primal_of(V, lam1, lam2):
    """W = BST(V, lam1)/lam2."""
    return block_soft_threshold(V, lam1[:, None, None], axis=1) / lam2[:, None, None]


def label_minus_dual(Y, Lam):
    """Y - Lam, (T, n, k), without the cancellation of 1 - Lam where Lam is almost 1."""
    others = (1 - Y) * Lam
    return Y * array_namespace(Y).sum(others, axis=2, keepdims=True) - others


def slacks(grad_D):
    """grad_D_il - min_l' grad_D_il', (T, n, k): 0 on the classes that hurt a sample most."""
    return grad_D - array_namespace(grad_D).min(grad_D, axis=2, keepdims=True)


# ---- the curvature of D, and Newton's method on a face {Lam_il = 0 where not free}


def bst_slopes(V, lam1):
    """The eigenvalues of the Jacobian J_j of BST at V_j, (T, m): flat = 1 - lam1/||V_j|| across
    V_j, along = 1 on V_j, both 0 where ||V_j|| <= lam1; all 1 where lam1 = 0: the identity.
    """
    xp = array_namespace(V)
    norm, lam1 = column_norms(V), lam1[:, None]
    on = (norm > lam1) | (lam1 == 0)
    flat = xp.where(on, 1 - lam1 / safe_divisor(norm), 0)
    return flat, xp.astype(on, V.dtype)


def svm_curvature(svm, VQ, flat, along):
    """H = 1/lam2 sum_j F_j F_j' (x) J_j in the coordinates of Q: (T, n, c, n, c).

    VQ (T, c, m); flat and along (T, m), the slopes of BST across V_j and on it.
    """
    F, lam2 = svm.F, svm.lam2[:, None]
    xp = array_namespace(F)
    T, n, m = F.shape
    c = VQ.shape[1]
    across = (F * (flat / lam2)[:, None, :]) @ F.mT                 # (T, n, n)
    H = across[:, :, None, :, None] * identity(c, F)[:, None, :]
    excess = xp.maximum(along - flat, 0)                            # >= 0 but for rounding
    if bool(xp.any(excess > 0)):
        root = directions(VQ) * xp.sqrt(excess / lam2)[:, None, :]  # (T, c, m)
        F_root = xp.reshape(F[:, :, None, :] * root[:, None, :, :], (T, n * c, m))
        H = H + xp.reshape(F_root @ F_root.mT, (T, n, c, n, c))
    return H


def dual_curvature(svm, V):
    """H at a dual point."""
    return svm_curvature(svm, svm.Q.mT @ V, *bst_slopes(V, svm.lam1))


def newton_on_face(svm, Lam, free):
    """What Newton's method would change of Lam (T, n, k) on its face, and whether the face is flat
    there, so that Lam is not unique, (T,)."""
    V, _, grad_D = svm_primal(svm, Lam)
    return solve_on_face(dual_curvature(svm, V), free, svm.Q, -grad_D)


def solve_on_face(H, free, Q, rhs):
    """The u (T, n, k) of least norm with Pi H Pi u = Pi rhs, and whether H is singular there, (T,).

    Pi projects on the face's directions, rows that are 0 where not free and sum to 0. The columns
    of M_i that S_i marks are an orthonormal basis of them for sample i; with M_S all of these, the
    small system is M_S'H M_S x = M_S'rhs, and u = M_S x. M'Q takes H from the coordinates of Q.
    """
    xp = array_namespace(rhs)
    T, n, k = rhs.shape
    M, S = face_bases(free, Q)
    A = xp.reshape(on_both_sides(M.mT @ Q, H), (T, n * (k - 1), n * (k - 1)))
    b = xp.reshape(M.mT @ rhs[..., None], (T, n * (k - 1)))
    x, singular = solve_on_support(A, xp.reshape(S, b.shape), b)
    return (M @ xp.reshape(x, (T, n, k - 1, 1)))[..., 0], singular


def face_bases(free, Q):
    """M (T, n, k, c), the rows of helmert in another order for each sample, and S (T, n, c), which
    marks the columns of M_i that span the vectors that are 0 where not free and sum to 0."""
    xp, k = array_namespace(free), free.shape[2]
    order = xp.argsort(xp.astype(~free, xp.int8), axis=2, stable=True)              # free first
    rank = xp.argsort(order, axis=2)
    M = xp.reshape(xp.take(Q, xp.reshape(rank, (-1,)), axis=0), (*free.shape, k - 1))
    column = xp.arange(1, k, device=device(free))
    return M, column < xp.sum(xp.astype(free, xp.int64), axis=2)[..., None]


def helmert(k, like):
    """(k, k - 1), orthonormal columns that sum to 0: column c = 1, 2, ... is 1 in the first c rows,
    -c in the next and 0 below, scaled."""
    xp = array_namespace(like)
    row = xp.arange(k, device=device(like))[:, None]
    column = xp.arange(1, k, device=device(like))
    out = xp.where(row < column, 1, xp.where(row == column, -column, 0))
    length = xp.sqrt(xp.astype(column * (column + 1), like.dtype))
    return xp.astype(out, like.dtype) / length


def on_both_sides(M, H):
    """M_a H_ab M_b' for all pairs of samples a, b: symmetric H (T, n, c, n, c), M (T, n, d, c)  ->
    (T, n, d, n, d)."""
    xp = array_namespace(H)
    T, n, d, c = M.shape
    A = xp.reshape(M @ xp.reshape(H, (T, n, c, n * c)), (T, n, d, n, c))
    A = xp.reshape(xp.permute_dims(A, (0, 3, 4, 1, 2)), (T, n, c, n * d))
    return xp.reshape(M @ A, (T, n, d, n, d))


# ---- its certificate

# What is known of a dual point, (T,): see group_svm.
Certificate = namedtuple("Certificate", "gap converged strict")


def svm_gap(svm, Lam):
    """The duality gap P + D - n = <Lam, slacks>, a sum of what is not negative, over n - P (over 1
    where that is of rounding size), (T,).

    Dividing by P, which is about n where W gains little, would hide the error of a small W.
    """
    xp, Y = array_namespace(Lam), svm.Y
    _, W, grad_D = svm_primal(svm, Lam)
    penalty = svm.lam1 * xp.sum(column_norms(W), axis=1) + svm.lam2 / 2 * xp.sum(W * W, axis=(1, 2))
    margins = xp.min(grad_D, axis=2) + xp.sum(Y * scores(svm.F, W), axis=2)         # 1 - hinge_i
    gain = xp.sum(margins, axis=1) - penalty                        # n - P
    rounding = 10 * Y.shape[1] * xp.finfo(Y.dtype).eps
    return xp.sum(Lam * slacks(grad_D), axis=(1, 2)) / xp.where(gain > rounding, gain, 1)


def svm_certificate(svm, Lam, tol):
    """The Certificate of Lam.                                      [docs/derivations.md, 6]

    off is how far Lam may be from the solution of its face: ten times the largest change that
    Newton's method would still make. converged: gap and off are small. strict: each entry of Lam is
    clearly positive, or 0 with a slack that clearly is; no ||V_j|| is near lam1; Lam is unique (if
    not, a change of F rules out some of the Lam that share this W, and W may have a kink there).
    Where lam1 > 0 makes W = 0 only ||V_j|| counts: W stays 0, whichever Lam it is.
    """
    xp, lam1 = array_namespace(Lam), svm.lam1
    V, W, grad_D = svm_primal(svm, Lam)
    change, flat_face = newton_on_face(svm, Lam, Lam > 0)
    off = 10 * xp.max(xp.abs(change), axis=(1, 2))                  # (T,)
    rounding = xp.finfo(Lam.dtype).eps ** 0.5
    near_Lam = off + rounding
    near_slack = near_Lam * xp.max(xp.abs(svm.Y - grad_D), axis=(1, 2))             # of the scores
    near_lam1 = off[:, None] * column_norms(svm.F) + rounding * lam1[:, None]       # (T, m)

    used = Lam > near_Lam[:, None, None]
    unused = (Lam == 0) & (slacks(grad_D) > near_slack[:, None, None])
    off_lam1 = xp.all(W == 0, axis=(1, 2)) & (lam1 > 0)
    clear = (xp.all(used | unused, axis=(1, 2)) & ~flat_face) | off_lam1
    kinked = (xp.abs(column_norms(V) - lam1[:, None]) <= near_lam1) & (lam1 > 0)[:, None]
    gap = svm_gap(svm, Lam)
    largest = xp.max((1 - svm.Y) * Lam, axis=(1, 2))                # W is of its size
    converged = (gap <= tol) & (off <= rounding) & (off <= rounding ** 0.5 * largest)
    return Certificate(gap, converged, clear & ~xp.any(kinked, axis=1))


# ---- its adjoint


def group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW):
    """Pull dW back through the solution of group_svm.              [docs/derivations.md, 5]

    W = BST(V, lam1)/lam2 depends on F directly and through Lam. J_j is the Jacobian of BST at V_j,
    Pi the projector on the face of the simplices where Lam lies,
    {d : d_il = 0 where Lam_il = 0, sum_l d_il = 0}:
      0. directly    dV = J dW/lam2,  dF = (Y - Lam) dV,  dLam = -F dV'
      1. curvature   H = 1/lam2 sum_j F_j F_j' (x) J_j, that of D
      2. adjoint     Pi H Pi u = Pi dLam   (of least norm)
      3. pull back   dF += u W + (Y - Lam) J u'F/lam2,  dlam2 = -(<dW, W> + <u, F W'>)/lam2,
                     dlam1 = -sum_j v_j . (dW_j + (u'F)_j)/lam2 over active j, v_j = V_j/||V_j||

    F (T, n, m), Y and Lam (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam1, dlam2 (T,).
    Valid where neither the set of active features nor the zeros of Lam change.
    """
    F, Y, lam1, lam2 = check_shapes(F, Y, lam1, lam2, ndim=3)
    xp, svm = array_namespace(F), svm_problem(F, Y, lam1, lam2)
    V, _, _ = svm_primal(svm, Lam)
    # 0 directly
    dV = bst_jacobian(V, lam1, dW) / lam2[:, None, None]            # (T, k, m)
    dLam = -scores(F, dV)                                           # (T, n, k)
    # 1 curvature
    H = dual_curvature(svm, V)
    # 2 adjoint
    u, _ = solve_on_face(H, Lam > 0, svm.Q, dLam)                   # (T, n, k)
    # 3 pull back
    uF = u.mT @ F                                                   # (T, k, m)
    through_V = dV + bst_jacobian(V, lam1, uF) / lam2[:, None, None]
    dF = u @ W + label_minus_dual(Y, Lam) @ through_V
    active = directions(V) * bst_slopes(V, lam1)[1][:, None, :]     # 0 where ||V_j|| <= lam1
    dlam1 = -xp.sum(active * (dW + uF), axis=(1, 2)) / lam2
    dlam2 = -(xp.sum(dW * W, axis=(1, 2)) + xp.sum(u * scores(F, W), axis=(1, 2))) / lam2
    return dF, dlam1, dlam2


def bst_jacobian(V, lam1, X):
    """J_j X_j for all features, X (T, k, m)."""
    flat, along = (slope[:, None, :] for slope in bst_slopes(V, lam1))
    v = directions(V)
    return flat * X + (along - flat) * array_namespace(V).sum(v * X, axis=1, keepdims=True) * v


# ---- proximal block coordinate descent, the paper's algorithm


def svm_pbcd(svm, tol, max_iter):
    """Lam_i <- proj_simplex(Lam_i - grad_D_i/L_i), one sample i after another.

    L_i = ||F_i||^2/lam2 bounds the curvature. Returns Lam, its Certificate, and the epochs. The
    method is that of [L23, App. D.3], which leaves blocks, steps and order open.
    """
    F, Y, lam1, lam2, _ = svm
    xp = array_namespace(F)
    Lam = xp.ones_like(Y) / Y.shape[2]
    L = xp.sum(F * F, axis=2) / lam2[:, None]
    L = xp.where(L > 0, L, 1e-12)                                   # F_i = 0: a huge step
    near, least = tol, 10 * xp.finfo(Y.dtype).eps
    for n_iter in range(max_iter + 1):
        V, _, grad_D = svm_primal(svm, Lam)
        if n_iter == max_iter or bool(xp.all(svm_gap(svm, Lam) <= near)):
            crossed = svm_crossover(svm, Lam, in_units_of_Lam(svm, slacks(grad_D)))
            certificate = svm_certificate(svm, crossed, tol)
            if n_iter == max_iter or near <= least or bool(xp.all(certificate.converged)):
                return crossed, certificate, n_iter
            near = near / 10                                        # its face was not found yet
        for i in range(F.shape[1]):
            grad_i = Y[:, i, :] - matvec(primal_of(V, lam1, lam2), F[:, i, :])
            Lam_i = project_simplex(Lam[:, i, :] - grad_i / L[:, i, None])
            V += outer_product(Lam[:, i, :] - Lam_i, F[:, i, :])
            Lam[:, i, :] = Lam_i


def svm_crossover(svm, Lam, slack, steps=3):
    """From a nearly optimal point to an exact Lam. Of Lam_il and its slack one tends to 0: the
    smaller is taken as 0 (a row's largest Lam never), and Newton's method finds the others."""
    xp = array_namespace(Lam)
    free = (Lam > slack) | (Lam >= xp.max(Lam, axis=2, keepdims=True))
    Lam = xp.where(free, Lam, 0)
    for step in range(steps + 1):
        Lam = Lam / xp.sum(Lam, axis=2, keepdims=True)
        if step == steps or bool(xp.all(svm_gap(svm, Lam) <= 1e-12)):
            return Lam
        change, _ = newton_on_face(svm, Lam, free)
        t = xp.minimum(longest_step(Lam, change), 1)[:, None, None]
        Lam = xp.maximum(Lam + t * change, 0)


def in_units_of_Lam(svm, slack):
    """Slacks over ||F_i||^2/lam2, by which a Lam of 1 moves them, where that is more than 1."""
    xp = array_namespace(slack)
    unit = xp.sum(svm.F * svm.F, axis=2) / svm.lam2[:, None]        # (T, n)
    return slack / xp.maximum(unit, xp.ones_like(unit))[..., None]


def longest_step(x, dx):
    """The largest t for which x + t dx >= 0, (T,); infinite where nothing shrinks."""
    xp = array_namespace(x)
    falls = dx < 0
    return xp.min(xp.where(falls, -x / xp.where(falls, dx, 1), xp.inf), axis=(1, 2))


# ------------------------------------------------------------------------------ interior points
# The SVM's dual by Mehrotra's predictor and corrector: two families of products go to 0 together,
#     Lam_il slack_il   of the dual variables and their slacks
#     p_j s_j           p_j, s_j >= 0 with p_j - s_j = ||V_j|| - lam1: where p_j s_j = 0 they are
#                       its two parts, and p_j = (||V_j|| - lam1)_+ = lam2 ||W_j||
# A Newton step solves the linearised conditions. The predictor aims at products of 0, and how far
# it gets tells how far the corrector aims: at sigma mu, mu the mean of Lam slack now.
# In this section d before a name is a step of it.             [docs/derivations.md, 6]

# A point: Lam and slack (T, n, k), VQ (T, c, m), p and s (T, m).
Interior = namedtuple("Interior", "Lam slack VQ p s")
# A step of a point; VQ moves with Lam.
Step = namedtuple("Step", "Lam slack p s")
# The linearised conditions at a point, in the d (T, n c) for which Lam_i moves by B_i d_i:
#     A, scale           B'(H + slack/Lam) B, scaled to a diagonal of 1; the scales
#     B (T, n, k, c)     pivot_bases
#     v, along, total    V_j/||V_j|| in the coordinates of Q; p/(p + s), the slope of p; p + s
#     miss_p, miss_grad  p - ||V|| + lam1 - s and F W' - (Y - slack); where p, s and slack fit Lam
#                        0, and the same in all columns
Newton = namedtuple("Newton", "A scale B v along total miss_p miss_grad")


def svm_interior_point(svm, tol, max_iter):
    """Lam (T, n, k), its Certificate, and the number of Newton steps.

    Interior points have no zeros, which derivatives need: svm_crossover sets them. It is tried once
    every task is near, that is, any one of
        settled   gap within 1e-4, and the face {Lam_il > slack_il} as it was a step before
        small     gap within max(1e-7, tol), or mu at rounding
        done      converged, or out of steps
    """
    xp = array_namespace(svm.F)
    at = interior_start(svm)
    face = at.Lam > at.slack
    best = at.Lam                                                   # until a crossover beats it
    none = xp.zeros(best.shape[0], dtype=xp.bool, device=device(best))
    certificate = Certificate(svm_gap(svm, best), none, none)
    for n_iter in range(max_iter + 1):
        left, mu = gap_estimate(svm, at), mean_product(at.Lam, at.slack)[:, 0]
        going = ~certificate.converged & (left > 1e-15) & (n_iter < max_iter)
        before, face = face, at.Lam > at.slack
        settled = xp.all(face == before, axis=(1, 2)) & (left <= 1e-4)
        near = settled | (left <= max(1e-7, tol)) | (mu <= 1e-12) | ~going
        if bool(xp.all(near)):
            best, certificate = crossed_over(svm, at.Lam, at.slack, tol, best, certificate)
            going = going & ~certificate.converged
        if not bool(xp.any(going)):
            if not bool(xp.all(certificate.converged)):             # Lam may be far below its slack
                slack = in_units_of_Lam(svm, at.slack)
                best, certificate = crossed_over(svm, at.Lam, slack, tol, best, certificate)
            return best, certificate, n_iter
        at = mehrotra_step(svm, at, going, careful=n_iter >= 30)


def crossed_over(svm, Lam, slack, tol, best, certificate):
    """For each task the best dual so far or svm_crossover's: that which is converged, or has the
    smaller gap; and its Certificate."""
    xp, Lam = array_namespace(Lam), svm_crossover(svm, Lam, slack)
    new = svm_certificate(svm, Lam, tol)
    same = certificate.converged == new.converged
    take = xp.where(same, new.gap < certificate.gap, new.converged)
    pairs = zip(new, certificate, strict=True)
    certificate = Certificate(*(xp.where(take, a, b) for a, b in pairs))
    return xp.where(take[:, None, None], Lam, best), certificate


def interior_start(svm):
    """Lam = 1/k, slacks moved up by their mean or by 1, whichever is larger; p s a small part of
    Lam slack."""
    xp = array_namespace(svm.F)
    Lam = xp.ones_like(svm.Y) / svm.Y.shape[2]
    V, _, grad_D = svm_primal(svm, Lam)
    slack = slacks(grad_D)
    slack = slack + xp.maximum(xp.mean(slack, axis=(1, 2), keepdims=True), 1)
    aim = share_of_norms(svm) * mean_product(Lam, slack)
    p, s = complementary_pair(column_norms(V) - svm.lam1[:, None], aim)
    return Interior(Lam, slack, svm.Q.mT @ V, p, s)


def share_of_norms(svm):
    """p s aims at lam2/1000 of Lam slack, (T, 1), for <p, s>/lam2 is a part of the gap. Without
    lam1 there is no kink to smooth."""
    return array_namespace(svm.F).where(svm.lam1 > 0, 1e-3 * svm.lam2, 0)[:, None]


def mean_product(Lam, slack):
    """mu, the mean of Lam slack, (T, 1)."""
    return array_namespace(Lam).mean(Lam * slack, axis=(1, 2))[:, None]


def complementary_pair(difference, product):
    """p, s >= 0 of a given difference p - s and product p s."""
    xp = array_namespace(difference)
    large = (xp.abs(difference) + xp.sqrt(difference * difference + 4 * product)) / 2
    small = product / safe_divisor(large)
    positive = difference > 0
    return xp.where(positive, large, small), xp.where(positive, small, large)


def gap_estimate(svm, at):
    """svm_gap of a point whose slack and p are not yet those of its Lam, (T,):
    (<Lam, slack> + <p, s>/lam2) / D, for at the optimum D = n - P."""
    xp = array_namespace(at.Lam)
    D = xp.sum(svm.Y * at.Lam, axis=(1, 2)) + xp.sum(at.p * at.p, axis=1) / (2 * svm.lam2)
    gap = xp.sum(at.Lam * at.slack, axis=(1, 2)) + xp.sum(at.p * at.s, axis=1) / svm.lam2
    return gap / safe_divisor(D)


def mehrotra_step(svm, at, going, careful):
    """Predictor, corrector, and the longest step that keeps Lam and slack positive; `going` (T,)
    marks the tasks that move. careful: p and s shorten the step too, as the oddest problems need.
    """
    xp = array_namespace(at.Lam)
    Lam, slack, _, p, s = at
    system = newton_system(svm, at)
    d = newton_direction(svm, at, system, -Lam * slack, -p * s)     # predictor
    t = xp.minimum(longest_step(Lam, d.Lam), longest_step(slack, d.slack))[:, None, None]
    mu = mean_product(Lam, slack)
    sigma = (mean_product(Lam + t * d.Lam, slack + t * d.slack) / mu) ** 3          # Mehrotra's
    aim = sigma * mu                                                # (T, 1)
    d = newton_direction(
        svm, at, system, aim[..., None] - Lam * slack - d.Lam * d.slack,
        share_of_norms(svm) * aim - p * s - d.p * d.s)              # corrector
    t = xp.minimum(longest_step(Lam, d.Lam), longest_step(slack, d.slack))
    if careful:
        short = xp.minimum(longest_step(p[..., None], d.p[..., None]),
                           longest_step(s[..., None], d.s[..., None]))
        t = xp.minimum(t, short)
    t = xp.where(going, xp.minimum(0.995 * t, 1), 0)[:, None]
    return moved(svm, at, d, t)


def moved(svm, at, d, t):
    """The point at + t d, t (T, 1). p and s keep at least a tenth of what they were; V is computed
    from Lam, for sums of steps drift."""
    xp = array_namespace(at.Lam)
    Lam, slack = at.Lam + t[..., None] * d.Lam, at.slack + t[..., None] * d.slack
    V, _, _ = svm_primal(svm, Lam)
    penalised = svm.lam1[:, None] > 0
    p = xp.where(penalised, xp.maximum(at.p + t * d.p, at.p / 10), column_norms(V))
    s = xp.where(penalised, xp.maximum(at.s + t * d.s, at.s / 10), 0)
    return Interior(Lam, slack, svm.Q.mT @ V, p, s)


def newton_system(svm, at):
    """The Newton system at a point, with H at the slopes of a BST that p and s smooth."""
    F, Y, lam1, lam2, Q = svm
    xp = array_namespace(F)
    T, n, k = Y.shape
    norm, total = column_norms(at.VQ), safe_divisor(at.p + at.s)
    penalised = lam1[:, None] > 0
    flat = xp.where(penalised, at.p / xp.maximum(norm, total), 1)   # p/||V_j||, cut to <= along
    along = xp.where(penalised, at.p / total, 1)
    B = pivot_bases(at.Lam)
    barrier = (B.mT * (at.slack / at.Lam)[..., None, :]) @ B        # (T, n, c, c)
    A = on_both_sides(B.mT @ Q, svm_curvature(svm, at.VQ, flat, along))
    A = A + barrier[:, :, :, None, :] * identity(n, F)[:, None, :, None]
    A, scale = with_unit_diagonal(xp.reshape(A, (T, n * (k - 1), n * (k - 1))))
    miss_p = at.p - norm + lam1[:, None] - at.s
    W = at.VQ * (flat / lam2[:, None])[:, None, :]
    miss_grad = scores(F, W) @ Q.mT - (Y - at.slack)                # (T, n, k)
    return Newton(regularised(A), scale, B, directions(at.VQ), along, total, miss_p, miss_grad)


def pivot_bases(Lam):
    """B (T, n, k, c): for each sample the columns e_l - e_r, r the class of its largest Lam.

    There a large slack_l/Lam_l stands alone on the diagonal of a Newton system; in the coordinates
    of Q it would drown the small entries beside it.
    """
    xp, k = array_namespace(Lam), Lam.shape[2]
    rank = xp.argsort(xp.argsort(-Lam, axis=2, stable=True), axis=2)                # r has 0
    eye = identity(k - 1, Lam)
    differences = xp.concat([-xp.ones_like(eye[:1, :]), eye], axis=0)               # (k, c)
    B = xp.take(differences, xp.reshape(rank, (-1,)), axis=0)
    return xp.reshape(B, (*Lam.shape, k - 1))


def newton_direction(svm, at, system, to_product, to_ps):
    """The Step that changes the products Lam slack and p s by given amounts, to first order: with
    dp = dp0 + along d||V||,
        (H + slack/Lam) dLam = to_product/Lam + F (v dp0/lam2)' + miss_grad,
    up to a constant in each row, which B' in front removes.
    """
    F, Y, _, lam2, Q = svm
    xp = array_namespace(F)
    T, n, _ = Y.shape
    dp0 = (to_ps - at.p * system.miss_p) / system.total             # (T, m)
    through_p = scores(F, system.v * (dp0 / lam2[:, None])[:, None, :])             # (T, n, c)
    b = to_product / at.Lam + through_p @ Q.mT + system.miss_grad   # (T, n, k)
    b = xp.reshape(system.B.mT @ b[..., None], (T, -1))
    d = solve(system.A, b / system.scale) / system.scale
    dLam = (system.B @ xp.reshape(d, (T, n, -1, 1)))[..., 0]
    dVQ = -((dLam @ Q).mT @ F)                                      # (T, c, m)
    dnorm = xp.sum(system.v * dVQ, axis=1)
    dp = dp0 + system.along * dnorm
    return Step(dLam, (to_product - at.slack * dLam) / at.Lam, dp, dp - dnorm + system.miss_p)


SVM_METHODS = {"interior-point": (svm_interior_point, 80), "pbcd": (svm_pbcd, 10_000)}


# ------------------------------------------------------------------------------ sparse rotation
# Features F = Z L mix the factors Z. Of all bases of the tasks' weights on F, the one in which they
# are sparse is the factors': what Theorem 3.1 rests on, used after training.
#
#     x  (T, m)     a task's weights on the white features F C^-1/2, of norm 1
#     B  (s, m, m)  the bases of s starts, b_j a row; M = C^-1/2 B^-1 but for the columns' scale
#     v  (s, m, T)  the loadings v_jk = b_j'x_k, seen with errors of variance e_jk
#     prior         v_jk ~ N(0, tau2_j + e_jk), the slab, with probability prob_j,
#                   else N(0, floor tau2_j + e_jk), the spike

class NotIdentified(ValueError):
    """Tasks that determine no basis."""


Bases = namedtuple("Bases", "B prob tau2")                          # prob and tau2 (s, m, 1)
Loadings = namedtuple("Loadings", "v e on precision log_p")         # each (s, m, T)
ROTATION_STEPS = 100


def sparse_rotation(W, C, errors=None, width=0.0, starts=20, seed=0):
    """M (m, m) that makes the tasks' weights on F M sparse: the likeliest basis for loadings from a
    spike and a slab, by expectation maximisation from random bases.     [docs/derivations.md, 10]

    W (T, m), least-squares weights of T tasks on features F of mean 0 and covariance C (m, m)
    errors of W: their covariances sigma_k^2 (F_k'F_k)^-1, (T, m, m); or (T,) sigma_k/sqrt(n), if
             each task's own F_k'F_k/n is about C; or None where W is exact
    width    the spike's deviation as a share of the slab's, in [0, 1): 0 expects zeros, more
             expects loadings that are small where they are not large
    Returns M, with F M of variance 1 and the strongest feature first, and info:
        loadings (T, m)  W M^-T, the weights on F M
        on (T, m)        the probability that a loading is in the slab
        apart (m,)       of the tasks that use this feature, the share that does without another
                         one; apart_tasks (m,), how many these are: the least over the others
        identified (m,)  apart >= 1/5 and apart_tasks >= 3: Assumption 3.6, with a margin
        reached          the share of the starts whose log-likelihood is within 1 of the best one's
        evidence         the log-likelihood less occam_cost, to choose a width by
        gap, converged   the largest Newton step of a row along another, in deviations of the slab;
                         gap <= 1e-3
    Raises NotIdentified where W has no more than m > 1 tasks, each of which could be a factor, or
    spans fewer than m dimensions; ValueError where F does, and as check_tasks does.
    """
    W, C, errors = check_tasks(W, C, errors, width, starts)
    xp = array_namespace(W)
    x, noise, whitening = white_tasks(W, C, errors)
    bases = random_bases(x, starts, seed)
    for step in range(ROTATION_STEPS):                              # the spike falls to its width
        floor = width ** 2 + 0.5 * 0.85 ** step + 10 * xp.finfo(x.dtype).eps
        loadings = expectation(x, noise, floor, bases)
        bases = maximisation(x, loadings, bases)
    loadings = expectation(x, noise, floor, bases)
    likelihood = log_likelihood(loadings, bases)
    best = int(xp.argmax(likelihood))
    M, on = whitening @ xp.linalg.inv(bases.B[best, ...]), loadings.on[best, ...].mT
    M, V, on = in_order(M, W, C, on)
    slope, curvature = (a[best, ...] for a in along_rows(x, loadings, bases))
    gap = xp.max(xp.abs(slope / curvature) * (1 - identity(x.shape[1], x)))
    near = xp.astype(likelihood > likelihood[best] - 1, x.dtype)
    evidence = likelihood[best] - occam_cost(x.shape[0], curvature)
    info = {"loadings": V, "on": on, "evidence": evidence, "reached": xp.mean(near)}
    return M, info | {"gap": gap, "converged": gap <= 1e-3} | identification(on)


def white_tasks(W, C, errors):
    """x (T, m), the covariances of its errors (T, m, m), and C^-1/2 up to a rotation (m, m)."""
    xp, (T, m) = array_namespace(W), W.shape
    eps = xp.finfo(W.dtype).eps
    C, scale = (a[0, ...] for a in with_unit_diagonal(C[None, ...]))            # whatever F's units
    eigenvalues, E = xp.linalg.eigh(C)
    if not bool(eigenvalues[0] > 10 * m * eps):
        raise ValueError("C: the features are linearly dependent")
    root = scale[:, None] * E * xp.sqrt(eigenvalues)                # root root' = C
    x = W @ root
    norm = xp.linalg.vector_norm(x, axis=1)
    x = x / norm[:, None]
    singular = xp.linalg.svdvals(x)
    rank = int(xp.sum(xp.astype(singular > eps ** 0.5 * singular[0], xp.int64)))
    if rank < m or (T <= m and m > 1):
        raise NotIdentified(
            f"W: {T} tasks span {rank} of {m} dimensions: they identify no basis, which takes more "
            f"than {m} tasks that span all {m}")
    if errors is None:
        noise = xp.zeros((T, m, m), dtype=W.dtype, device=device(W))
    elif errors.ndim == 1:
        noise = errors[:, None, None] ** 2 * identity(m, W)
    else:
        noise = root.mT @ errors @ root
    return x, noise / norm[:, None, None] ** 2, xp.linalg.inv(root.mT)


def check_tasks(W, C, errors, width, starts):
    """Refuse shapes and dtypes that do not fit, values that are not finite or masked, and what
    check_weights and check_search do; W, C and errors."""
    W, C = as_plain_array("W", W), as_plain_array("C", C)
    errors = None if errors is None else as_plain_array("errors", errors)
    xp = array_namespace(W, C)
    shapes = [None if a is None else tuple(a.shape) for a in (W, C, errors)]
    T, m = shapes[0] if W.ndim == 2 else (0, 0)
    fits = T * m > 0 and shapes[1] == (m, m) and shapes[2] in (None, (T,), (T, m, m))
    if not fits or W.dtype not in (xp.float64, xp.float32):
        raise ValueError(
            f"expected W (T, m), C (m, m), errors (T,) or (T, m, m) or None, float64 or float32, "
            f"found {', '.join(map(str, shapes))}, {W.dtype}")
    given = (W, C) if errors is None else (W, C, errors)
    if not all(bool(xp.all(xp.isfinite(a))) for a in given):
        raise ValueError("W, C or errors hold values that are not finite")
    check_weights(W, C)
    check_search(errors, width, starts)
    return W, C, errors


def check_weights(W, C):
    """Refuse tasks without weights, or with weights that have no squares, and a C that is not
    symmetric."""
    xp, eps = array_namespace(W), array_namespace(W).finfo(W.dtype).eps
    empty = int(xp.sum(xp.astype(xp.all(W == 0, axis=1), xp.int64)))
    if empty:
        raise ValueError(f"W: {empty} of {W.shape[0]} tasks have no weights: leave them out")
    size, least = xp.max(xp.abs(W), axis=1), (xp.finfo(W.dtype).smallest_normal / eps) ** 0.5
    if not bool(xp.all((size > least) & (size < 1 / least))):
        raise ValueError("W: found a task whose weights are too large or too small to multiply")
    if not bool(xp.all(xp.abs(C - C.mT) <= 1e-4 * xp.max(xp.abs(C)))):          # as of float32
        raise ValueError("C: found a matrix that is not symmetric, no covariance")


def check_search(errors, width, starts):
    """Refuse negative errors, a spike as wide as the slab, and a search without a start."""
    if errors is not None:
        xp = array_namespace(errors)
        sizes = errors if errors.ndim == 1 else xp.linalg.diagonal(errors)
        if not bool(xp.all(sizes >= 0)):
            raise ValueError("errors: found a negative deviation or variance")
    if not 0 <= width < 1:
        raise ValueError(f"width: found {width}, expected a share of the slab, 0 <= width < 1")
    if starts < 1:
        raise ValueError(f"starts: found {starts}, expected 1 or more")


def random_bases(x, starts, seed):
    """Random rotations of the basis in which the x_k are white."""
    xp, (T, m) = array_namespace(x), x.shape
    random = numpy.random.default_rng(seed).standard_normal((starts, m, m))
    Q, _ = xp.linalg.qr(xp.asarray(random, dtype=x.dtype, device=device(x)))
    _, singular, Vt = xp.linalg.svd(x, full_matrices=False)
    half = 0.5 * xp.ones((starts, m, 1), dtype=x.dtype, device=device(x))
    return Bases(T ** 0.5 * Q @ (Vt / singular[:, None]), half, 2 * half)       # v of variance 1


def expectation(x, noise, floor, bases):
    """The Loadings in bases: whether each is of the slab, and so how precise the prior is on it."""
    xp, (B, prob, tau2) = array_namespace(x), bases
    s, m, _ = B.shape
    v = B @ x.mT
    bb = xp.reshape(B[..., :, None] * B[..., None, :], (s, m, m * m))
    e = bb @ xp.reshape(noise, (-1, m * m)).mT                      # b_j'noise_k b_j
    slab, spike = tau2 + e, floor * tau2 + e
    log_on = xp.log(prob / slab ** 0.5) - v * v / (2 * slab)
    log_off = xp.log((1 - prob) / spike ** 0.5) - v * v / (2 * spike)
    log_p = xp.logaddexp(log_on, log_off)
    on = xp.exp(log_on - log_p)
    return Loadings(v, e, on, on / slab + (1 - on) / spike, log_p)


def maximisation(x, loadings, bases):
    """Bases that fit these Loadings: the prior, then each row b_j in turn, of its old length.

    Up to that length, on which the likelihood does not depend, b_j minimises
    b'A_j b/2 - log|det B|, and so solves (B A_j) b_j = e_j.
    """
    xp, m = array_namespace(x), x.shape[1]
    v, e, on, _, _ = loadings
    used, mean_e = xp.sum(on, axis=2, keepdims=True), xp.sum(on * e, axis=2, keepdims=True)
    tau2 = (xp.sum(on * v * v, axis=2, keepdims=True) - mean_e) / used
    tau2 = xp.maximum(tau2, mean_e / used + 1e-9 * xp.mean(v * v, axis=2, keepdims=True))
    prob = xp.minimum(xp.maximum(used / x.shape[0], 0.01), 0.99)
    A, rows = curvatures(x, loadings), list(xp.unstack(bases.B, axis=1))
    for j, old in enumerate(rows):
        e_j = xp.broadcast_to(identity(m, x)[:, j:j + 1], (*old.shape, 1))
        b = xp.linalg.solve(xp.stack(rows, axis=1) @ A[:, j, ...], e_j)[..., 0]
        length = [xp.linalg.vector_norm(a, axis=1, keepdims=True) for a in (old, b)]
        rows[j] = b * (length[0] / length[1])
    return Bases(xp.stack(rows, axis=1), prob, tau2)


def curvatures(x, loadings):
    """A_j = sum_k precision_jk x_k x_k'/T, (s, m, m, m)."""
    xp, (T, m) = array_namespace(x), x.shape
    xx = xp.reshape(x[:, :, None] * x[:, None, :], (T, m * m))
    return xp.reshape(loadings.precision @ xx / T, (-1, m, m, m))


def along_rows(x, loadings, bases):
    """Slope and curvature, (s, j, i), of minus the log-likelihood a task along b_j + t b_i, where
    precisions are held; t in units of tau_j/tau_i, so that at t = 1 v_i's slab is let in whole."""
    xp, B = array_namespace(x), bases.B
    bAb = B[:, None, ...] @ curvatures(x, loadings) @ B.mT[:, None, ...]        # b_i'A_j b_l
    unit = xp.sqrt(bases.tau2 / bases.tau2.mT)
    slope = xp.stack([bAb[:, j, :, j] for j in range(x.shape[1])], axis=1)
    return slope * unit, xp.linalg.diagonal(bAb) * unit ** 2


def log_likelihood(loadings, bases):
    """Of the x_k of all tasks in each basis, (s,), without the constant of 2 pi."""
    xp, T = array_namespace(bases.B), loadings.v.shape[2]
    return xp.sum(loadings.log_p, axis=(1, 2)) + T * xp.linalg.slogdet(bases.B)[1]


def occam_cost(T, curvature):
    """What a log-likelihood owes to the fit of B itself, by Laplace's method.     [MacKay 1992]

    However dense weights are, each row of B makes m - 1 of its loadings zero, and the narrower the
    spike, the more that seems to be worth. Each direction b_j + t b_i costs half the log of its
    curvature, (m, m), times T.
    """
    xp = array_namespace(curvature)
    return xp.sum(xp.log(T * curvature) * (1 - identity(curvature.shape[0], curvature))) / 2


def in_order(M, W, C, on):
    """M's columns scaled, the strongest first, its largest loadings positive, loadings, on."""
    xp = array_namespace(M)
    M = M / xp.sqrt(xp.sum(M * (C @ M), axis=0))                    # F M of variance 1
    loadings = xp.linalg.solve(M, W.mT).mT
    shape = loadings / xp.linalg.vector_norm(loadings, axis=1, keepdims=True)       # of any unit
    sign = 1 - 2 * xp.astype(xp.sum(shape ** 3, axis=0) < 0, W.dtype)
    order = xp.argsort(-xp.sum(shape ** 2, axis=0), stable=True)
    return [xp.take(a, order, axis=1) for a in (M * sign, loadings * sign, on)]


def identification(on):
    """apart, apart_tasks and identified of sparse_rotation, from on (T, m).

    Where feature j never comes without i, b_i + t b_j is as sparse as b_i, and j is not identified.
    """
    xp, (T, m) = array_namespace(on), on.shape
    without = on.mT @ (1 - on) + T * identity(m, on)                # [j, i]: use j, but not i
    tasks = xp.min(without, axis=1)
    apart = xp.minimum(tasks / safe_divisor(xp.sum(on, axis=0)), 1)
    return {"apart": apart, "apart_tasks": tasks, "identified": (apart >= 0.2) & (tasks >= 3)}


# ------------------------------------------------------------------------------ made of: thresholds


def soft_threshold(a, tau):
    """ST(a, tau) = sign(a) (|a| - tau)_+, the proximal operator of tau |.|; tau broadcasts.

    [docs/derivations.md, 1]
    """
    xp = array_namespace(a)
    return xp.sign(a) * xp.maximum(xp.abs(a) - tau, 0)


def block_soft_threshold(V, tau, axis=-1):
    """BST(V, tau) = (1 - tau/||V||)_+ V over an axis, the proximal operator of tau ||.||_2.

    [L23, Prop. C.2]
    """
    xp = array_namespace(V)
    size = xp.sqrt(xp.sum(V * V, axis=axis, keepdims=True))
    return V * xp.maximum(1 - tau / safe_divisor(size), 0)


def project_simplex(V):
    """The Euclidean projection of each V (..., k) on the simplex.    [Duchi et al. 2008]

    (V - t)_+ with the t that makes it sum to 1.
    """
    xp, k = array_namespace(V), V.shape[-1]
    V = V - xp.max(V, axis=-1, keepdims=True)                      # no cancellation where V is huge
    sums = xp.cumulative_sum(xp.sort(V, axis=-1, descending=True), axis=-1)
    counts = xp.arange(1, k + 1, dtype=V.dtype, device=device(V))
    t = xp.max((sums - 1) / counts, axis=-1, keepdims=True)
    return xp.maximum(V - t, 0)


# ------------------------------------------------------------------------------ made of: iterations

TOLERANCE = {                # of the gap at which a solver has converged, in float64 and in float32
    "lasso": (1e-12, 1e-5),
    "group_lasso": (1e-10, 1e-4),
    "group_svm": (1e-8, 1e-4)}


def until_solved(solver, step, measure, w, problem, max_iter):
    """Repeat w <- step(w, *seen, *problem) until all gaps are within the TOLERANCE  ->  w, info.

    measure(w, *problem) -> gap (T,), seen: what a step wants to know of w. Every array has T rows.
    Once over a quarter of the batch is solved these tasks leave it; until then they step on.
    """
    xp = array_namespace(w)
    double, single = TOLERANCE[solver]
    tol = double if w.dtype == xp.float64 else single

    def take(arrays, rows):
        return [xp.take(a, rows, axis=0) for a in arrays]

    tasks = xp.arange(w.shape[0], device=device(w))                 # those still in the batch
    gone = []                                                       # (tasks, w, gap) of the others
    for n_iter in range(max_iter + 1):
        gap, seen = measure(w, *problem)
        open_ = gap > tol
        solved = w.shape[0] - int(xp.sum(xp.astype(open_, xp.int64)))
        if solved == w.shape[0] or n_iter == max_iter:
            break
        if solved > w.shape[0] // 4:
            order = xp.argsort(xp.astype(open_, xp.int8), stable=True)           # solved ones first
            gone.append(take((tasks, w, gap), order[:solved]))
            tasks, w = take((tasks, w), order[solved:])
            seen, problem = (take(arrays, order[solved:]) for arrays in (seen, problem))
        w = step(w, *seen, *problem)
    parts = zip(*gone, (tasks, w, gap), strict=True)
    tasks, w, gap = (xp.concat(part) for part in parts)
    w, gap = take((w, gap), xp.argsort(tasks))
    return w, {"n_iter": n_iter, "gap": gap, "converged": gap <= tol}


# ------------------------------------------------------------------------------ made of: systems

WIDE = 20  # over so many features supports are gathered, and lasso_step descends twice


def solve(A, b):
    """x (T, d) with A x = b, for regular A (T, d, d).

    b is repeated until there are over 500 numbers: below that NumPy holds Python's lock while it
    solves, and the other threads wait.
    """
    xp, copies = array_namespace(A), 500 // math.prod(b.shape) + 1
    return xp.linalg.solve(A, xp.repeat(b[..., None], copies, axis=-1))[..., 0]


def descent_direction(A, b):
    """x (T, d) with A x = b, A symmetric and positive semi-definite. If b is not in A's range there
    is none, and the objective falls without end along A's null space: then x is a very long step
    down it, which newton_step cuts at the first zero. The x of least norm would make no headway."""
    A, scale = with_unit_diagonal(A)
    x = array_namespace(A).linalg.solve(regularised(A), (b / scale)[..., None])
    return x[..., 0] / scale


def solve_psd(A, b):
    """x (T, d) with A x = b for symmetric positive semi-definite A (T, d, d), and singular (T,):
    which A are so to rounding. There x = A^+ b, of least norm, b less its part off A's range;
    elsewhere it is as exact as the condition of A, scaled to a diagonal of 1, allows.
    """
    xp, d = array_namespace(A), A.shape[-1]
    A, scale = with_unit_diagonal(A)
    b = b / scale
    A_inv = xp.linalg.inv(regularised(A))
    x = matvec(A_inv, b)
    x = x + matvec(A_inv, b - matvec(A, x))                         # A_inv is of A + rounding I
    trace = xp.sum(xp.abs(xp.linalg.diagonal(A_inv)), axis=1)       # >= 1 / A's least eigenvalue
    unclear = trace * 1000 * d * xp.finfo(A.dtype).eps > 1          # then refining fails, too
    x, singular = x / scale, unclear
    if bool(xp.any(unclear)):
        exact, null = least_norm(A, scale, b)
        x, singular = xp.where(unclear[:, None], exact, x), unclear & null
    return x, singular


def least_norm(A, scale, b):
    """x = (D A D)^+ D b, D = diag(scale), and whether A is singular (T,): v with A v = b, then
    x = v/scale; of D b and of x the part in the null space of D A D is left out."""
    xp, d = array_namespace(A), A.shape[-1]
    eigenvalues, E = xp.linalg.eigh(A)
    rounding = 10 * d * xp.finfo(A.dtype).eps * eigenvalues[:, -1:]
    null = (eigenvalues <= rounding)[:, None, :]                    # (T, 1, d)
    N = xp.where(null, E, 0) / scale[:, :, None]                    # A diag(scale) N = 0
    N_inv = xp.linalg.pinv(N)

    def in_range(x):
        return x - matvec(N, matvec(N_inv, x))

    b = in_range(b * scale) / scale
    coefficients = matvec(E.mT, b) / xp.where(null[:, 0, :], 1, eigenvalues)
    x = matvec(xp.where(null, 0, E), coefficients) / scale
    return in_range(x), xp.any(null, axis=(1, 2))


def solve_on_support(A, S, b):
    """x (T, m) with A_SS x_S = b_S, 0 off S, and which A_SS are singular, as of solve_psd."""
    A_S, b_S, back = restrict(A, S, b)
    x, singular = solve_psd(A_S, b_S)
    return back(x), singular


def restrict(A, S, b):
    """A_SS and b_S of all tasks as systems of one size, and back(x), which puts their solution
    where it belongs, 0 off S. A (T, m, m), S and b (T, m).

    Off S a row is that of the identity. Of more than WIDE features only as many are kept as the
    largest support has, a task's own in front.
    """
    xp, m = array_namespace(A), A.shape[1]

    def back(x):
        return x

    if m > WIDE:
        width = max(1, int(xp.max(xp.sum(xp.astype(S, xp.int64), axis=1))))
        order = xp.argsort(xp.astype(~S, xp.int8), axis=1, stable=True)
        first, place = order[:, :width], xp.argsort(order, axis=1)
        A = xp.take_along_axis(A, first[:, :, None], axis=1)        # rows, then columns
        A = xp.take_along_axis(A, first[:, None, :], axis=2)
        S, b = (xp.take_along_axis(a, first, axis=1) for a in (S, b))
        rest = xp.zeros((A.shape[0], m - width), dtype=A.dtype, device=device(A))

        def back(x):
            return xp.take_along_axis(xp.concat([x, rest], axis=1), place, axis=1)

    A = xp.where(S[:, :, None] & S[:, None, :], A, identity(A.shape[1], A))
    return A, xp.where(S, b, 0), back


def with_unit_diagonal(A):
    """A_ij / (scale_i scale_j), of diagonal 1 or 0, and scale (T, d), whatever A's units."""
    xp = array_namespace(A)
    scale = xp.sqrt(safe_divisor(xp.linalg.diagonal(A)))
    return A / scale[:, :, None] / scale[:, None, :], scale


def regularised(A):
    """A + delta I, delta of rounding size: regular where A, of diagonal 1, is semi-definite."""
    d = A.shape[-1]
    return A + 32 * d * array_namespace(A).finfo(A.dtype).eps * identity(d, A)


# ------------------------------------------------------------------------------ made of: refusals


def check_problem(F, Y, *lams, ndim=None):
    """Refuse what is no problem: as check_shapes, values that are not finite or too large to be
    squared, and a task's F too small to be."""
    F, Y = check_shapes(F, Y, ndim=ndim)
    xp = array_namespace(F)
    squares = xp.sum(F * F, axis=(1, 2))
    if not bool(xp.isfinite(xp.sum(squares) + xp.sum(Y * Y))):
        raise ValueError("F or y holds values that are not finite (or too large to multiply)")
    least = xp.finfo(F.dtype).smallest_normal / xp.finfo(F.dtype).eps
    if bool(xp.any((squares < least) & xp.any(F != 0, axis=(1, 2)))):
        raise ValueError(f"F: found a task of values too small to multiply in {F.dtype}")
    return F, Y, *(per_task(lam, F) for lam in lams)


def check_shapes(F, Y, *lams, ndim=None):
    """Refuse other shapes and dtypes, masked values, and negative penalties.

    F (T, n, m) float64 or float32 and Y (T, n) or (T, n, k), one of them where ndim says which, of
    the same dtype (integers and bools are converted); each of lams a number or (T,)  ->  F, Y and
    each of lams (T,), of F's dtype. Raises ValueError.
    """
    expected = {2: "y (T, n)", 3: "Y (T, n, k)", None: "y (T, n) or Y (T, n, k)"}[ndim]
    F, Y = as_plain_array("F", F), as_plain_array("Y", Y)
    xp = array_namespace(F, Y)
    if F.dtype not in (xp.float64, xp.float32):
        raise ValueError(f"F: found {F.dtype}, expected float64 or float32")
    if xp.isdtype(Y.dtype, ("bool", "integral")):
        Y = xp.astype(Y, F.dtype)
    found = f"{tuple(F.shape)} {F.dtype} and {tuple(Y.shape)} {Y.dtype}"
    fits = F.ndim == 3 and Y.ndim in ((2, 3) if ndim is None else (ndim,))
    if not fits or Y.shape[:2] != F.shape[:2] or Y.dtype != F.dtype:
        raise ValueError(f"expected F (T, n, m) and {expected} of one dtype, found {found}")
    if 0 in F.shape or 0 in Y.shape:
        raise ValueError(f"found no samples, features, outputs or tasks: {found}")
    return F, Y, *(per_task(lam, F) for lam in lams)


def as_plain_array(name, a):
    """NumPy's arrays in this machine's byte order, and not masked; others as they are."""
    if not is_numpy_array(a):
        return a
    if numpy.ma.is_masked(a):
        raise ValueError(f"{name}: found masked values: fill them, or leave their samples out")
    return numpy.asarray(a, dtype=a.dtype.newbyteorder("="))


def per_task(lam, F):
    """A penalty as (T,); ValueError where it is negative, not finite or of another shape."""
    xp, T = array_namespace(F), F.shape[0]
    lam = xp.asarray(lam, dtype=F.dtype, device=device(F))
    if lam.shape not in ((), (T,)):
        raise ValueError(f"lam: found shape {tuple(lam.shape)}, expected a number or ({T},)")
    if not bool(xp.all(xp.isfinite(lam) & (lam >= 0))):
        raise ValueError("lam: found a value that is negative or not finite")
    return lam + xp.zeros(T, dtype=F.dtype, device=device(F))


def check_labels(Y, loss):
    """Refuse labels Y (T, n, k) that the loss does not take: "squared", any; "logistic",
    probabilities that sum to 1 (k = 1: at most 1); "hinge", one-hot of at least 2 classes."""
    xp = array_namespace(Y)
    total, low = xp.sum(Y, axis=2), xp.min(Y)
    if loss == "hinge":
        fits = Y.shape[2] > 1 and bool(xp.all(total == 1) & xp.all((Y == 0) | (Y == 1)))
        expected = "one-hot rows of at least 2 classes"
    elif loss == "logistic":
        near = xp.abs(total - 1) <= xp.finfo(Y.dtype).eps ** 0.5
        fits = bool((low >= 0) & xp.all(total <= 1 if Y.shape[2] == 1 else near))
        expected = "probabilities, which sum to 1 (one column: from 0 to 1)"
    elif loss != "squared":
        raise ValueError(f"loss: found {loss}, expected squared or logistic")
    if loss != "squared" and not fits:
        raise ValueError(f"Y: found a row that is none of {expected}, shape {tuple(Y.shape)}")


# ------------------------------------------------------------------------------ made of: threads
# Within `with cpu_threads(n)` blocks of work run on n threads, and BLAS, whose own threads would
# wait for the same cores, has one. Elsewhere all is serial; BLAS has one thread in an encoder, and
# the caller's in the solvers. Work is cut by its shapes alone, so that no sum depends on n.
# A process must not fork while another of its threads is in a BLAS of several threads: it hangs.

# Of the innermost cpu_threads that this thread is in: its pool, n, how deep, and the process.
Threads = namedtuple("Threads", "pool n depth process")
SERIAL = Threads(None, 1, 0, None)
_threads = contextvars.ContextVar("threads", default=SERIAL)
_lock = threading.Lock()                                            # of one_blas_thread:
_inside, _before = 0, []                                            # how many, counts before


@contextlib.contextmanager
def cpu_threads(n=None):
    """Blocks on n threads, one a core where none is told, and BLAS on one, in all that is called
    within."""
    n = n or os.cpu_count() or 1
    blas_libraries.cache_clear()                                    # more may be loaded by now
    with one_blas_thread(), ThreadPoolExecutor(n) as pool:
        entered = _threads.set(Threads(pool, n, _threads.get().depth + 1, os.getpid()))
        try:
            yield
        finally:
            _threads.reset(entered)


def on_threads(f, *blocks):
    """[f(...) for each block], in order; after an error, or Ctrl-C, none is begun.

    Each thread takes the next block until none is left: a job for each block is slower. The threads
    of a pool are in no cpu_threads: what they call is serial.
    """
    pool, n, _, process = _threads.get()
    if n < 2 or process != os.getpid():                             # a fork has no threads
        return list(map(f, *blocks))
    out = [None] * len(blocks[0])
    left = iter(enumerate(zip(*blocks, strict=True)))

    def work():
        for i, block in left:                                       # one at a time, under the GIL
            out[i] = f(*block)

    jobs = []
    try:
        with contextlib.suppress(RuntimeError):                     # the main thread has ended:
            for _ in range(n):                                      # no new one may begin
                jobs.append(pool.submit(work))
        if len(jobs) < n:
            work()
        wait(jobs, return_when=FIRST_EXCEPTION)
    finally:
        list(left)                                                  # none is left, or to be begun
    for job in jobs:
        job.result()
    return out


def on_task_blocks(f, size, *arrays):
    """f(*arrays) -> arrays, all of T rows, `size` tasks at a time (not NumPy's: all at once)."""
    T = arrays[0].shape[0]
    size = max(1, size) if is_numpy_array(arrays[0]) else T
    blocks = [slice(i, i + size) for i in range(0, T, size)]
    parts = on_threads(lambda block: f(*(a[block, ...] for a in arrays)), blocks)
    return [array_namespace(*parts).concat(parts) for parts in zip(*parts, strict=True)]


@contextlib.contextmanager
def one_blas_thread():
    """BLAS on one thread from the first who enters to the last who leaves, in whatever thread; then
    as the caller had set it."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = set_blas_threads()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                set_blas_threads(_before)


def set_blas_threads(counts=None):
    """Set how many threads each BLAS library has in this process (one); returns what they had.

    threadpoolctl >= 3.7: the thread that was the first to set it is the only one that may, until
    that is cleared.
    """
    libraries = blas_libraries()
    had = [library.num_threads for library in libraries]
    for library, count in zip(libraries, counts or [1] * len(libraries), strict=False):
        clear = getattr(library, "clear_controlling_thread", lambda force: None)
        clear(force=True)
        library.set_num_threads(count)
        clear(force=True)
    return had


@functools.cache
def blas_libraries():
    """threadpoolctl's hold on each BLAS library; to look for them takes 4 ms."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def renew_after_fork():
    """In a forked child only the thread that forked is left in one_blas_thread."""
    global _inside
    was, _inside = _inside, _threads.get().depth
    if was and not _inside:
        set_blas_threads(_before)
    _lock.release()


if hasattr(os, "register_at_fork"):                                 # a lock held then stays locked
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=renew_after_fork)

# ------------------------------------------------------------------------------ made of: notation


def matvec(A, x):
    """(T, a, b) times (T, b) -> (T, a)."""
    return (A @ x[..., None])[..., 0]


def outer_product(a, b):
    """(T, a) times (T, b) -> (T, a, b)."""
    return a[:, :, None] * b[:, None, :]


def gram(F):
    """G = F'F/n, (T, m, m)."""
    return F.mT @ F / F.shape[1]


def correlations(F, y):
    """c = F'y/n, (T, m)."""
    return matvec(F.mT, y) / F.shape[1]


def identity(k, like):
    """The k x k identity, of the dtype and on the device of an array."""
    return array_namespace(like).eye(k, dtype=like.dtype, device=device(like))


def safe_divisor(a):
    """a where it is positive and 1 elsewhere: a safe divisor."""
    return array_namespace(a).where(a > 0, a, 1)
