"""solvers.py -- the inner problems: solve each one exactly, differentiate each one exactly.

    T, n, m       tasks, samples per task, features: T leads every array, one call solves all tasks
    F  (T, n, m)  features            y  (T, n)  labels            w  (T, m)  weights
    lam           strength of the penalty, a number or (T,)
    G  (T, m, m)  F'F/n, the Gram matrix                           c  (T, m)  F'y/n
    q  (T, m)     c - G w = F'(y - F w)/n, the correlation of each feature with the residual
    S  (T, m)     the support {j : w_j != 0}, a mask
    dX            dL/dX for a loss L of the solution, with the shape of X
    u             the adjoint solution: curvature u = dw, the one linear system of every vjp

Every solver returns a certificate with its solution; every vjp pulls dw back to the problem's data.
Arrays may come from any library that array-api-compat knows: NumPy, CuPy, PyTorch, ...

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023, arXiv 2211.14666.
"""
from array_api_compat import array_namespace, device

# ------------------------------------------------------------------------------------------- notation


def soft_threshold(a, tau):
    """ST(a, tau) = sign(a) (|a| - tau)_+, the proximal operator of tau |.|; tau broadcasts.   [L23, App. C]"""
    xp = array_namespace(a)
    return xp.sign(a) * xp.maximum(xp.abs(a) - tau, 0)


def transpose(A):
    """(..., a, b) -> (..., b, a)."""
    return array_namespace(A).matrix_transpose(A)


def matvec(A, x):
    """(T, a, b) times (T, b) -> (T, a)."""
    return array_namespace(A).matmul(A, x[..., None])[..., 0]


def outer(a, b):
    """(T, a) times (T, b) -> (T, a, b)."""
    return a[:, :, None] * b[:, None, :]


def gram(F):
    """F'F/n, (T, m, m)."""
    return array_namespace(F).matmul(transpose(F), F) / F.shape[1]


def per_task(lam, F):
    """A penalty as (T,), refused when negative or not finite."""
    xp = array_namespace(F)
    lam = xp.asarray(lam, dtype=F.dtype, device=device(F)) + xp.zeros(F.shape[0], dtype=F.dtype, device=device(F))
    if not bool(xp.all(xp.isfinite(lam) & (lam >= 0))):
        raise ValueError("lam must be finite and >= 0")
    return lam


def correlations(F, y):
    """c = F'y/n, (T, m), refused when not finite or of the wrong shape."""
    xp = array_namespace(F, y)
    if F.ndim != 3 or y.shape != F.shape[:2]:
        raise ValueError(f"expected F (T, n, m) and y (T, n), found {tuple(F.shape)} and {tuple(y.shape)}")
    c = matvec(transpose(F), y) / F.shape[1]
    if not bool(xp.all(xp.isfinite(c))):
        raise ValueError("F or y holds values that are not finite (or too large to multiply)")
    return c


def lasso_lambda_max(F, y):
    """||F'y||_inf / n, (T,): from this lam on, the Lasso solution is w = 0.                  [L23, App. D.2.3]"""
    xp = array_namespace(F)
    return xp.max(xp.abs(correlations(F, y)), axis=1)


def ridge_lambda_max(F):
    """||F||_F^2 / n, (T,): the scale of the ridge penalty, the trace of the Gram matrix.     [L23, App. D.2.3]"""
    xp = array_namespace(F)
    return xp.sum(F * F, axis=(1, 2)) / F.shape[1]


# ------------------------------------------------------------------------------- linear systems on supports


def shifted(A):
    """A + delta I for symmetric positive semi-definite A (T, k, k): delta, of rounding size, keeps it regular."""
    xp = array_namespace(A)
    k = A.shape[-1]
    delta = k * xp.finfo(A.dtype).eps * xp.max(xp.abs(A), axis=(1, 2))                  # (T,)
    delta = xp.where(delta > 0, delta, xp.ones_like(delta))
    return A + delta[:, None, None] * xp.eye(k, dtype=A.dtype, device=device(A))


def solve_shifted(A, b):
    """(A + delta I)^-1 b, for b (T, k): a Newton step, to be followed by others."""
    return array_namespace(A).linalg.solve(shifted(A), b[..., None])[..., 0]


