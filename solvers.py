"""solvers.py -- the inner problems: solve each one exactly, differentiate each one exactly.

    T, n, m       tasks, samples per task, features: T leads every array, one call solves all tasks
    F  (T, n, m)  features            y  (T, n)  labels            w  (T, m)  weights
    Y  (T, n, k)  labels of k outputs                                             W  (T, k, m)  their weights
    lam           strength of the penalty, a number or (T,)
    G  (T, m, m)  F'F/n, the Gram matrix                           c  (T, m)  F'y/n
    q  (T, m)     c - G w = F'(y - F w)/n, the correlation of each feature with the residual
    S  (T, m)     the support {j : w_j != 0}, a mask
    dX            dL/dX for a loss L of the solution, with the shape of X
    u             the adjoint solution: curvature u = dw, the one linear system of every vjp

Iterative solvers return a certificate with their solution (ridge is one direct solve); every vjp pulls dw back to
the problem's data.
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
    """A penalty as (T,), refused when negative, not finite or of another shape."""
    xp = array_namespace(F)
    if not xp.isdtype(F.dtype, "real floating"):
        raise ValueError(f"F: found {F.dtype}, expected real floating point")
    lam = xp.asarray(lam, dtype=F.dtype, device=device(F))
    if lam.shape not in ((), F.shape[:1]):
        raise ValueError(f"lam: found shape {tuple(lam.shape)}, expected a number or ({F.shape[0]},)")
    if not bool(xp.all(xp.isfinite(lam) & (lam >= 0))):
        raise ValueError("lam: found a value that is negative or not finite")
    return lam + xp.zeros(F.shape[0], dtype=F.dtype, device=device(F))


def correlations(F, y):
    """c = F'y/n, (T, m), refused when not finite or of the wrong shape."""
    xp = array_namespace(F, y)
    if F.ndim != 3 or y.shape != F.shape[:2] or y.dtype != F.dtype:
        raise ValueError(f"expected F (T, n, m) and y (T, n) of one dtype, found {tuple(F.shape)} {F.dtype} and {tuple(y.shape)} {y.dtype}")
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
    """x with A x = b for symmetric positive semi-definite A (T, k, k), b (T, k).

    A solve and one refinement, as exact as the condition of A allows. Two more right-hand sides, probes with a part
    in every eigenvector, stay unsolved where A is singular (eigenvalues below rounding of the largest); there the
    pseudo-inverse gives, of all least-squares solutions, the one of least norm.
    """
    xp = array_namespace(A)
    k, eps, A_shifted = A.shape[-1], xp.finfo(A.dtype).eps, shifted(A)
    i = xp.arange(1, k + 1, dtype=A.dtype, device=device(A))
    zero = xp.zeros_like(b)
    B = xp.stack([b, zero + xp.cos(i ** 2), zero + xp.cos(i ** 3)], axis=2)             # (T, k, 3)
    X = xp.linalg.solve(A_shifted, B)
    X = X + xp.linalg.solve(A_shifted, B - xp.matmul(A, X))
    singular = xp.any(xp.abs(B - xp.matmul(A, X))[:, :, 1:] > 1e-3, axis=(1, 2))        # (T,)
    if not bool(xp.any(singular)):
        return X[:, :, 0]
    return xp.where(singular[:, None], matvec(xp.linalg.pinv(A, rtol=10 * k * eps), b), X[:, :, 0])


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
    A = xp.reshape(A, (T, k, k))
    scale = xp.max(xp.abs(A), axis=(1, 2))[:, None, None]                               # pad with the task's own scale
    A = xp.where(on[:, :, None] & on[:, None, :], A, scale * xp.eye(k, dtype=A.dtype, device=device(A)))
    x = xp.zeros(S.shape, dtype=A.dtype, device=device(A))
    x[:, :k] = solve(A, xp.where(on, xp.take_along_axis(b, first, axis=1), 0))
    return xp.take_along_axis(x, xp.argsort(order, axis=1), axis=1)                     # undo the order


# --------------------------------------------------------------------------------------------------- Lasso


def lasso(F, y, lam, max_iter=None):
    """argmin_w  ||y - F w||^2 / (2 n) + lam ||w||_1  for every task.                     [L23, Problem (6)]

    F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m), info with n_iter and, per task,
        gap        the largest violation of the optimality conditions, in units of lasso_lambda_max
        converged  gap <= 1e-12 in float64, 1e-5 in float32
    From w = 0, each iteration takes one step of proximal coordinate descent (the paper's solver, here greedy: the
    coordinate that violates optimality most), then one Newton step on the support so found, which ends the search
    once the support is right. Neither step raises the objective, so the support cannot cycle. Where the minimiser
    is not unique (lam = 0 with n < m, equal columns) one of them is returned. Columns are expected to be of similar
    scale, as normalised features are. Raises ValueError for inputs that are not finite, a negative lam, or wrong shapes.
    """
    xp = array_namespace(F)
    lam, G, c = per_task(lam, F), gram(F), correlations(F, y)
    unit = xp.max(xp.abs(c), axis=1)
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    tol = 1e-12 if F.dtype == xp.float64 else 1e-5
    w, ids = xp.zeros_like(c), xp.arange(F.shape[0], device=device(F))
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
            done.append([xp.take(a, order[:solved], axis=0) for a in (ids, w, gap)])
            ids, w, q, v, G, c, lam, unit = (xp.take(a, order[solved:], axis=0) for a in (ids, w, q, v, G, c, lam, unit))
        w, q = coordinate_descent_step(G, lam, w, q, v)
        w = newton_step(G, lam, w, q)
    ids, w, gap = (xp.concat(parts) for parts in zip(*done, [ids, w, gap]))
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


