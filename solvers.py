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
the problem's data. Arrays may come from any library that array-api-compat knows: NumPy, CuPy, PyTorch, ...

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023, arXiv 2211.14666.
[F23] Fumero et al., Leveraging sparse and shared feature activations, NeurIPS 2023, arXiv 2304.07939.
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
    """x with A_SS x_S = b_S and x = 0 off S, A (T, m, m), S and b (T, m), by systems of the size of the largest support."""
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
    """From w towards the minimiser with w's support and signs: a coordinate that reaches 0 ends the step (at lam = 0 none does)."""
    xp = array_namespace(w)
    lam, s = lam[:, None], xp.sign(w)
    d = solve_on_support(G, w != 0, q - lam * s, lambda A, b: xp.linalg.solve(shifted(A), b[..., None])[..., 0])
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
    """As lasso_vjp, for ridge: R := F'(F w - y)/n + lam w = 0, A = F'F/n + lam I, A u = dw, dlam = -w'u.   [docs/derivations.md, 3]"""
    xp = array_namespace(F)
    u = solve_psd(ridge_curvature(F, per_task(lam, F)), dw)                             # (T, m)
    dF, dy = pull_back(F, y, w, u)
    return dF, dy, -xp.sum(w * u, axis=1)


def ridge_classes(F, Y, lam):
    """argmin_W (1/n) sum_i 1/2 ||W F_i - Y_i||^2 + lam/2 ||W||^2, lam > 0, F (T, n, m), Y (T, n, k)  ->  W (T, k, m), from its dual
    of few samples and many features: W = a'F, (F F'/n + lam I) a = Y/n."""
    xp = array_namespace(F)
    return xp.matmul(transpose(xp.linalg.solve(dual_curvature(F, lam), Y / F.shape[1])), F)


def dual_curvature(F, lam):
    """F F'/n + lam I, (T, n, n)."""
    xp, n = array_namespace(F), F.shape[1]
    return xp.matmul(F, transpose(F)) / n + per_task(lam, F)[:, None, None] * xp.eye(n, dtype=F.dtype, device=device(F))


def ridge_classes_vjp(F, Y, lam, W, dW):
    """dF (T, n, m) of dW: through F in W = a'F, and through a, with A u = F dW'."""
    xp = array_namespace(F)
    n, A = F.shape[1], dual_curvature(F, lam)
    a, u = xp.linalg.solve(A, Y / n), xp.linalg.solve(A, xp.matmul(F, transpose(dW)))   # (T, n, k)
    return xp.matmul(a, dW) - (xp.matmul(u, xp.matmul(transpose(a), F)) + xp.matmul(a, xp.matmul(transpose(u), F))) / n


# --------------------------------------------------------------------------------- group Lasso, k outputs
# W (T, k, m) as in the paper; feature j is used by no output (W_j = 0) or by all. Inside, V = W' (T, m, k).
# loss "squared": 1/2 ||W F_i - Y_i||^2; "logistic": cross-entropy of softmax(W F_i) and Y_i, or of the sigmoid where k = 1.


def block_soft_threshold(V, tau, axis=-1):
    """BST(V, tau) = (1 - tau/||V||)_+ V over an axis, the proximal operator of tau ||.||_2.          [L23, App. C]"""
    xp = array_namespace(V)
    size = xp.sqrt(xp.sum(V * V, axis=axis, keepdims=True))
    return V * xp.maximum(1 - tau / xp.where(size > 0, size, 1), 0)


def residual(Z, Y, loss):
    """R (T, n, k), the derivative of (1/n) sum_i loss(Z_i, Y_i) in the scores Z = F W', and its own derivative R'."""
    xp, n = array_namespace(Z), Z.shape[1]
    if loss == "squared":
        return (Z - Y) / n, lambda dZ: dZ / n
    P = softmax(Z)
    return (P - Y) / n, lambda dZ: P * (dZ - xp.sum(P * dZ, axis=-1, keepdims=True)) / n


def log_sum_exp(Z):
    """log sum_l exp(Z_l) over the last axis, which is kept; one column Z is that of the logits (Z, 0)."""
    xp = array_namespace(Z)
    Z = xp.concat([Z, 0 * Z], axis=-1) if Z.shape[-1] == 1 else Z
    top = xp.max(Z, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(Z - top), axis=-1, keepdims=True))


def softmax(Z):
    """exp(Z) / sum exp(Z) over the last axis; of one column, the sigmoid."""
    return array_namespace(Z).exp(Z - log_sum_exp(Z))


def data_loss(Z, Y, loss):
    """(1/n) sum_i loss(Z_i, Y_i), (T,)."""
    xp = array_namespace(Z)
    if loss == "squared":
        return xp.sum((Z - Y) ** 2, axis=(1, 2)) / (2 * Z.shape[1])
    return xp.mean(log_sum_exp(Z)[..., 0] - xp.sum(Y * Z, axis=-1), axis=1)


def group_lasso_lambda_max(F, Y, loss="squared"):
    """max_j ||F_j' R(0)||, (T,): from this lam on, the group-Lasso solution is W = 0.        [docs/derivations.md, 4]"""
    xp = array_namespace(F)
    R, _ = residual(0 * Y, Y, loss)
    return xp.max(xp.linalg.vector_norm(xp.matmul(transpose(F), R), axis=2), axis=1)