def solve_psd(A, b):
    """x with A x = b for symmetric positive semi-definite A (T, k, k), b (T, k), to full precision.

    A solve and one refinement. A second right-hand side, a probe with a part in every eigenvector, stays unsolved
    where a matrix is singular; then the pseudo-inverse gives, of all least-squares solutions, the one of least norm.
    """
    xp = array_namespace(A)
    k, eps, A_shifted = A.shape[-1], xp.finfo(A.dtype).eps, shifted(A)
    probe = xp.cos(xp.arange(1, k + 1, dtype=A.dtype, device=device(A)) ** 2)
    B = xp.stack([b, 0 * b + probe], axis=2)                                            # (T, k, 2)
    X = xp.linalg.solve(A_shifted, B)
    X = X + xp.linalg.solve(A_shifted, B - xp.matmul(A, X))
    unsolved = xp.abs(B - xp.matmul(A, X))[:, :, 1]
    if bool(xp.all(unsolved <= 1e-3)):
        return X[:, :, 0]
    return matvec(xp.linalg.pinv(A, rtol=10 * k * eps), b)


def solve_on_support(A, S, b, solve=solve_psd):
    """x with A_SS x_S = b_S and x = 0 off S, for every task of A (T, m, m), S and b (T, m).

    The supports are gathered first, so that the systems have the size of the largest support.
    """
    xp = array_namespace(A)
    T, m = S.shape
    k = int(xp.max(xp.sum(xp.astype(S, xp.int64), axis=1)))
    if k == 0:
        return xp.zeros_like(b)
    order = xp.argsort(xp.astype(~S, xp.int8), axis=1, stable=True)                     # support first
    first = order[:, :k]
    on = xp.take_along_axis(S, first, axis=1)                                           # (T, k)
    rows = m * (first + m * xp.arange(T, device=device(A))[:, None])                    # where A[t, i, 0] lies
    A = xp.take(xp.reshape(A, (-1,)), xp.reshape(rows[:, :, None] + first[:, None, :], (-1,)))
    A = xp.where(on[:, :, None] & on[:, None, :], xp.reshape(A, (T, k, k)), xp.eye(k, dtype=A.dtype, device=device(A)))
    x = xp.zeros(S.shape, dtype=A.dtype, device=device(A))
    x[:, :k] = solve(A, xp.where(on, xp.take_along_axis(b, first, axis=1), 0))
    return xp.take_along_axis(x, xp.argsort(order, axis=1), axis=1)                     # undo the order


# --------------------------------------------------------------------------------------------------- Lasso


def lasso(F, y, lam, max_iter=None):
    """argmin_w  ||y - F w||^2 / (2 n) + lam ||w||_1  for every task.                     [L23, Problem (6)]

    F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m), info with n_iter and, per task,
        gap        the largest violation of the optimality conditions, in units of lasso_lambda_max
        converged  gap <= 1e-12 in float64, 1e-5 in float32
    From w = 0, each iteration takes one step of proximal coordinate descent (the paper's solver) on the
    coordinate that violates optimality most, then one Newton step on the support so found, which is exact
    once the support is right. Neither step raises the objective, so the support cannot cycle. Where the
    minimiser is not unique (lam = 0 with n < m, equal columns) one of them is returned. Raises ValueError
    for inputs that are not finite, a negative lam, or wrong shapes.
    """
    xp = array_namespace(F)
    lam, G, c = per_task(lam, F), gram(F), correlations(F, y)
    unit = xp.max(xp.abs(c), axis=1)
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    tol = 1e-12 if F.dtype == xp.float64 else 1e-5
    w, gap, left = xp.zeros_like(c), xp.zeros_like(lam), xp.arange(F.shape[0], device=device(F))
    done = []                                                                           # [ids, w, gap] of solved tasks
    max_iter = 100 + 20 * F.shape[2] if max_iter is None else max_iter
    for n_iter in range(max_iter + 1):
        q = c - matvec(G, w)
        v = lasso_violation(q, lam, w)
        gap = xp.max(v, axis=1) / unit
        solved = int(xp.sum(xp.astype(gap <= tol, xp.int64)))
        if solved == w.shape[0] or n_iter == max_iter:
            break
        if solved > w.shape[0] // 4:                                                    # solved tasks leave the batch
            order = xp.argsort(xp.astype(gap > tol, xp.int8), stable=True)
            done.append([xp.take(a, order[:solved], axis=0) for a in (left, w, gap)])
            left, w, q, v, G, c, lam, unit = (xp.take(a, order[solved:], axis=0) for a in (left, w, q, v, G, c, lam, unit))
        w, q = coordinate_descent_step(G, lam, w, q, v)
        w = newton_step(G, lam, w, q)
    ids, w, gap = (xp.concat(parts) for parts in zip(*done, [left, w, gap]))
    w, gap = (xp.take(a, xp.argsort(ids), axis=0) for a in (w, gap))
    return w, {"n_iter": n_iter, "gap": gap, "converged": gap <= tol}


