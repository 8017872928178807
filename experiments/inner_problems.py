"""inner_problems.py -- sparse fits that are not the Lasso: exact, concave, refitted, unfinished.

    F (T, n, m), y (T, n), w (T, m)    features, labels and predictors of T tasks, n >= m
    G = F'F/n (T, m, m), c = F'y/n     with f(w) = w'G w/2 - c'w, the squared error but for y's
    S (2^m, m)                         all supports, as masks; at m = 6 there are 64

    best_subset      min_w f(w) + price ||w||_0           by enumeration, the minimum itself
    best_subset_of   min_w f(w), ||w||_0 <= size          what Theorem 3.1 is about  [L23, (4)]
    relaxed_lasso    least squares on the Lasso's support            [Meinshausen 2007]
    mcp              the minimax concave penalty, whose slope falls to 0 where |w| = gamma lam:
                     a local minimum, not known to be the least                    [Zhang 2010]
    unfinished       a Lasso by cyclic coordinate descent, stopped early

Each comes as fit(F, y, strength) -> w, info and its adjoint, and as a head of sparsedis: in HEADS,
head_of_size, unfinished_head.
"""
import functools

import numpy as np

import solvers
import sparsedis

MAX_FEATURES = 10  # of an enumeration: 1024 supports
GAMMA = 3.0  # of the minimax concave penalty, as published

# ------------------------------------------------------------------------------ best subsets


def supports(m):
    """All supports (2^m, m) of m features, the empty one first."""
    if m > MAX_FEATURES:
        raise ValueError(f"best subsets: found {m} features, expected at most {MAX_FEATURES}")
    return (np.arange(2 ** m)[:, None] >> np.arange(m)) % 2 == 1


def on_all_supports(F, y):
    """Least squares on every support: w (T, 2^m, m), and by how much each lowers f, (T, 2^m)."""
    F, y = check(F, y)
    S, m = supports(F.shape[2]), F.shape[2]
    G, c = solvers.gram(F), solvers.correlations(F, y)
    if (np.linalg.matrix_rank(G, hermitian=True) < m).any():
        raise ValueError("best subsets: found a task of linearly dependent features")
    A = np.where(S[:, :, None] & S[:, None, :], G[:, None], np.eye(m))          # (T, 2^m, m, m)
    b = np.where(S, c[:, None], 0)
    w = np.linalg.solve(A, b[..., None])[..., 0]
    return w, np.sum(b * w, axis=2) / 2