def group_lasso(F, Y, lam, loss="squared", max_iter=1000):
    """argmin_W (1/n) sum_i loss(W F_i, Y_i) + lam sum_j ||W_j||_2 for every task, W_j the column of feature j. [Yuan and Lin 2006]

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
    H = gram(F)[:, :, None, :, None] * eye_k[:, None, :] if loss == "squared" else softmax_curvature(F, V)      # (T, m, k, m, k)
    size = xp.linalg.vector_norm(V, axis=2)
    size = xp.where(size > 0, xp.maximum(size, 1e-100), 1)[..., None]
    v = V / size
    bend = lam[:, None, None, None] * (eye_k - v[..., None] * v[:, :, None, :]) / size[..., None]    # (T, m, k, k)
    return xp.reshape(H + bend[:, :, :, None, :] * eye_m[:, None, :, None], (T, m * k, m * k))


def softmax_curvature(F, V):
    """F'R'[F .] of the logistic loss, (T, m, k, m, k)."""
    xp = array_namespace(F)
    T, m, k = V.shape
    P = softmax(xp.matmul(F, V))
    D = (P[..., None] * xp.eye(k, dtype=F.dtype, device=device(F)) - P[..., None] * P[:, :, None, :]) / F.shape[1]      # (T, n, k, k)
    FD = xp.reshape(F[..., None, None] * D[:, :, None, :, :], (T, F.shape[1], m * k * k))
    return xp.permute_dims(xp.reshape(xp.matmul(transpose(F), FD), (T, m, m, k, k)), (0, 1, 3, 2, 4))


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
    """Pull dW back through the group-Lasso solution [docs/derivations.md, 4]. On the support F_j'R + lam W_j/||W_j|| = 0;
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


# ------------------------------------------------------------------------ group-Lasso multiclass SVM, k classes
# Y (T, n, k) one-hot, Lam (T, n, k) dual variables, each row in the simplex {Lam_i >= 0, sum_l Lam_il = 1}; W and
# V = (Y - Lam)'F are (T, k, m), W_j and V_j the columns of feature j. The primal and its dual, with min P = n - min D:
#     min_W    P = sum_i max_l (1 - Y_il + (W_l - W_{y_i}) . F_i) + lam1 sum_j ||W_j|| + lam2/2 ||W||^2
#     min_Lam  D = 1/(2 lam2) sum_j ||BST(V_j, lam1)||^2 + <Y, Lam>
# W = BST(V, lam1)/lam2 and dD/dLam = G = Y - F W'. The rows of Y - Lam sum to 0, and so do the V_j: they lie in the
# span of the c = k - 1 orthonormal columns of Q. Curvatures H (T, n, c, n, c) are in the coordinates of Q.


def project_simplex(V):
    """The Euclidean projection of each V (..., k) on the simplex: (V - t)_+ with the t that makes it sum to 1.  [Duchi et al. 2008]"""
    xp, k = array_namespace(V), V.shape[-1]
    V = V - xp.max(V, axis=-1, keepdims=True)                                           # no cancellation where V is huge
    sums = xp.cumulative_sum(xp.sort(V, axis=-1, descending=True), axis=-1)
    t = xp.max((sums - 1) / xp.arange(1, k + 1, dtype=V.dtype, device=device(V)), axis=-1, keepdims=True)
    return xp.maximum(V - t, 0)


def svm_lambda_max(F, Y):
    """max_j ||F_j'(Y - (1 - Y)/(k - 1))||, (T,): for lam1 above it W = 0; the exact threshold where k = 2. [docs/derivations.md, 5]"""
    xp = array_namespace(F)
    A = Y - (1 - Y) / (Y.shape[2] - 1)
    return xp.max(xp.linalg.vector_norm(xp.matmul(transpose(A), F), axis=1), axis=1)


def group_svm(F, Y, lam1, lam2, method="interior-point", max_iter=None):
    """The multiclass SVM whose features are switched on and off as groups, for every task.       [L23, Problems (8), (10)]

    F (T, n, m), Y (T, n, k) one-hot, lam1 >= 0 and lam2 > 0 numbers or (T,)  ->  W (T, k, m), Lam (T, n, k), info with
        n_iter, and per task: gap, the duality gap P + D - n over P; converged, gap <= 1e-8 in float64, 1e-4 in float32
    method  "interior-point", or "pbcd": proximal block coordinate descent in the dual, the paper's algorithm, whose
    n_iter counts epochs. W is unique, Lam need not be. Raises ValueError for input that is not finite or not of this form.
    """
    xp = array_namespace(F)
    lam1, lam2 = per_task(lam1, F), per_task(lam2, F)
    if not bool(xp.all(lam2 > 0)):
        raise ValueError("lam2: found 0, expected a positive number")
    if Y.shape[:2] != F.shape[:2] or Y.shape[2] < 2 or not bool(xp.all(((Y == 0) | (Y == 1)) & (xp.sum(Y, axis=2, keepdims=True) == 1))):
        raise ValueError(f"Y: expected one-hot rows ({F.shape[0]}, {F.shape[1]}, at least 2), found {tuple(Y.shape)}")
    if not bool(xp.all(xp.isfinite(svm_lambda_max(F, Y)))):
        raise ValueError("F holds values that are not finite (or too large to multiply)")
    if method not in ("interior-point", "pbcd"):
        raise ValueError(f"method: found {method}, expected interior-point or pbcd")
    seen = F                                                                            # without lam1 only F F' matters:
    if F.shape[2] > F.shape[1] and not bool(xp.any(lam1 > 0)):                          # n features with the same F F'
        seen = transpose(xp.linalg.qr(transpose(F))[1])                                 # do as well
    tol = 1e-8 if F.dtype == xp.float64 else 1e-4
    solve, limit = (svm_pbcd, 10_000) if method == "pbcd" else (svm_interior_point, 80)
    Lam, n_iter = solve(seen, Y, lam1, lam2, tol, limit if max_iter is None else max_iter)
    _, W, G = svm_primal(F, Y, Lam, lam1, lam2)
    gap = svm_gap(Y, Lam, W, G, lam1, lam2)
    return W, Lam, {"n_iter": n_iter, "gap": gap, "converged": gap <= tol}