# --------------------------------------------------------------------------------- group Lasso, k outputs
# W (T, k, m) as in the paper; feature j is used by no output (W_j = 0) or by all. Inside, V = W' (T, m, k).
# loss "squared": 1/2 ||W F_i - Y_i||^2; "logistic": cross-entropy of softmax(W F_i) and Y_i, whose rows sum to 1.


def block_soft_threshold(V, tau):
    """BST(V, tau) = (1 - tau/||V||)_+ V over the last axis, the proximal operator of tau ||.||_2.    [L23, App. C]"""
    xp = array_namespace(V)
    size = xp.sqrt(xp.sum(V * V, axis=-1, keepdims=True))
    return V * xp.maximum(1 - tau / xp.where(size > 0, size, 1), 0)


def residual(Z, Y, loss):
    """R (T, n, k), the derivative of (1/n) sum_i loss(Z_i, Y_i) in the scores Z = F W', and its own derivative R'."""
    xp, n = array_namespace(Z), Z.shape[1]
    if loss == "squared":
        return (Z - Y) / n, lambda dZ: dZ / n
    P = softmax(Z)
    return (P - Y) / n, lambda dZ: P * (dZ - xp.sum(P * dZ, axis=-1, keepdims=True)) / n


def softmax(Z):
    """exp(Z) / sum exp(Z) over the last axis."""
    xp = array_namespace(Z)
    P = xp.exp(Z - xp.max(Z, axis=-1, keepdims=True))
    return P / xp.sum(P, axis=-1, keepdims=True)


def data_loss(Z, Y, loss):
    """(1/n) sum_i loss(Z_i, Y_i), (T,)."""
    xp = array_namespace(Z)
    if loss == "squared":
        return xp.sum((Z - Y) ** 2, axis=(1, 2)) / (2 * Z.shape[1])
    top = xp.max(Z, axis=-1, keepdims=True)
    log_sum = top[..., 0] + xp.log(xp.sum(xp.exp(Z - top), axis=-1))
    return xp.mean(log_sum - xp.sum(Y * Z, axis=-1), axis=1)


def group_lasso_lambda_max(F, Y, loss="squared"):
    """max_j ||F_j' R(0)||, (T,): from this lam on, the group-Lasso solution is W = 0."""
    xp = array_namespace(F)
    R, _ = residual(0 * Y, Y, loss)
    return xp.max(xp.linalg.vector_norm(xp.matmul(transpose(F), R), axis=2), axis=1)


def group_lasso(F, Y, lam, loss="squared", max_iter=1000):
    """argmin_W (1/n) sum_i loss(W F_i, Y_i) + lam sum_j ||W_j||_2 for every task, W_j the column of feature j.

    F (T, n, m), Y (T, n, k), lam a number or (T,)  ->  W (T, k, m), info as of lasso, gap in units of
    group_lasso_lambda_max, converged at 1e-10. An iteration is one sweep of proximal block coordinate descent,
    which finds the support, and a Newton step on it, taken by each task where it helps.
    """
    xp = array_namespace(F)
    lam = per_task(lam, F)
    unit = group_lasso_lambda_max(F, Y, loss)
    unit, tol = xp.where(unit > 0, unit, 1), 1e-10 if F.dtype == xp.float64 else 1e-4
    V = xp.zeros((F.shape[0], F.shape[2], Y.shape[2]), dtype=F.dtype, device=device(F))
    for n_iter in range(max_iter + 1):
        gap = group_violation(F, Y, lam, V, loss) / unit
        if bool(xp.all(gap <= tol)) or n_iter == max_iter:
            break
        V = newton_group_step(F, Y, lam, block_sweep(F, Y, lam, V, loss), loss)
    return transpose(V), {"n_iter": n_iter, "gap": gap, "converged": gap <= tol}


def group_violation(F, Y, lam, V, loss):
    """The largest violation of F_j'R + lam V_j/||V_j|| = 0 where V_j != 0, and of ||F_j'R|| <= lam elsewhere, (T,)."""
    xp = array_namespace(V)
    g = xp.matmul(transpose(F), residual(xp.matmul(F, V), Y, loss)[0])                  # (T, m, k)
    size, lam = xp.linalg.vector_norm(V, axis=2), lam[:, None]
    on = xp.linalg.vector_norm(g + lam[..., None] * V / xp.where(size > 0, size, 1)[..., None], axis=2)
    return xp.max(xp.where(size > 0, on, xp.maximum(xp.linalg.vector_norm(g, axis=2) - lam, 0)), axis=1)