def check(F, y):
    """F and y as float64; ValueError where there are fewer samples than features, and as
    solvers.check_problem."""
    F, y = np.asarray(F, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if F.ndim != 3 or y.shape != F.shape[:2] or F.shape[1] < F.shape[2]:
        raise ValueError(
            f"inner problems: found F {F.shape} and y {y.shape}, expected (T, n, m) and (T, n) "
            "with n >= m")
    return solvers.check_problem(F, y)


def best_subset(F, y, price):
    """argmin_w ||y - F w||^2/(2n) + price ||w||_0, price (T,)  ->  w, info."""
    sizes = supports(F.shape[2]).sum(axis=1)
    return least(F, y, np.multiply.outer(price, sizes))


def best_subset_of(F, y, size):
    """argmin_w ||y - F w||^2/(2n) s.t. ||w||_0 <= size, a number or (T,)  ->  w, info."""
    sizes = supports(F.shape[2]).sum(axis=1)
    size = np.broadcast_to(size, len(F))
    return least(F, y, np.where(sizes <= size[:, None], 0, np.inf))


def least(F, y, cost):
    """The least squares fit of least f + cost (T, 2^m); info has, for each task,

    margin     by how much the next best support is worse: w(F) is smooth where it is not 0
    gap        the largest violation of the normal equations, over max |c|; converged: <= 1e-9
    """
    each, gain = on_all_supports(F, y)
    total = cost - gain
    best, second = np.partition(total, 1, axis=1)[:, :2].T
    w = each[np.arange(len(each)), total.argmin(axis=1)]
    G, c = solvers.gram(F), solvers.correlations(F, y)
    violation = np.abs(c - solvers.matvec(G, w)) * (w != 0)
    gap = violation.max(axis=1) / solvers.safe_divisor(np.abs(c).max(axis=1))
    return w, {"margin": second - best, "gap": gap, "converged": gap <= 1e-9}


def price_max(F, y):
    """The least price, (T,), at which no feature is worth it: max_S (what S lowers f by) / |S|."""
    _, gain = on_all_supports(F, y)
    sizes = supports(F.shape[2]).sum(axis=1)
    return (gain[:, 1:] / sizes[1:]).max(axis=1)


def least_squares_vjp(F, y, w, dw):
    """dF and dy through least squares on the support of w, which is a constant.

    R = F_S'(F_S w_S - y)/n = 0:  A = G_SS,  A u_S = dw_S,  and as of the Lasso from there on.
    """
    S = w != 0
    u, _ = solvers.solve_on_support(solvers.gram(F), S, dw)
    return solvers.pull_back(F, y, w, u)


def relaxed_lasso(F, y, lam):
    """Least squares on the support of the Lasso  ->  w, info, of which gap is the Lasso's."""
    F, y = check(F, y)
    chosen, info = solvers.lasso(F, y, lam)
    S = chosen != 0
    w, _ = solvers.solve_on_support(solvers.gram(F), S, solvers.correlations(F, y))
    return w, info


# ------------------------------------------------------------------------------ concave


def mcp(F, y, lam, gamma=GAMMA, sweeps=100):
    """A local minimum of f(w) + sum_j p(w_j), p' = (lam - |w|/gamma)_+ sign(w), lam (T,).

    Cyclic coordinate descent from the Lasso's solution, and after each sweep a Newton step, kept
    where it solves the task and the curvature there is positive: no saddle. gap is the largest
    violation of stationarity over lasso_lambda_max, converged: <= 1e-10. Along a coordinate the
    penalty must be less concave than f is convex: ValueError unless every G_jj > 1/gamma.
    """
    F, y = check(F, y)
    G, c = solvers.gram(F), solvers.correlations(F, y)
    flattest = np.linalg.diagonal(G).min()
    if flattest <= 1 / gamma:
        raise ValueError(f"mcp: found a feature with F'F/n {flattest:.3g}, expected more than "
                         f"1/gamma, {1 / gamma:.3g}")
    lam = np.broadcast_to(np.asarray(lam, dtype=np.float64), c.shape[:1])
    unit = solvers.safe_divisor(np.abs(c).max(axis=1))
    w, _ = solvers.lasso(F, y, lam)
    gap = mcp_gap(w, G, c, lam, gamma) / unit
    for _ in range(sweeps):
        if gap.max() <= 1e-10:
            break
        swept = mcp_sweep(w, G, c, lam, gamma)
        jumped = mcp_newton(swept, G, c, lam, gamma)
        there = mcp_gap(jumped, G, c, lam, gamma) / unit <= 1e-10
        there &= is_convex(jumped, G, lam, gamma)
        w = np.where((gap <= 1e-10)[:, None], w, np.where(there[:, None], jumped, swept))
        gap = mcp_gap(w, G, c, lam, gamma) / unit
    return w, {"gap": gap, "converged": gap <= 1e-10}


def mcp_sweep(w, G, c, lam, gamma):
    """Each weight in turn to its minimum, the others fixed."""
    w = w.copy()
    for j in range(w.shape[1]):
        a, rest = G[:, j, j], c[:, j] - np.vecdot(G[:, j], w) + G[:, j, j] * w[:, j]
        near = solvers.soft_threshold(rest, lam) / (a - 1 / gamma)
        w[:, j] = np.where(np.abs(near) <= gamma * lam, near, rest / a)
    return w


def mcp_newton(w, G, c, lam, gamma):
    """The stationary point of the support, the signs and the bends of w, wherever it lies."""
    A, S, bends = mcp_curvature(w, G, lam, gamma)
    b = c - bends * lam[:, None] * np.sign(w)
    return np.linalg.solve(*on_support(A, S, b))[..., 0]


def is_convex(w, G, lam, gamma):
    """Whether the objective is, on the support, at the stationary point w of each task, (T,)."""
    A, S, _ = mcp_curvature(w, G, lam, gamma)
    return np.linalg.eigvalsh(on_support(A, S, w)[0])[:, 0] > 0


def mcp_curvature(w, G, lam, gamma):
    """A = G - diag(bends)/gamma, the support S, and where on it the penalty bends, (T, m)."""
    S = w != 0
    bends = S & (np.abs(w) < gamma * lam[:, None])
    return G - bends[:, :, None] * np.eye(w.shape[1]) / gamma, S, bends


def mcp_gap(w, G, c, lam, gamma):
    """The largest violation of stationarity of each task, (T,)."""
    return mcp_violation(c - solvers.matvec(G, w), w, lam[:, None], gamma).max(axis=1)


def mcp_violation(q, w, lam, gamma):
    """By how much q = c - G w misses stationarity, (T, m): q_j = p'(w_j), |q_j| <= lam at 0."""
    slope = np.maximum(lam - np.abs(w) / gamma, 0) * np.sign(w)
    return np.where(w != 0, np.abs(q - slope), np.maximum(np.abs(q) - lam, 0))


def mcp_vjp(F, y, lam, w, dw, gamma=GAMMA):
    """dF, dy and dlam: as of the Lasso, but that the penalty bends where |w| < gamma lam."""
    lam = np.broadcast_to(np.asarray(lam), w.shape[:1])
    A, S, bends = mcp_curvature(w, solvers.gram(F), lam, gamma)
    u = np.linalg.solve(*on_support(A, S, dw))[..., 0]
    dF, dy = solvers.pull_back(F, y, w, u)
    return dF, dy, -np.sum(np.sign(w) * bends * u, axis=1)


def on_support(A, S, b):
    """The systems A_SS x_S = b_S, x = 0 off S, as A (T, m, m) and b (T, m, 1): A need not be
    positive definite, as solvers.solve_on_support asks."""
    return np.where(S[:, :, None] & S[:, None, :], A, np.eye(S.shape[1])), (S * b)[..., None]


# ------------------------------------------------------------------------------ unfinished


def unfinished_lasso(F, y, lam, tolerance, sweeps=10_000):
    """The Lasso by cyclic coordinate descent from 0, each task until its gap, as of solvers.lasso,
    is at most `tolerance`  ->  w, info; sweeps: of the slowest task."""
    F, y = check(F, y)
    G, c = solvers.gram(F), solvers.correlations(F, y)
    lam, diagonal = np.broadcast_to(np.asarray(lam), c.shape[:1]), np.linalg.diagonal(G)
    unit = solvers.safe_divisor(np.abs(c).max(axis=1))
    w = np.zeros_like(c)
    for n_iter in range(sweeps + 1):
        q = c - solvers.matvec(G, w)
        gap = solvers.lasso_violation(q, lam, w).max(axis=1) / unit
        going = gap > tolerance
        if n_iter == sweeps or not going.any():
            break
        for j in range(w.shape[1]):
            rest = c[:, j] - np.vecdot(G[:, j], w) + diagonal[:, j] * w[:, j]
            moved = solvers.soft_threshold(rest, lam) / solvers.safe_divisor(diagonal[:, j])
            w[:, j] = np.where(going, moved, w[:, j])
    return w, {"gap": gap, "n_iter": n_iter}                        # converged is not told


def proximal_step(F, y, lam):
    """One step of proximal gradient from 0, of length 1 over the largest eigenvalue of G."""
    F, y = check(F, y)
    G, c = solvers.gram(F), solvers.correlations(F, y)
    step = 1 / solvers.safe_divisor(np.linalg.eigvalsh(G)[:, -1:])
    lam = np.broadcast_to(np.asarray(lam), c.shape[:1])[:, None]
    w = solvers.soft_threshold(step * c, step * lam)
    unit = solvers.safe_divisor(np.abs(c).max(axis=1))
    violation = solvers.lasso_violation(c - solvers.matvec(G, w), lam[:, 0], w)
    return w, {"gap": violation.max(axis=1) / unit, "n_iter": 1}


# ------------------------------------------------------------------------------ heads


def head(fit, fit_vjp, F, y, strength, n_support=None, params=None):
    """The head of a fit: squared error, and its gradient in F."""
    return sparsedis.bilevel(fit, fit_vjp, sparsedis.squared_error, F, y, strength, n_support)


def through_least_squares(F, y, strength, w, dw, info):
    """The adjoint of whatever is least squares on its support."""
    return least_squares_vjp(F, y, w, dw)[0], {}


MCP_VJP = sparsedis.features_only(mcp_vjp)
LASSO_VJP = sparsedis.features_only(solvers.lasso_vjp)

HEADS = {                             # name -> head, and the scale of its strength
    "subset": (functools.partial(head, best_subset, through_least_squares), price_max),
    "relaxed": (functools.partial(head, relaxed_lasso, through_least_squares),
                solvers.lasso_lambda_max),
    "mcp": (functools.partial(head, mcp, MCP_VJP), solvers.lasso_lambda_max)}


def head_of_size(F, y, size, n_support=None, params=None):
    """The head of best_subset_of, size (T,) in place of a strength."""
    return head(best_subset_of, through_least_squares, F, y, size, n_support)


def unfinished_head(tolerance):
    """The head of a Lasso that is stopped at a tolerance; "step": after one proximal step. Its
    gradient is taken as if the Lasso were solved."""
    fit = proximal_step
    if tolerance != "step":
        fit = functools.partial(unfinished_lasso, tolerance=tolerance)
    return functools.partial(head, fit, LASSO_VJP)