def svm_primal(F, Y, Lam, lam1, lam2):
    """V and W = BST(V, lam1)/lam2, (T, k, m), and G = Y - F W', (T, n, k), at the dual point Lam."""
    xp = array_namespace(F)
    V = xp.matmul(transpose(residual_of(Y, Lam)), F)
    W = block_soft_threshold(V, lam1[:, None, None], axis=1) / lam2[:, None, None]
    return V, W, Y - xp.matmul(F, transpose(W))


def residual_of(Y, Lam):
    """Y - Lam, (T, n, k), without the cancellation of 1 - Lam where Lam is almost 1."""
    others = (1 - Y) * Lam
    return Y * array_namespace(Y).sum(others, axis=2, keepdims=True) - others


def svm_gap(Y, Lam, W, G, lam1, lam2):
    """The duality gap P + D - n = <Lam, G - min_l G>, a sum of what is not negative, over P, (T,)."""
    xp = array_namespace(Lam)
    low = xp.min(G, axis=2, keepdims=True)
    hinge = xp.sum(1 - low[..., 0] - xp.sum(Y * (Y - G), axis=2), axis=1)
    P = hinge + lam1 * xp.sum(xp.linalg.vector_norm(W, axis=1), axis=1) + lam2 / 2 * xp.sum(W * W, axis=(1, 2))
    return xp.sum(Lam * (G - low), axis=(1, 2)) / P


def svm_pbcd(F, Y, lam1, lam2, tol, max_iter):
    """Lam_i <- proj_simplex(Lam_i - G_i/L_i), one sample i after another; L_i = ||F_i||^2/lam2 bounds the curvature.  [L23, App. C.2]"""
    xp = array_namespace(F)
    T, n, k = Y.shape
    Lam = xp.full((T, n, k), 1 / k, dtype=F.dtype, device=device(F))
    L = xp.sum(F * F, axis=2) / lam2[:, None]
    L = xp.where(L > 0, L, 1e-12)                                                       # F_i = 0: straight to the least G_il
    for n_iter in range(max_iter + 1):
        V, W, G = svm_primal(F, Y, Lam, lam1, lam2)
        if n_iter == max_iter or bool(xp.all(svm_gap(Y, Lam, W, G, lam1, lam2) <= tol)):
            return Lam, n_iter
        for i in range(n):
            W = block_soft_threshold(V, lam1[:, None, None], axis=1) / lam2[:, None, None]
            Lam_i = project_simplex(Lam[:, i, :] - (Y[:, i, :] - matvec(W, F[:, i, :])) / L[:, i, None])
            V += outer(Lam[:, i, :] - Lam_i, F[:, i, :])
            Lam[:, i, :] = Lam_i


def tangent_basis(Y):
    """Q (k, c), orthonormal columns orthogonal to (1, ..., 1)."""
    xp = array_namespace(Y)
    eye = xp.eye(Y.shape[2], dtype=Y.dtype, device=device(Y))
    return xp.linalg.qr(xp.concat([xp.ones_like(eye[:, :1]), eye[:, 1:]], axis=1))[0][:, 1:]


def svm_curvature(F, V, flat, along, lam2):
    """H = 1/lam2 sum_j F_j F_j' (x) J_j for V (T, c, m), where J_j has the eigenvalue `along` on V_j and `flat` across it."""
    xp = array_namespace(F)
    (T, n, m), c = F.shape, V.shape[1]
    H = xp.matmul(F * flat[:, None, :], transpose(F))[:, :, None, :, None] * xp.eye(c, dtype=F.dtype, device=device(F))[:, None, :]
    bend = xp.maximum(along - flat, 0)
    if bool(xp.any(bend > 0)):
        size = xp.linalg.vector_norm(V, axis=1)
        B = V * (xp.sqrt(bend) / xp.where(size > 0, size, 1))[:, None, :]
        M = xp.reshape(F[:, :, None, :] * B[:, None, :, :], (T, n * c, m))
        H = H + xp.reshape(xp.matmul(M, transpose(M)), (T, n, c, n, c))
    return H / lam2[:, None, None, None, None]