def group_objective(F, Y, lam, V, loss):
    """(1/n) sum_i loss + lam sum_j ||V_j||, (T,)."""
    xp = array_namespace(F)
    return data_loss(xp.matmul(F, V), Y, loss) + lam * xp.sum(xp.linalg.vector_norm(V, axis=2), axis=1)


def block_sweep(F, Y, lam, V, loss):
    """V_j <- BST(V_j - F_j'R/L_j, lam/L_j) for j = 1 ... m; L_j = ||F_j||^2/n, half that for softmax, bounds the curvature."""
    xp = array_namespace(F)
    Z, V = xp.matmul(F, V), V + 0
    L = xp.sum(F * F, axis=1) / F.shape[1] / (1 if loss == "squared" else 2)            # (T, m)
    L = xp.where(L > 0, L, 1)
    for j in range(F.shape[2]):
        F_j, L_j = F[:, :, j], L[:, j, None]
        g = matvec(transpose(residual(Z, Y, loss)[0]), F_j)                             # (T, k)
        V_j = block_soft_threshold(V[:, j, :] - g / L_j, lam[:, None] / L_j)
        Z += outer(F_j, V_j - V[:, j, :])
        V[:, j, :] = V_j
    return V


def group_curvature(F, Y, lam, V, loss):
    """H (T, mk, mk), the second derivative of the objective on the support of V: F'R'[F .] + lam (I - v v')/||V_j||."""
    xp = array_namespace(F)
    T, m, k = V.shape
    eye_k, eye_m = (xp.eye(a, dtype=F.dtype, device=device(F)) for a in (k, m))
    if loss == "squared":
        H = gram(F)[:, :, None, :, None] * eye_k[:, None, :]                            # (T, m, k, m, k)
    else:
        P = softmax(xp.matmul(F, V))
        D = (P[..., None] * eye_k - P[..., None] * P[:, :, None, :]) / F.shape[1]       # (T, n, k, k)
        FD = xp.reshape(F[..., None, None] * D[:, :, None, :, :], (T, F.shape[1], m * k * k))
        H = xp.permute_dims(xp.reshape(xp.matmul(transpose(F), FD), (T, m, m, k, k)), (0, 1, 3, 2, 4))
    size = xp.linalg.vector_norm(V, axis=2)
    size = xp.where(size > 0, size, 1)[..., None]
    v = V / size
    bend = lam[:, None, None, None] * (eye_k - v[..., None] * v[:, :, None, :]) / size[..., None]    # (T, m, k, k)
    return xp.reshape(H + bend[:, :, :, None, :] * eye_m[:, None, :, None], (T, m * k, m * k))


def on_support(V, H, B):
    """U (T, m, k) with H U = B on the features where V is not 0, U = 0 elsewhere."""
    xp = array_namespace(V)
    T, m, k = V.shape
    S = xp.reshape(xp.repeat(xp.any(V != 0, axis=2), k, axis=1), (T, m * k))
    return xp.reshape(solve_on_support(H, S, xp.reshape(B, (T, m * k))), (T, m, k))


def newton_group_step(F, Y, lam, V, loss):
    """The Newton step on the support, or the part of it that lessens the violation most without raising the objective."""
    xp = array_namespace(F)
    size = xp.linalg.vector_norm(V, axis=2, keepdims=True)
    g = xp.matmul(transpose(F), residual(xp.matmul(F, V), Y, loss)[0]) + lam[:, None, None] * V / xp.where(size > 0, size, 1)
    d = on_support(V, group_curvature(F, Y, lam, V, loss), -g)
    best, left, height = V, group_violation(F, Y, lam, V, loss), group_objective(F, Y, lam, V, loss) * (1 + 1e-14)
    for t in (1.0, 0.5, 0.25, 0.125):
        new = V + t * d
        violation = group_violation(F, Y, lam, new, loss)
        better = (violation < left) & (group_objective(F, Y, lam, new, loss) <= height)
        best = xp.where(better[:, None, None], new, best)
        left = xp.where(better, violation, left)
    return best


def group_lasso_vjp(F, Y, lam, W, dW, loss="squared"):
    """Pull dW back through the group-Lasso solution. On the support F_j'R + lam W_j/||W_j|| = 0;
    curvature H as above, H U = dW, and then
        dF = -(R U' + R'[F U] W)        dlam = -sum_j w_j . U_j,  w_j = W_j/||W_j||

    F (T, n, m), Y (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam (T,). Valid where the support does not change.
    """
    xp = array_namespace(F)
    lam, V = per_task(lam, F), transpose(W)
    U = on_support(V, group_curvature(F, Y, lam, V, loss), transpose(dW))               # (T, m, k)
    R, R_prime = residual(xp.matmul(F, V), Y, loss)
    dF = -(xp.matmul(R, transpose(U)) + xp.matmul(R_prime(xp.matmul(F, U)), W))
    size = xp.linalg.vector_norm(V, axis=2, keepdims=True)
    return dF, -xp.sum(V / xp.where(size > 0, size, 1) * U, axis=(1, 2))