def lasso_violation(q, lam, w):
    """By how much each coordinate misses optimality, (T, m): q_j = lam sign(w_j) where w_j != 0, |q_j| <= lam elsewhere."""
    xp = array_namespace(w)
    lam = lam[:, None]
    return xp.where(w != 0, xp.abs(q - lam * xp.sign(w)), xp.maximum(xp.abs(q) - lam, 0))


def coordinate_descent_step(G, lam, w, q, v):
    """Minimise exactly over the coordinate j of largest violation v: w_j <- ST(q_j + G_jj w_j, lam) / G_jj."""
    xp = array_namespace(w)
    j = xp.argmax(v, axis=1)[:, None]                                                   # (T, 1)
    G_j = xp.take_along_axis(G, j[:, :, None], axis=1)[:, 0, :]                         # (T, m), row j
    G_jj, w_j, q_j = (xp.take_along_axis(a, j, axis=1) for a in (G_j, w, q))
    step = soft_threshold(q_j + G_jj * w_j, lam[:, None]) / xp.where(G_jj > 0, G_jj, 1) - w_j
    is_j = xp.arange(w.shape[1], device=device(w)) == j                                 # (T, m)
    return xp.where(is_j, w + step, w), q - step * G_j


def newton_step(G, lam, w, q):
    """From w towards the minimiser with w's support and signs, as far as no sign changes.

    A coordinate that reaches 0 ends the step and leaves the support. Where lam = 0 signs do not matter.
    """
    xp = array_namespace(w)
    lam, s = lam[:, None], xp.sign(w)
    d = solve_on_support(G, w != 0, q - lam * s, solve_shifted)
    crosses = (s * (w + d) <= 0) & (w != 0) & (lam > 0)
    t_j = xp.where(crosses, w, 1) / xp.where(crosses, -d, 1)                            # w_j + t_j d_j = 0
    t = xp.min(xp.where(crosses, t_j, 1), axis=1)[:, None]                              # (T, 1)
    return xp.where(crosses & (t_j <= t), 0, w + t * d)


def lasso_vjp(F, y, lam, w, dw):
    """Pull dw = dL/dw back through the Lasso solution w(F, y, lam).                  [L23, Sec. 3.4; Bertrand et al. 2022]

    On the support S, where s = sign(w_S), the solution satisfies  R := F_S'(F_S w_S - y)/n + lam s = 0.
      1. curvature   A = dR/dw_S = F_S'F_S/n
      2. adjoint     A u_S = dw_S,  u = 0 off S
      3. pull back   dX = -(dR/dX)' u   for X = F, y, lam

    F (T, n, m), y (T, n), lam a number or (T,), w and dw (T, m)  ->  dF (T, n, m), dy (T, n), dlam (T,).
    Valid where S does not change; where F_S'F_S is singular, u is the least-norm solution.
    """
    xp = array_namespace(F)
    u = solve_on_support(gram(F), w != 0, dw)                                           # (T, m)
    dF, dy = pull_back(F, y, w, u)
    return dF, dy, -xp.sum(xp.sign(w) * u, axis=1)


def pull_back(F, y, w, u):
    """-(d/dX)' u of F'(F w - y)/n, for X = F and y: what Lasso and ridge share."""
    n = F.shape[1]
    r, Fu = y - matvec(F, w), matvec(F, u)                                              # (T, n)
    return (outer(r, u) - outer(Fu, w)) / n, Fu / n


# --------------------------------------------------------------------------------------------------- ridge


def ridge(F, y, lam):
    """argmin_w  ||y - F w||^2 / (2 n) + lam/2 ||w||^2  for every task: (F'F/n + lam I) w = F'y/n.  [L23, App. D.2.3]

    F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m). At lam = 0 with singular F'F, the least-norm solution.
    """
    return solve_psd(ridge_curvature(F, per_task(lam, F)), correlations(F, y))


def ridge_curvature(F, lam):
    """A = F'F/n + lam I, (T, m, m)."""
    xp = array_namespace(F)
    return gram(F) + lam[:, None, None] * xp.eye(F.shape[2], dtype=F.dtype, device=device(F))


def ridge_vjp(F, y, lam, w, dw):
    """Pull dw back through the ridge solution: R := F'(F w - y)/n + lam w = 0, A = F'F/n + lam I, A u = dw.

    Shapes as in lasso_vjp; dlam = -w'u.
    """
    xp = array_namespace(F)
    u = solve_psd(ridge_curvature(F, per_task(lam, F)), dw)                             # (T, m)
    dF, dy = pull_back(F, y, w, u)
    return dF, dy, -xp.sum(w * u, axis=1)