def bst_slopes(V, lam1):
    """The eigenvalues of the Jacobian of BST at each V_j: flat = (1 - lam1/||V_j||)_+ across V_j, along = 1 or 0 on it, (T, m)."""
    xp = array_namespace(V)
    size, lam1 = xp.linalg.vector_norm(V, axis=1), lam1[:, None]
    on = size > lam1
    return xp.where(on, 1 - lam1 / xp.where(on, size, 1), 0), xp.astype(on, V.dtype)


# The interior-point method. Two families of products vanish at the solution and are driven there together:
#     Lam_il S_il,  S_il = G_il - min_l G_il the slack of class l for sample i
#     p_j s_j,      p_j = (||V_j|| - lam1)_+ = lam2 ||W_j||,  s_j = (lam1 - ||V_j||)_+,  so that p_j - s_j = ||V_j|| - lam1
# A Newton step solves the linearised conditions for a step d Q' of Lam; a predictor step tells how far to aim (Mehrotra).


def svm_interior_point(F, Y, lam1, lam2, tol, max_iter):
    """Lam (T, n, k) and the number of Newton steps; once every task's gap is about 1e-7, a crossover is tried before each."""
    xp = array_namespace(F)
    def mean_product(Lam, S):                                                           # (T, 1)
        return xp.mean(Lam * S, axis=(1, 2))[:, None]
    Q = tangent_basis(Y)
    Lam = xp.full(Y.shape, 1 / Y.shape[2], dtype=F.dtype, device=device(F))
    V, W, G = svm_primal(F, Y, Lam, lam1, lam2)
    best, best_gap = Lam, svm_gap(Y, Lam, W, G, lam1, lam2)
    S = G - xp.min(G, axis=2, keepdims=True)
    S = S + xp.maximum(xp.mean(S, axis=(1, 2), keepdims=True), 1)
    V = xp.matmul(transpose(Q), V)                                                      # (T, c, m) from here on
    share = xp.where(lam1 > 0, 1e-3 * lam2, 0)[:, None]                                 # p s aims at this part of Lam S
    p, s = split(xp.linalg.vector_norm(V, axis=1) - lam1[:, None], share * mean_product(Lam, S))
    for n_iter in range(max_iter + 1):
        left = gap_estimate(Y, Lam, S, p, s, lam2)
        if n_iter == max_iter or bool(xp.all((left <= max(1e-7, tol)) | (best_gap <= tol))):
            exact = svm_crossover(F, Y, lam1, lam2, Lam, S, Q)
            for x in (Lam, exact):
                gap = svm_gap(Y, x, *svm_primal(F, Y, x, lam1, lam2)[1:], lam1, lam2)
                best, best_gap = xp.where((gap < best_gap)[:, None, None], x, best), xp.minimum(gap, best_gap)
        going = (best_gap > tol) & (left > 1e-13)
        if n_iter == max_iter or not bool(xp.any(going)):
            return best, n_iter
        direction = svm_newton(F, Y, V, Lam, S, p, s, lam1, lam2, Q)
        dLam, dS, dp, ds = direction(-Lam * S, -p * s)                              # predictor: aim at 0
        t = xp.minimum(longest_step(Lam, dLam), longest_step(S, dS))[:, None, None]
        mu = mean_product(Lam + t * dLam, S + t * dS) ** 3 / mean_product(Lam, S) ** 2
        dLam, dS, dp, ds = direction(mu[..., None] - Lam * S - dLam * dS, share * mu - p * s - dp * ds)
        t = xp.minimum(0.995 * xp.minimum(longest_step(Lam, dLam), longest_step(S, dS)), 1)
        if n_iter >= 30:                                                                # hard problems: p and s shorten steps too
            t = xp.minimum(t, 0.995 * xp.minimum(longest_step(p[..., None], dp[..., None]), longest_step(s[..., None], ds[..., None])))
        t = xp.where(going, t, 0)[:, None]
        Lam, S = Lam + t[..., None] * dLam, S + t[..., None] * dS
        V = xp.matmul(transpose(Q), xp.matmul(transpose(residual_of(Y, Lam)), F))       # afresh: a sum of steps would drift
        p, s = xp.maximum(p + t * dp, p / 10), xp.maximum(s + t * ds, s / 10)


def split(a, product):
    """p, s >= 0 with p - s = a and p s = product."""
    xp = array_namespace(a)
    big = (xp.abs(a) + xp.sqrt(a * a + 4 * product)) / 2
    small = product / xp.where(big > 0, big, 1)
    return xp.where(a > 0, big, small), xp.where(a > 0, small, big)


def gap_estimate(Y, Lam, S, p, s, lam2):
    """<Lam, S> + <p, s>/lam2 over n - D, (T,), with p for lam2 ||W_j||."""
    xp = array_namespace(S)
    P = xp.sum((1 - Y) * Lam, axis=(1, 2)) - xp.sum(p * p, axis=1) / (2 * lam2)
    gap = xp.sum(Lam * S, axis=(1, 2)) + xp.sum(p * s, axis=1) / lam2
    return xp.where(P > 0, gap / xp.where(P > 0, P, 1), xp.inf)


def longest_step(x, dx):
    """The largest t for which x + t dx >= 0, (T,); infinite where nothing shrinks."""
    xp = array_namespace(x)
    return xp.min(xp.where(dx < 0, -x / xp.where(dx < 0, dx, 1), xp.inf), axis=(1, 2))


def svm_newton(F, Y, V, Lam, S, p, s, lam1, lam2, Q):
    """The linearised conditions as a function of what d(Lam S) and d(p s) should be; its values are dLam, dS, dp, ds."""
    xp = array_namespace(F)
    (T, n, _), c, per_W = Y.shape, Q.shape[1], 1 / lam2[:, None]
    size = xp.linalg.vector_norm(V, axis=1)
    unit = V / xp.where(size > 0, size, 1)[:, None, :]
    total = xp.where(p + s > 0, p + s, 1)
    flat, along = p / xp.maximum(size, total), p / total                                # smooth BST: W_j = flat V_j/lam2
    eye, eye_n = (xp.eye(a, dtype=F.dtype, device=device(F)) for a in (n * c, n))
    barrier = xp.matmul(transpose(Q) * (S / Lam)[..., None, :], Q)                      # (T, n, c, c)
    A = svm_curvature(F, V, flat, along, lam2) + barrier[:, :, :, None, :] * eye_n[:, None, :, None]
    A = xp.reshape(A, (T, n * c, n * c))
    scale = 1 / xp.sqrt(xp.sum(A * eye, axis=2))
    A = shifted(A * scale[:, :, None] * scale[:, None, :])
    miss_p = p - size + lam1[:, None] - s
    miss_G = xp.matmul(Y - S, Q) - xp.matmul(F, transpose(V * (flat * per_W)[:, None, :]))

    def direction(dLamS, dps):
        dp = (dps - p * miss_p) / total                                                 # the part of dp that is not through V
        b = xp.matmul(F, transpose(unit * (dp * per_W)[:, None, :])) + xp.matmul(dLamS / Lam, Q) - miss_G
        d = xp.linalg.solve(A, xp.reshape(b, (T, n * c, 1)) * scale[..., None]) * scale[..., None]
        d = xp.reshape(d, (T, n, c))
        dsize = -xp.sum(unit * xp.matmul(transpose(d), F), axis=1)                      # V falls by d'F
        dp, dLam = dp + along * dsize, xp.matmul(d, transpose(Q))
        return dLam, (dLamS - S * dLam) / Lam, dp, dp - dsize + miss_p
    return direction


def svm_crossover(F, Y, lam1, lam2, Lam, S, Q, steps=3):
    """From a nearly optimal Lam to an exact one: entries with Lam < S are zero, Newton's method finds the others."""
    xp = array_namespace(F)
    free = (Lam > S) | (Lam >= xp.max(Lam, axis=2, keepdims=True))
    Lam = xp.where(free, Lam, 0)
    for step in range(steps + 1):
        Lam = Lam / xp.sum(Lam, axis=2, keepdims=True)
        V, W, G = svm_primal(F, Y, Lam, lam1, lam2)
        if step == steps or bool(xp.all(svm_gap(Y, Lam, W, G, lam1, lam2) <= 1e-12)):
            return Lam
        d = solve_on_face(svm_curvature(F, xp.matmul(transpose(Q), V), *bst_slopes(V, lam1), lam2), free, Q, -G)
        Lam = xp.maximum(Lam + xp.minimum(longest_step(Lam, d), 1)[:, None, None] * d, 0)


def solve_on_face(H, free, Q, B):
    """The least-norm u (T, n, k) with P H P u = P B, P the projector on {u : u = 0 where not free, rows sum to 0}."""
    xp = array_namespace(B)
    (T, n, k), c, f = B.shape, Q.shape[1], xp.astype(free, B.dtype)
    eye_n, eye_k = (xp.eye(a, dtype=B.dtype, device=device(B)) for a in (n, k))
    P = f[..., None] * (eye_k - f[:, :, None, :] / xp.sum(f, axis=2)[..., None, None])  # (T, n, k, k)
    PQ = xp.matmul(P, Q)                                                                # (T, n, k, c)
    A = xp.matmul(PQ, xp.reshape(H, (T, n, c, n * c)))                                  # (T, n, k, n c)
    A = xp.reshape(xp.permute_dims(xp.reshape(A, (T, n, k, n, c)), (0, 3, 4, 1, 2)), (T, n, c, n * k))
    A = xp.reshape(xp.matmul(PQ, A), (T, n, k, n, k))                                   # P H P, symmetric
    scale = xp.max(xp.abs(A), axis=(1, 2, 3, 4))[:, None, None, None, None]
    A = A + xp.where(scale > 0, scale, 1) * (eye_k - P)[:, :, :, None, :] * eye_n[:, None, :, None]
    u = solve_psd(xp.reshape(A, (T, n * k, n * k)), xp.reshape(xp.matmul(P, B[..., None]), (T, n * k)))
    return xp.matmul(P, xp.reshape(u, (T, n, k, 1)))[..., 0]


def group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW):
    """Pull dW back through the solution of group_svm, by a system on the face of the simplices where Lam lies. [docs/derivations.md, 5]

    J_j is the Jacobian of BST at V_j, P the projector on {d : d_il = 0 where Lam_il = 0, sum_l d_il = 0}:
      1. through V   dV = J dW/lam2,  dF = (Y - Lam) dV        dLam = -F dV'
      2. adjoint     P H P u = P dLam,  H = 1/lam2 sum_j F_j F_j' (x) J_j   (least norm: Lam need not be unique)
      3. pull back   dF += u W + (Y - Lam) J u'F/lam2

    F (T, n, m), Y and Lam (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam1 (T,), dlam2 (T,). Valid where neither
    the set of active features nor the zeros of Lam change.
    """
    xp = array_namespace(F)
    lam1, lam2, Q = per_task(lam1, F), per_task(lam2, F), tangent_basis(Y)
    V, _, G = svm_primal(F, Y, Lam, lam1, lam2)
    (flat, along), size = bst_slopes(V, lam1), xp.linalg.vector_norm(V, axis=1, keepdims=True)
    v = V / xp.where(size > 0, size, 1)

    def J(X):
        return flat[:, None, :] * X + (along - flat)[:, None, :] * xp.sum(v * X, axis=1, keepdims=True) * v
    dV = J(dW) / lam2[:, None, None]
    H = svm_curvature(F, xp.matmul(transpose(Q), V), flat, along, lam2)
    u = solve_on_face(H, Lam > 0, Q, -xp.matmul(F, transpose(dV)))
    uF = xp.matmul(transpose(u), F)                                                     # (T, k, m)
    dF = xp.matmul(u, W) + xp.matmul(residual_of(Y, Lam), dV + J(uF) / lam2[:, None, None])
    dlam1 = -xp.sum(along[:, None, :] * v * (dW + uF), axis=(1, 2)) / lam2
    dlam2 = -(xp.sum(dW * W, axis=(1, 2)) + xp.sum(u * (Y - G), axis=(1, 2))) / lam2
    return dF, dlam1, dlam2


# ------------------------------------------------------------------------- sparse and shared features [F23]
# Our reading: the paper's full text was not at hand. Heads phi (T, k, m) of T tasks with k classes, fitted jointly:
#     min_phi  J = (1/T) sum_t CE(F_t phi_t', Y_t) + alpha/(T k) sum |phi| + beta H(p),    H(p) = - sum_j p_j log p_j
# p_j, the importance of feature j: q_hj = |phi_hj| / s_h averaged over the T k heads h = (t, c), s_h = sum_j |phi_hj| (per head), or the share of
# j in the sum of all |phi| (pooled). Peaked p means shared features. H couples the tasks and is not convex; features that no head uses stay off.


def importances(phi, pooled):
    """q (g, m) and s (g,) of each head, or of the one sum of all heads, and p (m,), their mean over the heads that are not 0."""
    xp = array_namespace(phi)
    A = xp.reshape(xp.sum(xp.abs(phi), axis=(0, 1)) if pooled else xp.abs(phi), (-1, phi.shape[2]))
    s = xp.sum(A, axis=1)
    q = A / xp.where(s > 0, s, 1)[:, None]
    return q, s, xp.sum(q, axis=0) / xp.maximum(xp.sum(xp.astype(s > 0, q.dtype)), 1)


def sharing_entropy(phi, pooled=True):
    """H(p), from 0, where one feature serves all heads, to log m, where all features do alike.   [F23]"""
    xp = array_namespace(phi)
    p = importances(phi, pooled)[2]
    return -xp.sum(p * xp.log(xp.where(p > 0, p, 1)))


def entropy_slopes(phi, pooled):
    """dH/d|phi|, (T, k, m): (-log p_j + sum_l q_hl log p_l)/(g s_h), g the heads that are not 0; infinite where p_j = 0 or s_h = 0."""
    xp = array_namespace(phi)
    q, s, p = importances(phi, pooled)
    log_p = xp.log(xp.where(p > 0, p, 1))
    slopes = xp.sum(q * log_p, axis=1, keepdims=True) - xp.where((p > 0) & (s[:, None] > 0), log_p, -xp.inf)
    slopes = slopes / (xp.maximum(xp.sum(xp.astype(s > 0, q.dtype)), 1) * xp.where(s > 0, s, 1))[:, None]
    return xp.reshape(slopes + xp.zeros((phi.shape[0] * phi.shape[1], 1), dtype=phi.dtype, device=device(phi)), phi.shape)


def entropy_curvature(phi, pooled):
    """d2H/d|phi|2, (h m, h m) for h = T k heads, where all p_j > 0 that matter; rows of unused features are 0."""
    xp = array_namespace(phi)
    q, s, p = importances(phi, pooled)
    (g, m), heads = q.shape, phi.shape[0] * phi.shape[1]
    eye_g, eye_m = (xp.eye(a, dtype=phi.dtype, device=device(phi)) for a in (g, m))
    N_s = xp.maximum(xp.sum(xp.astype(s > 0, q.dtype)), 1) * xp.where(s > 0, s, 1)
    log_p, on = xp.log(xp.where(p > 0, p, 1)), xp.astype(p > 0, phi.dtype)
    dp = xp.reshape((eye_m - q[:, None, :]) / N_s[:, None, None] * on, (g * m, m))      # dp_l/dA_hj
    H = xp.reshape(-xp.matmul(dp / xp.where(p > 0, p, 1), transpose(dp)), (g, m, g, m))
    bend = log_p[:, None] + log_p - 2 * xp.sum(q * log_p, axis=1)[:, None, None]        # (g, j, j')
    H = H + (bend / (N_s * xp.where(s > 0, s, 1))[:, None, None])[:, :, None, :] * eye_g[:, None, :, None]
    ones = xp.ones((heads // g, 1, heads // g, 1), dtype=phi.dtype, device=device(phi))
    return xp.reshape(H * ones if pooled else H, (heads * m, heads * m))


def sharing_gradient(F, Y, phi):
    """The derivative of the cross-entropy part of J, (T, k, m)."""
    return transpose(residual(F @ transpose(phi), Y, "logistic")[0]) @ F / F.shape[0]


def sharing_objective(F, Y, alpha, beta, phi, pooled):
    """J, a number."""
    xp = array_namespace(F)
    loss = xp.mean(data_loss(xp.matmul(F, transpose(phi)), Y, "logistic"))
    return float(loss + alpha * xp.sum(xp.mean(xp.abs(phi), axis=(0, 1))) + (beta * sharing_entropy(phi, pooled) if beta else 0))


def sharing_residual(F, Y, alpha, beta, phi, pooled):
    """|dJ/dphi| where phi is not 0, by how much |dCE/dphi| exceeds the penalty's slope elsewhere; its largest value."""
    xp = array_namespace(F)
    g, weight = sharing_gradient(F, Y, phi), sharing_weights(alpha, beta, phi, pooled)
    on = xp.abs(g + xp.where(phi != 0, weight, 0) * xp.sign(phi))                       # weights may be infinite elsewhere
    return float(xp.max(xp.where(phi != 0, on, xp.maximum(xp.abs(g) - weight, 0))))


def sharing_weights(alpha, beta, phi, pooled):
    """alpha/(T k) + beta dH/d|phi|, the penalty's slope at each entry; some may be negative."""
    return alpha / (phi.shape[0] * phi.shape[1]) + (beta * entropy_slopes(phi, pooled) if beta else 0 * phi)


def sharing_curvature(F, beta, phi, pooled):
    """d2J/dphi2 on the entries that are not 0, (T k m, T k m)."""
    xp = array_namespace(F)
    T, k, m = phi.shape
    H = xp.permute_dims(softmax_curvature(F, transpose(phi)), (0, 2, 1, 4, 3)) / T      # (T, k, m, k, m)
    H = xp.reshape(H, (T, k * m, 1, k * m)) * xp.eye(T, dtype=F.dtype, device=device(F))[:, None, :, None]
    sign = xp.reshape(xp.sign(phi), (-1,))
    return xp.reshape(H, (T * k * m, T * k * m)) + (beta * sign[:, None] * entropy_curvature(phi, pooled) * sign if beta else 0)


def sparse_sharing(F, Y, alpha, beta, pooled=True, start=None, stages=5, max_iter=2000):
    """A local minimum of J, from `start` (T, k, m) (default 0) at beta = 0 and then along growing beta.       [F23]

    F (T, n, m), Y (T, n, k) one-hot or (T, n, 1) of 0 and 1, alpha > 0 and beta >= 0 numbers  ->  phi (T, k, m) with exact zeros, info with n_iter,
        gap        the largest violation of stationarity (sharing_residual) over |dCE| at 0; converged: gap <= 1e-12 (float32: 1e-5)
        entropy    H along the path, one for each of the stages of beta, from 0 on
    An iteration is a proximal gradient step, its penalty linearised at |phi|, and a Newton step on the entries that are not 0; with k = 1
    and beta = 0 it is a Lasso. A head that is 0 stays so; ValueError where one shrinks towards 0, for H, which does not see its
    size, falls with it for ever. With k = 2 the split of phi between the two classes is not unique.
    """
    xp = array_namespace(F)
    if not (0 < alpha < float("inf") and 0 <= beta < float("inf")):
        raise ValueError(f"alpha and beta: found {alpha} and {beta}, expected a positive number and one that is not negative")
    if F.ndim != 3 or Y.shape[:2] != F.shape[:2] or not bool(xp.all(xp.isfinite(F))):
        raise ValueError(f"expected finite F (T, n, m) and Y (T, n, k), found {tuple(F.shape)} and {tuple(Y.shape)}")
    new = xp.zeros((F.shape[0], Y.shape[2], F.shape[2]), dtype=F.dtype, device=device(F)) if start is None else start + 0
    path, total, tol = [], 0, 1e-12 if F.dtype == xp.float64 else 1e-5
    unit = float(xp.max(xp.abs(sharing_gradient(F, Y, 0 * new)))) or 1
    for now in [beta * stage / stages for stage in range(stages + 1)] if beta else [0]:
        phi = None
        for n_iter in range(max_iter + 1):
            stuck, phi = phi is not None and bool(xp.all(new == phi)), new
            gap = sharing_residual(F, Y, alpha, now, phi, pooled) / unit
            if gap <= tol or n_iter == max_iter or stuck:
                break
            if not now and Y.shape[2] == 1:
                new = lasso_step(F, Y, alpha, phi)
            else:
                new = sharing_newton(F, Y, alpha, now, sharing_proximal(F, Y, alpha, now, phi, pooled), pooled)
            s = importances(new, pooled)[1]
            if now and bool(xp.any((s > 0) & (s < 1e-6 * xp.max(s)))):
                raise ValueError(f"a head vanishes at alpha {alpha} and beta {now:.3g}, and with it its importances: lower them, or pool the heads")
        total, path = total + n_iter, [*path, float(sharing_entropy(phi, pooled))]
    return phi, {"n_iter": total, "gap": gap, "converged": gap <= tol, "entropy": path}


def lasso_step(F, Y, alpha, phi):
    """Without sharing and with k = 1, Newton's method by one Lasso per task, shortened where the objective would rise. [Lee et al. 2006]"""
    xp = array_namespace(F)
    Z = xp.matmul(F, transpose(phi))                                                    # (T, n, 1)
    P = softmax(Z)
    s = xp.sqrt(xp.maximum(P * (1 - P), 1e-10))
    d = lasso(F * s, (s * Z + (Y - P) / s)[..., 0], alpha)[0][:, None, :] - phi
    J, best = group_objective(F, Y, alpha, transpose(phi), "logistic") * (1 + 1e-14), phi
    for t in (0.01, 0.1, 0.25, 0.5, 1.0):                                               # the longest of these that does not raise it
        lower = group_objective(F, Y, alpha, transpose(phi + t * d), "logistic") <= J
        best = xp.where(lower[:, None, None], phi + t * d, best)
    return best


def sharing_proximal(F, Y, alpha, beta, phi, pooled):
    """phi <- ST(phi - t dCE, t weights), t halved from 16/L; L bounds the curvature of the cross-entropy."""
    xp = array_namespace(F)
    g, weight = sharing_gradient(F, Y, phi), sharing_weights(alpha, beta, phi, pooled)
    L = float(xp.max(xp.sum(F * F, axis=(1, 2)))) / (2 * F.shape[0] * F.shape[1])
    steps = ((phi - t * g, t * weight) for t in (16 / L / 2 ** i for i in range(44)))
    return first_better(F, Y, alpha, beta, phi, pooled, (xp.sign(v) * xp.maximum(xp.abs(v) - tau, 0) for v, tau in steps))


def sharing_newton(F, Y, alpha, beta, phi, pooled):
    """Newton's step on the entries that are not 0, downhill by |eigenvalues|, and shorter ones; what would change sign becomes 0."""
    xp = array_namespace(F)
    S, weight = phi != 0, sharing_weights(alpha, beta, phi, pooled)
    on = xp.reshape(xp.astype(S, F.dtype), (-1,))
    g = on * xp.reshape(sharing_gradient(F, Y, phi) + xp.where(S, weight, 0) * xp.sign(phi), (-1,))
    values, vectors = xp.linalg.eigh(sharing_curvature(F, beta, phi, pooled) * on * on[:, None])
    values = xp.maximum(xp.abs(values), 1e-12 * xp.max(xp.abs(values)))
    d = -xp.reshape(vectors @ ((vectors.T @ g) / values), phi.shape)
    first = float(xp.min(xp.where(phi * d < 0, -phi / xp.where(phi * d < 0, d, 1), 1))) * (1 + 1e-12)        # where one reaches 0
    steps = (phi + t * d for t in (1, 0.5, 0.25, 0.1, 0.03, 0.01, first))
    return first_better(F, Y, alpha, beta, phi, pooled, (xp.where(phi * new > 0, new, 0) for new in steps))


def first_better(F, Y, alpha, beta, phi, pooled, candidates):
    """The first candidate that lessens J, or the residual at equal J; phi where none does."""
    J, left = sharing_objective(F, Y, alpha, beta, phi, pooled), sharing_residual(F, Y, alpha, beta, phi, pooled)
    for new in candidates:
        now = sharing_objective(F, Y, alpha, beta, new, pooled)
        if now <= J + 1e-13 * abs(J) and (now < J - 1e-9 * abs(J) or sharing_residual(F, Y, alpha, beta, new, pooled) < left):
            return new
    return phi


def sparse_sharing_vjp(F, Y, alpha, beta, phi, dphi, pooled=True, one_step=False):
    """Pull dphi back through the solution of sparse_sharing [docs/derivations.md, 6]. On the entries S that are not 0, dJ/dphi = 0:
      1. curvature   A = d2J/dphi_S2, coupled over tasks by H
      2. adjoint     A u_S = dphi_S,  u = 0 off S        (one_step: u = dphi_S/L instead, cheap and inexact)
      3. pull back   dF_t = -(R_t u_t + R'[F_t u_t'] phi_t)/T,   dalpha = -sum sign(phi) u/(T k),   dbeta = -sum dH/d|phi| sign(phi) u

    F (T, n, m), phi and dphi (T, k, m)  ->  dF (T, n, m), dalpha, dbeta. Valid where S does not change.
    """
    xp = array_namespace(F)
    (T, k, _), S = phi.shape, phi != 0
    u = xp.where(S, dphi, 0) * (2 * T * F.shape[1] / xp.max(xp.sum(F * F, axis=(1, 2))))
    if not one_step:
        A, flat = sharing_curvature(F, beta, phi, pooled)[None, :, :], [xp.reshape(a, (1, -1)) for a in (S, dphi)]
        u = xp.reshape(solve_on_support(A, *flat), phi.shape)
    R, R_prime = residual(xp.matmul(F, transpose(phi)), Y, "logistic")
    dF, along = -(xp.matmul(R, u) + xp.matmul(R_prime(xp.matmul(F, transpose(u))), phi)) / T, xp.sign(phi) * u
    return dF, -xp.sum(along) / (T * k), -xp.sum(xp.where(S, entropy_slopes(phi, pooled), 0) * along)
