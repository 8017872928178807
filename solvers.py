"""solvers.py -- the inner problems: solve each one exactly, certify it, differentiate it exactly.

    T, n, m       tasks, samples a task, features: T = 64, n = 25, m = 6. T leads every array:
                  one call solves all tasks
    F  (T, n, m)  features           y  (T, n)     labels             w  (T, m)     weights
    k             outputs, k = 5     Y  (T, n, k)  their labels       W  (T, k, m)  their weights
    lam           strength of the penalty, a number or (T,)
    G  (T, m, m)  F'F/n, the Gram matrix                        c  (T, m)  F'y/n
    q  (T, m)     c - G w = F'(y - F w)/n, the correlation of each feature with what is left
    S  (T, m)     the support {j : w_j != 0}, a mask
    dX            dL/dX for a loss L of the solution, with the shape of X
    u             the adjoint solution: curvature u = dw (in the dual: what dw becomes there)

An iterative solver returns a certificate with its solution; every vjp pulls dw back to the data of
the problem. Arrays may come from any library that array-api-compat knows: NumPy, CuPy, PyTorch.
The derivations are in docs/derivations.md; the heads that use these solvers in sparsedis.py; every
vjp is checked in experiments/gradcheck.py, every certificate in tests/test_solvers.py.

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023.
[F23] Fumero et al., Leveraging sparse and shared feature activations, NeurIPS 2023.
"""
import contextlib
import functools
import os
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import array_api_compat
from array_api_compat import device, is_numpy_array
from threadpoolctl import ThreadpoolController

TOLERANCE = {  # of the gap at which a solver has converged, in float64 and in float32
    "lasso": (1e-12, 1e-5),
    "group_lasso": (1e-10, 1e-4),
    "group_svm": (1e-8, 1e-4),
    "sparse_sharing": (1e-12, 1e-5)}


def tolerance(solver, F):
    """The tolerance of a solver in the precision of F."""
    double, single = TOLERANCE[solver]
    return double if F.dtype == array_namespace(F).float64 else single


# ------------------------------------------------------------------------------ what is refused


def check_problem(F, Y, *lams):
    """Refuse what is no problem: shapes, dtypes, values that are not finite, negative penalties.

    F (T, n, m) real floating point and Y (T, n) or (T, n, k) of the same dtype (integers and bools
    are converted), small enough to be squared; each of lams a number or (T,)  ->  Y and each of
    lams (T,), of F's dtype. Raises ValueError.
    """
    xp = array_namespace(F, Y)
    if not xp.isdtype(F.dtype, "real floating"):
        raise ValueError(f"F: found {F.dtype}, expected real floating point")
    if xp.isdtype(Y.dtype, ("bool", "integral")):
        Y = xp.astype(Y, F.dtype)
    if F.ndim != 3 or Y.ndim not in (2, 3) or Y.shape[:2] != F.shape[:2] or Y.dtype != F.dtype:
        found = f"{tuple(F.shape)} {F.dtype} and {tuple(Y.shape)} {Y.dtype}"
        raise ValueError(
            f"expected F (T, n, m) and y (T, n) or Y (T, n, k) of one dtype, found {found}")
    if 0 in F.shape or 0 in Y.shape:
        raise ValueError(f"found no samples, features or tasks: F {tuple(F.shape)}")
    if not bool(xp.isfinite(sum_of_squares(F)) & xp.isfinite(sum_of_squares(Y))):
        raise ValueError("F or y holds values that are not finite (or too large to multiply)")
    return Y, *(per_task(lam, F) for lam in lams)


def sum_of_squares(x):
    """||x||^2 of all entries, one product."""
    x = array_namespace(x).reshape(x, (-1,))
    return x @ x


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


# ------------------------------------------------------------------------------ threads
# Work is cut into blocks by its shapes alone, so that no sum depends on the number of threads. The
# blocks run on one pool of the process; BLAS, whose own threads would wait for the same cores, has
# one thread meanwhile.

_size = os.cpu_count() or 1                                         # of the pool, in threads
_here = threading.local()                                           # .in_block: in the pool
_inside, _limit = 0, None                                           # who is in one_blas_thread
_lock = threading.Lock()


@contextlib.contextmanager
def cpu_threads(n):
    """Blocks on n threads, BLAS on one, in all that is called within."""
    global _size
    before, _size = _size, n
    try:
        with one_blas_thread():
            yield
    finally:
        _size = before


@contextlib.contextmanager
def one_blas_thread():
    """BLAS on one thread from the first who enters to the last who leaves, in whatever thread; then
    as the caller had set it."""
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit = blas().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.restore_original_limits()


def on_one_blas_thread(function):
    """A function that is called within one_blas_thread."""
    @functools.wraps(function)
    def held(*args, **kwargs):
        with one_blas_thread():
            return function(*args, **kwargs)

    return held


def on_threads(f, *blocks):
    """[f(...) for each block], in order, on the pool's threads; in one of them, one by one.

    Each thread takes the next block until none is left: a job for each block would wake the caller
    as often.
    """
    N = len(blocks[0])
    if _size < 2 or N < 2 or in_block():
        return list(map(f, *blocks))
    out, left = [None] * N, iter(range(N))

    def work(_):
        for i in left:                                              # next(left) is atomic
            out[i] = f(*(block[i] for block in blocks))

    try:
        list(pool(_size, os.getpid()).map(work, range(_size)))
    finally:
        list(left)                                                  # after an error none is begun
    return out


def task_blocks(F, size):
    """The slices of F (T, ...) that hold `size` tasks each; on a GPU one of all."""
    T = F.shape[0]
    size = max(1, size) if is_numpy_array(F) else T
    return [slice(i, i + size) for i in range(0, T, size)]


def on_task_blocks(f, size, *arrays):
    """f(*arrays), of arrays (T, ...), `size` tasks at a time on threads: a tuple of arrays (T, ...)
    and dicts of such and of counts."""
    blocks = task_blocks(arrays[0], size)
    parts = on_threads(lambda some: f(*(a[some, ...] for a in arrays)), blocks)
    return tuple(join(column) for column in zip(*parts, strict=True))


def join(parts):
    """Arrays one after another, dicts key by key, the largest of counts."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], dict):
        return {key: join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], int):
        return max(parts)
    return array_namespace(*parts).concat(parts)


def in_block():
    """Whether this is a thread of the pool."""
    return getattr(_here, "in_block", False)


@functools.cache
def pool(size, process):
    """The threads of a process (a fork has none of its parent's)."""
    return ThreadPoolExecutor(size, initializer=setattr, initargs=(_here, "in_block", True))


@functools.cache
def blas():
    """The BLAS libraries at hand, looked up once."""
    return ThreadpoolController()


# ------------------------------------------------------------------------------ notation

_libraries = {}                                                     # type of array -> namespace


def array_namespace(x, *others):
    """The functions of x's library; remembered by type, for a step asks thousands of times."""
    if others:
        return array_api_compat.array_namespace(x, *others)
    if type(x) not in _libraries:
        _libraries[type(x)] = array_api_compat.array_namespace(x)
    return _libraries[type(x)]


def transpose(A):
    """(..., a, b) -> (..., b, a)."""
    return array_namespace(A).matrix_transpose(A)


def matvec(A, x):
    """(T, a, b) times (T, b) -> (T, a)."""
    return array_namespace(A).matmul(A, x[..., None])[..., 0]


def outer_product(a, b):
    """(T, a) times (T, b) -> (T, a, b)."""
    return a[:, :, None] * b[:, None, :]


def gram(F):
    """F'F/n, (T, m, m)."""
    return array_namespace(F).matmul(transpose(F), F) / F.shape[1]


def correlations(F, y):
    """c = F'y/n, (T, m)."""
    return matvec(transpose(F), y) / F.shape[1]


def identity(k, like):
    """The k x k identity, of the dtype and on the device of an array."""
    return array_namespace(like).eye(k, dtype=like.dtype, device=device(like))


def safe_divisor(a):
    """a where it is positive and 1 elsewhere: a safe divisor."""
    return array_namespace(a).where(a > 0, a, 1)


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


def lasso_lambda_max(F, y):
    """||F'y||_inf / n, (T,): from this lam on, the Lasso solution is w = 0.   [L23, App. D.2.3]"""
    y, = check_problem(F, y)
    xp = array_namespace(F)
    return xp.max(xp.abs(correlations(F, y)), axis=1)


def ridge_lambda_max(F, y=None):
    """||F||_F^2 / n, (T,): the scale of the ridge penalty, the trace of G.   [L23, App. D.2.3]"""
    check_problem(F, F)
    return array_namespace(F).sum(F * F, axis=(1, 2)) / F.shape[1]


# ------------------------------------------------------------------------------ linear systems


def diagonal(A):
    """(T, k, k) -> (T, k)."""
    return array_namespace(A).linalg.diagonal(A)


def regularised(A):
    """A + delta I for symmetric positive semi-definite A (T, k, k), whose largest entry is on the
    diagonal: delta, of rounding size, keeps it regular."""
    xp, k = array_namespace(A), A.shape[-1]
    delta = 32 * k * xp.finfo(A.dtype).eps * xp.max(diagonal(A), axis=1)            # (T,)
    return A + safe_divisor(delta)[:, None, None] * identity(k, A)


def with_unit_diagonal(A):
    """D^-1 A D^-1 of diagonal 1 (or 0), and D (T, k): columns of any units, alike."""
    D = array_namespace(A).sqrt(safe_divisor(diagonal(A)))
    return A / D[:, :, None] / D[:, None, :], D


def solve(A, B):
    """A^-1 B, (T, k, c), for regular A (T, k, k). NumPy lets no other thread go on while it solves
    for at most 500 numbers: columns of zeros make them more."""
    xp, c = array_namespace(A), B.shape[2]
    more = 500 // (B.shape[0] * B.shape[1]) + 1 - c
    if more > 0 and is_numpy_array(B):
        zeros = xp.zeros((*B.shape[:2], more), dtype=B.dtype, device=device(B))
        B = xp.concat([B, zeros], axis=2)
    return xp.linalg.solve(A, B)[..., :c]


def solve_psd(A, b):
    """x with A x = b for symmetric positive semi-definite A (T, k, k), b (T, k).

    A solve and one refinement, as exact as the condition of A, scaled to a diagonal of 1, allows.
    Where A is singular, of all solutions the one of least norm.
    """
    return solve_and_tell(A, b)[0]


def solve_and_tell(A, b):
    """solve_psd's x (T, k), and which A are singular to rounding, (T,)."""
    xp = array_namespace(A)
    A, D = with_unit_diagonal(A)
    b = b / D
    A_regular = regularised(A)
    B = xp.concat([b[:, :, None], probes(b)], axis=2)               # (T, k, 3)
    X = solve(A_regular, B)
    X = X + solve(A_regular, B - xp.matmul(A, X))
    x, singular = X[:, :, 0] / D, unsolved(A, X, B)
    if bool(xp.any(singular)):
        x = xp.where(singular[:, None], least_norm(A, D, b), x)
    return x, singular


def least_norm(A, D, b):
    """The x = D^-1 v of least norm with A v = b (in the sense of least squares), for singular A."""
    xp, k = array_namespace(A), A.shape[-1]
    size, E = xp.linalg.eigh(A)
    null = (size <= 10 * k * xp.finfo(A.dtype).eps * size[:, -1:])[:, None, :]      # (T, 1, k)
    along = matvec(transpose(E), b) / xp.where(null[:, 0, :], 1, size)
    x = matvec(xp.where(null, 0, E), along) / D
    N = xp.where(null, E, 0) / D[:, :, None]                        # A D N = 0
    return x - matvec(N, matvec(xp.linalg.pinv(N), x))


def probes(b):
    """Two more right-hand sides: fixed, irregular, so that no eigenvector is orthogonal to both."""
    xp = array_namespace(b)
    i = xp.arange(1, b.shape[1] + 1, dtype=b.dtype, device=device(b))
    return xp.zeros_like(b)[:, :, None] + xp.stack([xp.cos(i ** 2), xp.cos(i ** 3)], axis=1)


def unsolved(A, X, B):
    """Which A (T, k, k) leave a probe unsolved, for they have eigenvalues below rounding, (T,)."""
    xp = array_namespace(A)
    left = xp.abs(B - xp.matmul(A, X))
    return xp.any(left[:, :, 1:] > 1e-3, axis=(1, 2))


def solve_once(A, b):
    """As solve_psd, for a step that need not be exact."""
    A, D = with_unit_diagonal(A)
    return solve(regularised(A), (b / D)[..., None])[..., 0] / D


# The features of a support are gathered, so that systems have the size k of the largest support of
# the batch. first, on (T, k): numbers of features, those of S first, and whether they are in S;
# place (T, m): where each feature stands.
Support = namedtuple("Support", "first on place")


def gather_support(S):
    """The Support of a mask S (T, m)."""
    xp = array_namespace(S)
    k = max(1, int(xp.max(xp.sum(xp.astype(S, xp.int64), axis=1))))
    order = xp.argsort(xp.astype(~S, xp.int8), axis=1, stable=True)
    first = order[:, :k]
    return Support(first, xp.take_along_axis(S, first, axis=1), xp.argsort(order, axis=1))


def on_support(b, support):
    """b (T, m) -> (T, k), 0 off the support."""
    xp = array_namespace(b)
    return xp.where(support.on, xp.take_along_axis(b, support.first, axis=1), 0)


def off_support(x, support):
    """x (T, k) -> (T, m), 0 off the support."""
    xp = array_namespace(x)
    full = xp.zeros(support.place.shape, dtype=x.dtype, device=device(x))
    full[:, :x.shape[1]] = x
    return xp.take_along_axis(full, support.place, axis=1)


def padded(A, on):
    """A (T, k, k), where not on replaced by a multiple of the identity."""
    xp = array_namespace(A)
    scale = safe_divisor(xp.max(xp.abs(A), axis=(1, 2)))[:, None, None]
    return xp.where(on[:, :, None] & on[:, None, :], A, scale * identity(A.shape[1], A))


def solve_on_support(A, S, b, solver=solve_psd):
    """x with A_SS x_S = b_S and x = 0 off S, A (T, m, m), S and b (T, m)."""
    support = gather_support(S)
    A = padded(gather_square(A, support.first), support.on)
    return off_support(solver(A, on_support(b, support)), support)


def gather_square(A, index):
    """A (T, m, m), index (T, k)  ->  A[t, index_i, index_j], (T, k, k)."""
    xp = array_namespace(A)
    T, m, _ = A.shape
    k = index.shape[1]
    row = m * (index + m * xp.arange(T, device=device(A))[:, None])                 # A[t, i, 0]
    flat = xp.reshape(row[:, :, None] + index[:, None, :], (-1,))
    return xp.reshape(xp.take(xp.reshape(A, (-1,)), flat), (T, k, k))


# ------------------------------------------------------------------------------ iterations


def until_solved(step, measure, w, data, tol, max_iter):
    """Repeat w <- step(w, *found, *data) until no task's gap exceeds tol  ->  w, info.

    measure(w, *data) -> gap (T,), found: what a step wants to know of w. Every array has T rows;
    solved tasks leave once they are over a quarter of the batch, and step on until then.
    """
    xp = array_namespace(w)
    ids = xp.arange(w.shape[0], device=device(w))
    done = []                                                       # (ids, w, gap) of solved tasks
    for n_iter in range(max_iter + 1):
        gap, found = measure(w, *data)
        open_ = gap > tol
        solved = int(xp.sum(xp.astype(~open_, xp.int64)))
        if solved == w.shape[0] or n_iter == max_iter:
            break
        if solved > w.shape[0] // 4:
            order = xp.argsort(xp.astype(open_, xp.int8), stable=True)
            done.append(take_all((ids, w, gap), order[:solved]))
            ids, w = take_all((ids, w), order[solved:])
            found, data = (take_all(arrays, order[solved:]) for arrays in (found, data))
        w = step(w, *found, *data)
    parts = zip(*done, (ids, w, gap), strict=True)
    ids, w, gap = (xp.concat(part) for part in parts)
    w, gap = take_all((w, gap), xp.argsort(ids))
    return w, {"n_iter": n_iter, "gap": gap, "converged": gap <= tol}


def take_all(arrays, index):
    """The rows of every array."""
    return [array_namespace(a).take(a, index, axis=0) for a in arrays]


# ------------------------------------------------------------------------------ Lasso


@on_one_blas_thread
def lasso(F, y, lam, max_iter=None):
    """argmin_w  ||y - F w||^2 / (2 n) + lam ||w||_1  for every task.        [L23, Problem (6)]

    F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m), info with n_iter and, per task,
        gap        the largest violation of the optimality conditions, in units of lasso_lambda_max
        converged  gap <= 1e-12 in float64, 1e-5 in float32
    From w = 0, an iteration takes a step of proximal coordinate descent (the paper's solver, here
    greedy: the coordinate that violates optimality most), or two where m is large, then a Newton
    step on the support so found, which ends the search once that is right. Neither raises the
    objective, so the support cannot cycle. Where the minimiser is not unique (lam = 0 with n < m,
    equal columns) one of them is returned. Columns are expected to be of similar scale, as
    normalised features are. Raises ValueError as check_problem does.
    """
    y, lam = check_problem(F, y, lam)
    xp, tol = array_namespace(F), tolerance("lasso", F)
    max_iter = 100 + 20 * F.shape[2] if max_iter is None else max_iter

    def fit(F, y, lam):
        G, c = gram(F), correlations(F, y)
        unit = safe_divisor(xp.max(xp.abs(c), axis=1))
        start = xp.zeros_like(c)
        return until_solved(lasso_step, lasso_gap, start, (G, c, lam, unit), tol, max_iter)

    return on_task_blocks(fit, 2 ** 22 // F.shape[2] ** 2, F, y, lam)


def lasso_gap(w, G, c, lam, unit):
    """The gap of each task, and q and the violation v of each coordinate, (T, m)."""
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
    if w.shape[1] > 20:                                             # half as many Newton steps
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
    d = solve_on_support(G, w != 0, q - lam * s, solve_once)
    crosses = (s * (w + d) <= 0) & (w != 0) & (lam > 0)
    t_j = xp.where(crosses, w, 1) / xp.where(crosses, -d, 1)        # to w_j = 0
    t = xp.min(xp.where(crosses, t_j, 1), axis=1)[:, None]          # (T, 1)
    return xp.where(crosses & (t_j <= t), 0, w + t * d)


@on_one_blas_thread
def lasso_vjp(F, y, lam, w, dw):
    """Pull dw back through the solution w(F, y, lam).  [L23, Sec. 3.4; Bertrand et al. 2022]

    On the support S (at lam = 0, where nothing is kinked, all features), with s = sign(w_S), it
    satisfies  R := F_S'(F_S w_S - y)/n + lam s = 0.
      1. curvature   A = dR/dw_S = F_S'F_S/n
      2. adjoint     A u_S = dw_S,  u = 0 off S
      3. pull back   dX = -(dR/dX)' u   for X = F, y, lam

    F (T, n, m), y (T, n), lam a number or (T,), w and dw (T, m)  ->  dF (T, n, m), dy (T, n),
    dlam (T,), from above at lam = 0 where no w_j is 0. Valid where S does not change; where F_S'F_S
    is singular, u is of least norm.
    """
    y, lam = check_problem(F, y, lam)
    xp = array_namespace(F)
    _, n, m = F.shape
    u = adjoint_on_support(F, (w != 0) | (lam == 0)[:, None], dw)
    dF, dy = xp.empty_like(F), xp.empty_like(y)

    def pull(some):
        own = F[some, ...], y[some, ...], w[some, ...], u[some, ...]
        dF[some, ...], dy[some, ...] = pull_back(*own)

    on_threads(pull, task_blocks(F, 2 ** 17 // (n * m)))            # what stays in a core's cache
    return dF, dy, -xp.sum(xp.sign(w) * u, axis=1)


def adjoint_on_support(F, S, b):
    """u (T, m) with F_S'F_S/n u_S = b_S and u = 0 off S, for masks S (T, m).

    Tasks are taken by the size of their support: a block's systems have that of its largest.
    """
    xp = array_namespace(F)
    order = xp.argsort(xp.sum(xp.astype(S, xp.int64), axis=1))

    def adjoint(some):
        support = gather_support(xp.take(S, some, axis=0))
        u = solve_psd(gram_of(F, some, support), on_support(xp.take(b, some, axis=0), support))
        return (off_support(u, support),)

    u, = on_task_blocks(adjoint, 100, order)
    return xp.take(u, xp.argsort(order), axis=0)


def gram_of(F, some, support):
    """F_S'F_S/n of some tasks' gathered columns, (T, k, k): without all features' Gram matrix."""
    xp = array_namespace(F)
    _, n, m = F.shape
    row = m * (n * some[:, None] + xp.arange(n, device=device(F)))  # where F[t, i, 0] is
    flat = row[:, :, None] + support.first[:, None, :]
    F_S = xp.reshape(xp.take(xp.reshape(F, (-1,)), xp.reshape(flat, (-1,))), flat.shape)
    return padded(gram(F_S), support.on)


def pull_back(F, y, w, u):
    """-(d/dX)' u of F'(F w - y)/n, for X = F and y: what Lasso and ridge share.

    With r = (y - F w)/n,  dy = F u/n  and  dF = r u' - dy w', in one product of inner size 2.
    """
    xp, n = array_namespace(F), F.shape[1]
    r, dy = (y - matvec(F, w)) / n, matvec(F, u) / n                # (T, n)
    return xp.matmul(xp.stack([r, -dy], axis=2), xp.stack([u, w], axis=1)), dy


# ------------------------------------------------------------------------------ ridge


@on_one_blas_thread
def ridge(F, y, lam):
    """argmin_w  ||y - F w||^2 / (2 n) + lam/2 ||w||^2  for every task.            [L23, Sec. 5.1]

    (F'F/n + lam I) w = F'y/n. F (T, n, m), y (T, n), lam a number or (T,)  ->  w (T, m). At lam = 0
    with singular F'F, the least-norm solution. Raises ValueError as check_problem does.
    """
    y, lam = check_problem(F, y, lam)
    return solve_psd(ridge_curvature(F, lam), correlations(F, y))


def ridge_residual(F, y, lam, w):
    """The certificate of ridge: the largest |F'y/n - (F'F/n + lam I) w|_j over sqrt(A_jj), in units
    of its value at w = 0, (T,), whatever the columns' units."""
    y, lam = check_problem(F, y, lam)
    xp = array_namespace(F)
    A, c = ridge_curvature(F, lam), correlations(F, y)
    scale = xp.sqrt(safe_divisor(diagonal(A)))
    top = xp.max(xp.abs(c) / scale, axis=1)
    return xp.max(xp.abs(c - matvec(A, w)) / scale, axis=1) / safe_divisor(top)


def ridge_curvature(F, lam):
    """A = F'F/n + lam I, (T, m, m)."""
    return gram(F) + lam[:, None, None] * identity(F.shape[2], F)


@on_one_blas_thread
def ridge_vjp(F, y, lam, w, dw):
    """As lasso_vjp, for ridge: R := F'(F w - y)/n + lam w = 0, A = F'F/n + lam I, A u = dw.

    dlam = -w'u.                                                    [docs/derivations.md, 3]
    """
    y, lam = check_problem(F, y, lam)
    u = solve_psd(ridge_curvature(F, lam), dw)                      # (T, m)
    dF, dy = pull_back(F, y, w, u)
    return dF, dy, -array_namespace(F).sum(w * u, axis=1)


@on_one_blas_thread
def ridge_classes(F, Y, lam):
    """argmin_W (1/n) sum_i 1/2 ||W F_i - Y_i||^2 + lam/2 ||W||^2, lam > 0, from its dual.

    W = a'F with (F F'/n + lam I) a = Y/n: for few samples and many features.
    F (T, n, m), Y (T, n, k), lam a number or (T,)  ->  W (T, k, m).     [docs/derivations.md, 3]
    """
    Y, lam = check_problem(F, Y, lam)
    a = ridge_dual(F, lam, Y / F.shape[1])
    return array_namespace(F).matmul(transpose(a), F)


def ridge_dual(F, lam, B):
    """(F F'/n + lam I)^-1 B, (T, n, k)."""
    xp, n = array_namespace(F), F.shape[1]
    A = xp.matmul(F, transpose(F)) / n + lam[:, None, None] * identity(n, F)
    return solve(A, B)


@on_one_blas_thread
def ridge_classes_vjp(F, Y, lam, W, dW):
    """(dF,) of dW: through F in W = a'F, and through a, with (F F'/n + lam I) u = F dW'."""
    Y, lam = check_problem(F, Y, lam)
    xp, n = array_namespace(F), F.shape[1]
    a = ridge_dual(F, lam, Y / n)                                   # (T, n, k)
    u = ridge_dual(F, lam, xp.matmul(F, transpose(dW)))             # (T, n, k)
    through_a = xp.matmul(u, xp.matmul(transpose(a), F)) + xp.matmul(a, xp.matmul(transpose(u), F))
    return (xp.matmul(a, dW) - through_a / n,)


# ------------------------------------------------------------------------------ losses of k outputs
# "squared": 1/2 ||Z_i - Y_i||^2; "logistic": the cross-entropy of softmax(Z_i) and Y_i, or of the
# sigmoid where k = 1; Z = F W' (T, n, k) are the scores.


def loss_gradient(Z, Y, loss):
    """R (T, n, k), the derivative of (1/n) sum_i loss(Z_i, Y_i) in Z, and R', its own derivative
    along a given dZ."""
    xp, n = array_namespace(Z), Z.shape[1]
    if loss == "squared":
        return (Z - Y) / n, lambda dZ: dZ / n
    P = softmax(Z)
    return (P - Y) / n, lambda dZ: P * (dZ - xp.sum(P * dZ, axis=-1, keepdims=True)) / n


def data_loss(Z, Y, loss):
    """(1/n) sum_i loss(Z_i, Y_i), (T,)."""
    xp = array_namespace(Z)
    if loss == "squared":
        return xp.sum((Z - Y) ** 2, axis=(1, 2)) / (2 * Z.shape[1])
    return xp.mean(log_sum_exp(Z)[..., 0] - xp.sum(Y * Z, axis=-1), axis=1)


def log_sum_exp(Z):
    """log sum_l exp(Z_l) over the last axis, which is kept; one column Z means (Z, 0)."""
    xp = array_namespace(Z)
    Z = xp.concat([Z, 0 * Z], axis=-1) if Z.shape[-1] == 1 else Z
    top = xp.max(Z, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(Z - top), axis=-1, keepdims=True))


def softmax(Z):
    """exp(Z) / sum exp(Z) over the last axis; of one column, the sigmoid."""
    return array_namespace(Z).exp(Z - log_sum_exp(Z))


def scores(F, W):
    """Z = F W', (T, n, k)."""
    return array_namespace(F).matmul(F, transpose(W))


# ------------------------------------------------------------------------------ group Lasso
# Feature j is used by no output (W_j = 0) or by all: W_j is column j of W (T, k, m).


def group_lasso_lambda_max(F, Y, loss="squared"):
    """max_j ||F_j' R(0)||, (T,): from this lam on, W = 0.      [docs/derivations.md, 4]"""
    Y, = check_problem(F, Y)
    check_labels(Y, loss)
    xp = array_namespace(F)
    R, _ = loss_gradient(0 * Y, Y, loss)
    return xp.max(xp.linalg.vector_norm(xp.matmul(transpose(R), F), axis=1), axis=1)


@on_one_blas_thread
def group_lasso(F, Y, lam, loss="squared", max_iter=1000):
    """argmin_W (1/n) sum_i loss(W F_i, Y_i) + lam sum_j ||W_j||_2 for every task.

    F (T, n, m), Y (T, n, k), lam a number or (T,)  ->  W (T, k, m), info as of lasso, gap in units
    of group_lasso_lambda_max, converged at 1e-10 (float32: 1e-4). An iteration is a sweep of block
    coordinate descent, which finds the support, and a Newton step on it, taken by each task where
    it helps. Raises ValueError as check_problem does.   [L23, Problem (6); Yuan and Lin 2006]
    """
    Y, lam = check_problem(F, Y, lam)
    check_labels(Y, loss)
    xp = array_namespace(F)
    unit = safe_divisor(group_lasso_lambda_max(F, Y, loss))
    W = xp.zeros((F.shape[0], Y.shape[2], F.shape[2]), dtype=F.dtype, device=device(F))

    def measure(W, F, Y, lam, unit):
        return group_violation(F, Y, lam, W, loss) / unit, ()

    def step(W, F, Y, lam, unit):
        return newton_group_step(F, Y, lam, block_sweep(F, Y, lam, W, loss), loss)

    tol = tolerance("group_lasso", F)
    return until_solved(step, measure, W, (F, Y, lam, unit), tol, max_iter)


def data_gradient(F, Y, W, loss):
    """R'F, the derivative of the data term in W, (T, k, m)."""
    R, _ = loss_gradient(scores(F, W), Y, loss)
    return array_namespace(F).matmul(transpose(R), F)


def directions(W):
    """W_j/||W_j||, 0 where W_j = 0, and the norms (T, 1, m)."""
    size = array_namespace(W).linalg.vector_norm(W, axis=1, keepdims=True)
    return W / safe_divisor(size), size


def group_violation(F, Y, lam, W, loss):
    """The largest violation of F_j'R + lam W_j/||W_j|| = 0 where W_j != 0, and of
    ||F_j'R|| <= lam elsewhere, (T,)."""
    xp = array_namespace(W)
    g = data_gradient(F, Y, W, loss)
    unit, size = directions(W)
    on = xp.linalg.vector_norm(g + lam[:, None, None] * unit, axis=1)
    off = xp.maximum(xp.linalg.vector_norm(g, axis=1) - lam[:, None], 0)
    return xp.max(xp.where(size[:, 0, :] > 0, on, off), axis=1)


def group_objective(F, Y, lam, W, loss):
    """(1/n) sum_i loss + lam sum_j ||W_j||, (T,)."""
    xp = array_namespace(F)
    norms = xp.sum(xp.linalg.vector_norm(W, axis=1), axis=1)
    return data_loss(scores(F, W), Y, loss) + lam * norms


def block_sweep(F, Y, lam, W, loss):
    """W_j <- BST(W_j - F_j'R/L_j, lam/L_j) for j = 1 ... m.

    L_j = ||F_j||^2/n, half that for softmax, bounds the curvature.
    """
    xp = array_namespace(F)
    Z, W = scores(F, W), W + 0
    curvature = 1 if loss == "squared" else 1 / 2
    L = safe_divisor(xp.sum(F * F, axis=1) / F.shape[1] * curvature)              # (T, m)
    for j in range(F.shape[2]):
        F_j, L_j = F[:, :, j], L[:, j, None]
        R, _ = loss_gradient(Z, Y, loss)
        W_j = W[:, :, j] - matvec(transpose(R), F_j) / L_j          # (T, k)
        W_j = block_soft_threshold(W_j, lam[:, None] / L_j)
        Z += outer_product(F_j, W_j - W[:, :, j])
        W[:, :, j] = W_j
    return W


def group_curvature(F, lam, W, loss):
    """H, the second derivative of the objective on the support of W, (T, m k, m k), j before l:
    F'R'[F .] + lam (I - v v')/||W_j||,  v = W_j/||W_j||."""
    xp = array_namespace(F)
    T, k, m = W.shape
    eye = identity(k, F)
    if loss == "squared":
        H = gram(F)[:, :, None, :, None] * eye[:, None, :]          # (T, m, k, m, k)
    else:
        H = softmax_curvature(F, W)
    unit, size = (transpose(a) for a in directions(W))              # (T, m, k)
    size = xp.where(size > 0, xp.maximum(size, 1e-100), 1)
    bend = (eye - unit[..., None] * unit[:, :, None, :]) / size[..., None]          # (T, m, k, k)
    bend = lam[:, None, None, None] * bend
    H = H + bend[:, :, :, None, :] * identity(m, F)[:, None, :, None]
    return xp.reshape(H, (T, m * k, m * k))


def softmax_curvature(F, W):
    """F'R'[F .] of the logistic loss, (T, m, k, m, k)."""
    xp = array_namespace(F)
    T, k, m = W.shape
    n = F.shape[1]
    P = softmax(scores(F, W))
    D = P[..., None] * (identity(k, F) - P[:, :, None, :]) / n      # (T, n, k, k)
    FD = xp.reshape(F[..., None, None] * D[:, :, None, :, :], (T, n, m * k * k))
    H = xp.reshape(xp.matmul(transpose(F), FD), (T, m, m, k, k))
    return xp.permute_dims(H, (0, 1, 3, 2, 4))


def solve_on_columns(H, on, B):
    """U (T, k, m) with H U = B on the features that are on (T, m), U = 0 elsewhere."""
    xp = array_namespace(B)
    T, k, m = B.shape
    on = xp.repeat(on, k, axis=1)                                   # (T, m k)
    U = solve_on_support(H, on, xp.reshape(transpose(B), (T, m * k)))
    return transpose(xp.reshape(U, (T, m, k)))


def newton_group_step(F, Y, lam, W, loss):
    """The Newton step on the support, or the part of it that lessens the violation most without
    raising the objective."""
    xp = array_namespace(F)
    g = data_gradient(F, Y, W, loss) + lam[:, None, None] * directions(W)[0]
    d = solve_on_columns(group_curvature(F, lam, W, loss), xp.any(W != 0, axis=1), -g)
    best, left = W, group_violation(F, Y, lam, W, loss)
    height = group_objective(F, Y, lam, W, loss) * (1 + 1e-14)
    for t in (1.0, 0.5, 0.25, 0.125):
        new = W + t * d
        violation = group_violation(F, Y, lam, new, loss)
        better = (violation < left) & (group_objective(F, Y, lam, new, loss) <= height)
        best = xp.where(better[:, None, None], new, best)
        left = xp.where(better, violation, left)
    return best


@on_one_blas_thread
def group_lasso_vjp(F, Y, lam, W, dW, loss="squared"):
    """Pull dW back through the solution of group_lasso.            [docs/derivations.md, 4]

    On the support F_j'R + lam W_j/||W_j|| = 0; with H as in group_curvature
      1., 2. adjoint   H U = dW,  U = 0 off the support
      3. pull back     dF = -(R U + R'[F U'] W)        dlam = -sum_j U_j . W_j/||W_j||

    F (T, n, m), Y (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam (T,). Valid where the
    support does not change; at lam = 0 it is all features, and dlam is from above where no W_j = 0.
    """
    Y, lam = check_problem(F, Y, lam)
    xp = array_namespace(F)
    on = xp.any(W != 0, axis=1) | (lam == 0)[:, None]               # (T, m)
    U = solve_on_columns(group_curvature(F, lam, W, loss), on, dW)  # (T, k, m)
    R, R_prime = loss_gradient(scores(F, W), Y, loss)
    dF = -(xp.matmul(R, U) + xp.matmul(R_prime(scores(F, U)), W))
    return dF, -xp.sum(directions(W)[0] * U, axis=(1, 2))


# ------------------------------------------------------------------------------ group-Lasso SVM
# k classes, Y (T, n, k) one-hot, Lam (T, n, k) dual variables, each row in the simplex
# {Lam_i >= 0, sum_l Lam_il = 1}; V = (Y - Lam)'F (T, k, m). F_i is a sample, W_l a class's row;
# F_j, V_j, W_j are the columns of a feature. As printed, (8) and (81) have W_{y_i} - W_l, (8) no 1
# and (10) 1/lam2: docs/errata.md.
# The primal and its dual, with min P = n - min D:
#     min_W    P = sum_i max_l (1 - Y_il + (W_l - W_{y_i}) . F_i) + lam1 sum_j ||W_j||
#                  + lam2/2 ||W||^2                                       [L23, Problem (81)]
#     min_Lam  D = 1/(2 lam2) sum_j ||BST(V_j, lam1)||^2 + <Y, Lam>        [L23, Problem (10)]
# W = BST(V, lam1)/lam2, and dD/dLam = Y - F W', of which the slack S_il = dD_il - min_l dD_il.


def project_simplex(V):
    """The Euclidean projection of each V (..., k) on the simplex.    [Duchi et al. 2008]

    (V - t)_+ with the t that makes it sum to 1.
    """
    xp, k = array_namespace(V), V.shape[-1]
    V = V - xp.max(V, axis=-1, keepdims=True)                    # no cancellation where V is huge
    sums = xp.cumulative_sum(xp.sort(V, axis=-1, descending=True), axis=-1)
    counts = xp.arange(1, k + 1, dtype=V.dtype, device=device(V))
    t = xp.max((sums - 1) / counts, axis=-1, keepdims=True)
    return xp.maximum(V - t, 0)


def svm_lambda_max(F, Y):
    """max_j ||F_j'(Y - (1 - Y)/(k - 1))||, (T,): for lam1 above it W = 0; exact where k = 2.

    [docs/derivations.md, 5]
    """
    Y, = check_problem(F, Y)
    check_labels(Y, "hinge")
    xp = array_namespace(F)
    A = Y - (1 - Y) / (Y.shape[2] - 1)
    return xp.max(xp.linalg.vector_norm(xp.matmul(transpose(A), F), axis=1), axis=1)


@on_one_blas_thread
def group_svm(F, Y, lam1, lam2, method="interior-point", max_iter=None):
    """The multiclass SVM whose features are switched on and off as groups, for every task.

    F (T, n, m), Y (T, n, k) one-hot, lam1 >= 0 and lam2 > 0 numbers or (T,)  ->  W (T, k, m),
    Lam (T, n, k), info with n_iter and, per task,                [L23, Problems (81), (10)]
        gap        the duality gap P + D - n over n - P, what W gains over W = 0 (over 1 if nothing)
        converged  gap <= 1e-8 in float64, 1e-4 in float32, and Lam solves its face
        strict     no entry of Lam and no feature is about to be switched, and there is no other
                   Lam: derivatives exist in all directions
    method  "interior-point", or "pbcd": proximal block coordinate descent in the dual, the paper's
    algorithm [L23, App. D.3], whose n_iter counts epochs. W is unique, Lam need not be.
    Raises ValueError as check_problem does, and for labels that are not one-hot or lam2 = 0.
    """
    Y, lam1, lam2 = check_problem(F, Y, lam1, lam2)
    check_labels(Y, "hinge")
    xp = array_namespace(F)
    if not bool(xp.all(lam2 > 0)):
        raise ValueError("lam2: found 0, expected a positive number")
    if method not in SVM_METHODS:
        raise ValueError(f"method: found {method}, expected {' or '.join(SVM_METHODS)}")
    search, limit = SVM_METHODS[method]
    tol = tolerance("group_svm", F)
    max_iter = limit if max_iter is None else max_iter

    def fit(F, Y, lam1, lam2):
        svm = SVM(with_fewer_features(F, lam1), Y, lam1, lam2, tangent_basis(Y))
        Lam, found, n_iter = search(svm, tol, max_iter)
        _, W, _ = svm_primal(F, Y, Lam, lam1, lam2)
        return W, Lam, {"n_iter": n_iter, **found._asdict()}

    _, n, m = F.shape
    size = 2 ** 17 // max(n * m, (n * Y.shape[2]) ** 2)
    return on_task_blocks(fit, size, F, Y, lam1, lam2)


# The problem, and Q (k, c), an orthonormal basis of the vectors that sum to 0, c = k - 1.
SVM = namedtuple("SVM", "F Y lam1 lam2 Q")


def tangent_basis(Y):
    """Q (k, c): the rows of Y - Lam, and so the V_j, are combinations of its columns."""
    xp = array_namespace(Y)
    eye = identity(Y.shape[2], Y)
    return xp.linalg.qr(xp.concat([xp.ones_like(eye[:, :1]), eye[:, 1:]], axis=1))[0][:, 1:]


def with_fewer_features(F, lam1):
    """Without lam1 only F F' matters, and n features with the same F F' do as well."""
    xp = array_namespace(F)
    if F.shape[2] <= F.shape[1] or bool(xp.any(lam1 > 0)):
        return F
    return transpose(xp.linalg.qr(transpose(F))[1])


def svm_primal(F, Y, Lam, lam1, lam2):
    """V and W = BST(V, lam1)/lam2, (T, k, m), and dD = Y - F W', (T, n, k), at a dual point."""
    xp = array_namespace(F)
    V = xp.matmul(transpose(label_minus_dual(Y, Lam)), F)
    W = block_soft_threshold(V, lam1[:, None, None], axis=1) / lam2[:, None, None]
    return V, W, Y - scores(F, W)


def label_minus_dual(Y, Lam):
    """Y - Lam, (T, n, k), without the cancellation of 1 - Lam where Lam is almost 1."""
    others = (1 - Y) * Lam
    return Y * array_namespace(Y).sum(others, axis=2, keepdims=True) - others


def svm_gap(Y, Lam, W, dD, lam1, lam2):
    """The duality gap P + D - n = <Lam, S>, a sum of what is not negative, over n - P, (T,).

    Relative to P, about n whatever W is, it would not see a W that matters little.
    """
    xp = array_namespace(Lam)
    low = xp.min(dD, axis=2, keepdims=True)
    norms = xp.sum(xp.linalg.vector_norm(W, axis=1), axis=1)
    penalty = lam1 * norms + lam2 / 2 * xp.sum(W * W, axis=(1, 2))
    gain = xp.sum(low[..., 0] + xp.sum(Y * (Y - dD), axis=2), axis=1) - penalty     # n - P
    rounding = 10 * Y.shape[1] * xp.finfo(Y.dtype).eps
    return xp.sum(Lam * (dD - low), axis=(1, 2)) / xp.where(gain > rounding, gain, 1)


# What is known of a dual point, (T,): see group_svm.
Certificate = namedtuple("Certificate", "gap converged strict")


def svm_certificate(svm, Lam, tol):
    """What Newton's method would still change says whether Lam solves its face, {Lam_il = 0} and
    the active features, and whether ten times that would leave it. Of many Lam, with the same W,
    the next change of F leaves some: W has a kink there too."""
    F, Y, lam1, lam2, Q = svm
    xp = array_namespace(F)
    V, W, dD = svm_primal(F, Y, Lam, lam1, lam2)
    gap = svm_gap(Y, Lam, W, dD, lam1, lam2)
    H = svm_curvature(F, xp.matmul(transpose(Q), V), *bst_slopes(V, lam1), lam2)
    d, many = solve_on_face(H, Lam > 0, Q, -dD)
    error, clear = 10 * xp.max(xp.abs(d), axis=(1, 2)), xp.finfo(F.dtype).eps ** 0.5

    low = xp.min(dD, axis=2, keepdims=True)
    scale = xp.max(xp.abs(Y - dD), axis=(1, 2))                     # of the scores
    off = dD - low > ((error + clear) * scale)[:, None, None]
    on = Lam > (error + clear)[:, None, None]
    reach = error[:, None] * xp.linalg.vector_norm(F, axis=1) + clear * lam1[:, None]
    kinked = xp.abs(xp.linalg.vector_norm(V, axis=1) - lam1[:, None]) <= reach
    kinked = xp.any(kinked & (lam1 > 0)[:, None], axis=1)
    clearly = xp.all(on | ((Lam == 0) & off), axis=(1, 2)) & ~many
    strict = ~kinked & (clearly | xp.all(W == 0, axis=(1, 2)))
    return Certificate(gap, (gap <= tol) & (error <= clear), strict)


def gap_at(svm, Lam):
    """svm_gap at a dual point."""
    F, Y, lam1, lam2, _ = svm
    _, W, dD = svm_primal(F, Y, Lam, lam1, lam2)
    return svm_gap(Y, Lam, W, dD, lam1, lam2)


def svm_pbcd(svm, tol, max_iter):
    """Lam_i <- proj_simplex(Lam_i - dD_i/L_i), one sample i after another.   [L23, App. D.3]

    L_i = ||F_i||^2/lam2 bounds the curvature.
    """
    F, Y, lam1, lam2, _ = svm
    xp = array_namespace(F)
    Lam = even_duals(Y)
    L = xp.sum(F * F, axis=2) / lam2[:, None]
    L = xp.where(L > 0, L, 1e-12)                                   # F_i = 0: to the least dD_il
    for n_iter in range(max_iter + 1):
        V, W, dD = svm_primal(F, Y, Lam, lam1, lam2)
        gap = svm_gap(Y, Lam, W, dD, lam1, lam2)
        if n_iter == max_iter or bool(xp.all(gap <= tol)):
            S = dD - xp.min(dD, axis=2, keepdims=True)
            Lam = svm_crossover(svm, Lam, S)
            return Lam, svm_certificate(svm, Lam, tol), n_iter
        for i in range(F.shape[1]):
            W = block_soft_threshold(V, lam1[:, None, None], axis=1) / lam2[:, None, None]
            dD_i = Y[:, i, :] - matvec(W, F[:, i, :])
            Lam_i = project_simplex(Lam[:, i, :] - dD_i / L[:, i, None])
            V += outer_product(Lam[:, i, :] - Lam_i, F[:, i, :])
            Lam[:, i, :] = Lam_i


def even_duals(Y):
    """Lam = 1/k."""
    return array_namespace(Y).ones_like(Y) / Y.shape[2]


# The curvature of D, H = 1/lam2 sum_j F_j F_j' (x) J_j, in the coordinates of Q: (T, n, c, n, c).
# J_j, the Jacobian of BST at V_j, has the eigenvalue `along` on V_j and `flat` across it.


def bst_slopes(V, lam1):
    """flat = (1 - lam1/||V_j||)_+ and along = 1 where ||V_j|| > lam1, else 0, (T, m); all 1 where
    lam1 = 0, for BST is the identity there."""
    xp = array_namespace(V)
    size, lam1 = xp.linalg.vector_norm(V, axis=1), lam1[:, None]
    on = (size > lam1) | (lam1 == 0)
    flat = xp.where(on, 1 - lam1 / safe_divisor(size), 0)
    return flat, xp.astype(on, V.dtype)


def svm_curvature(F, V, flat, along, lam2):
    """H (T, n, c, n, c) for V (T, c, m), and the slopes flat and along (T, m)."""
    xp = array_namespace(F)
    T, n, m = F.shape
    c = V.shape[1]
    lam2 = lam2[:, None]
    across = xp.matmul(F * (flat / lam2)[:, None, :], transpose(F))                 # (T, n, n)
    H = across[:, :, None, :, None] * identity(c, F)[:, None, :]
    bend = xp.maximum(along - flat, 0)
    if bool(xp.any(bend > 0)):
        unit, _ = directions(V)
        B = unit * xp.sqrt(bend / lam2)[:, None, :]                 # (T, c, m)
        M = xp.reshape(F[:, :, None, :] * B[:, None, :, :], (T, n * c, m))
        H = H + xp.reshape(xp.matmul(M, transpose(M)), (T, n, c, n, c))
    return H


# The interior-point method drives two families of products to 0 together:
#     Lam_il S_il      of the dual variables and the slacks
#     p_j s_j          p_j = (||V_j|| - lam1)_+ = lam2 ||W_j||,  s_j = (lam1 - ||V_j||)_+,
#                      so that p_j - s_j = ||V_j|| - lam1
# A Newton step solves the linearised conditions. Mehrotra's predictor aims at products of 0, and
# how far it gets tells how far the corrector aims: at sigma mu, mu the mean of Lam S now.


# A point: Lam and S (T, n, k), V (T, c, m) in the coordinates of Q, p and s (T, m).
Interior = namedtuple("Interior", "Lam S V p s")
# A step of a point; V moves with Lam.
Step = namedtuple("Step", "Lam S p s")
# The linearised conditions at a point: newton_system.
Newton = namedtuple("Newton", "A D B along unit total miss_p miss_dD")


def svm_interior_point(svm, tol, max_iter):
    """Lam (T, n, k), its certificate, and the number of Newton steps.

    A crossover is tried before each step once every task is nearly solved, or within 1e-4 and on
    the same face {Lam_il > S_il} as a step before.
    """
    xp = array_namespace(svm.F)
    at = interior_start(svm)
    face = at.Lam > at.S
    unknown = xp.zeros(svm.Y.shape[0], dtype=xp.bool, device=device(svm.Y))
    best = even_duals(svm.Y)
    found = Certificate(gap_at(svm, best), unknown, unknown)
    for n_iter in range(max_iter + 1):
        left, mu = gap_estimate(svm, at), mean_product(at.Lam, at.S)[:, 0]
        going = ~found.converged & (left > 1e-15) & (n_iter < max_iter)
        before, face = face, at.Lam > at.S
        settled = xp.all(face == before, axis=(1, 2)) & (left <= 1e-4)
        near = settled | (left <= max(1e-7, tol)) | (mu <= 1e-12) | ~going
        if bool(xp.all(near)):
            Lam = svm_crossover(svm, at.Lam, at.S)
            best, found = better_dual(best, found, Lam, svm_certificate(svm, Lam, tol))
            going = going & ~found.converged
        if not bool(xp.any(going)):
            return best, found, n_iter
        at = mehrotra_step(svm, at, going, careful=n_iter >= 30)


def better_dual(best, found, Lam, certificate):
    """Of two duals, for each task, that which is converged, or has the smaller gap."""
    xp = array_namespace(Lam)
    same = found.converged == certificate.converged
    take = xp.where(same, certificate.gap < found.gap, certificate.converged)
    pairs = zip(certificate, found, strict=True)
    found = Certificate(*(xp.where(take, a, b) for a, b in pairs))
    return xp.where(take[:, None, None], Lam, best), found


def interior_start(svm):
    """The even Lam, slacks moved up by their mean, or 1, and p s a small part of Lam S."""
    xp = array_namespace(svm.F)
    Lam = even_duals(svm.Y)
    V, _, dD = svm_primal(*svm[:2], Lam, svm.lam1, svm.lam2)
    S = dD - xp.min(dD, axis=2, keepdims=True)
    S = S + xp.maximum(xp.mean(S, axis=(1, 2), keepdims=True), 1)
    V = xp.matmul(transpose(svm.Q), V)
    apart = xp.linalg.vector_norm(V, axis=1) - svm.lam1[:, None]
    p, s = complementary_pair(apart, share_of_norms(svm) * mean_product(Lam, S))
    return Interior(Lam, S, V, p, s)


def share_of_norms(svm):
    """p s aims at this part of Lam S, (T, 1); without lam1 there is no kink to smooth."""
    return array_namespace(svm.F).where(svm.lam1 > 0, 1e-3 * svm.lam2, 0)[:, None]


def mean_product(Lam, S):
    """mu, the mean of Lam S, (T, 1)."""
    return array_namespace(Lam).mean(Lam * S, axis=(1, 2))[:, None]


def complementary_pair(difference, product):
    """p, s >= 0 of a given difference p - s and product p s."""
    xp = array_namespace(difference)
    large = (xp.abs(difference) + xp.sqrt(difference * difference + 4 * product)) / 2
    small = product / safe_divisor(large)
    positive = difference > 0
    return xp.where(positive, large, small), xp.where(positive, small, large)


def gap_estimate(svm, at):
    """<Lam, S> + <p, s>/lam2 over D, (T,), with p for lam2 ||W_j||; at the optimum D = n - P."""
    xp = array_namespace(at.S)
    D = xp.sum(svm.Y * at.Lam, axis=(1, 2)) + xp.sum(at.p * at.p, axis=1) / (2 * svm.lam2)
    gap = xp.sum(at.Lam * at.S, axis=(1, 2)) + xp.sum(at.p * at.s, axis=1) / svm.lam2
    return gap / safe_divisor(D)


def mehrotra_step(svm, at, going, careful):
    """Predictor, corrector, and the longest step that keeps Lam and S positive; `going` (T,) marks
    the tasks that move. p and s fall to a tenth at most; careful: they shorten steps too.
    """
    xp = array_namespace(at.Lam)
    Lam, S, _, p, s = at
    system = newton_system(svm, at)
    d = newton_direction(svm, at, system, -Lam * S, -p * s)         # predictor
    t = xp.minimum(longest_step(Lam, d.Lam), longest_step(S, d.S))[:, None, None]
    mu = mean_product(Lam, S)
    sigma = (mean_product(Lam + t * d.Lam, S + t * d.S) / mu) ** 3  # Mehrotra's
    aim = sigma * mu                                                # (T, 1)
    d = newton_direction(
        svm, at, system, aim[..., None] - Lam * S - d.Lam * d.S,
        share_of_norms(svm) * aim - p * s - d.p * d.s)              # corrector
    t = xp.minimum(longest_step(Lam, d.Lam), longest_step(S, d.S))
    if careful:
        short = xp.minimum(longest_step(p[..., None], d.p[..., None]),
                           longest_step(s[..., None], d.s[..., None]))
        t = xp.minimum(t, short)
    t = xp.where(going, xp.minimum(0.995 * t, 1), 0)[:, None]
    Lam, S = Lam + t[..., None] * d.Lam, S + t[..., None] * d.S
    V = xp.matmul(transpose(label_minus_dual(svm.Y, Lam)), svm.F)   # afresh: sums of steps drift
    V = xp.matmul(transpose(svm.Q), V)
    kinked = svm.lam1[:, None] > 0
    size = xp.linalg.vector_norm(V, axis=1)
    p = xp.where(kinked, xp.maximum(p + t * d.p, p / 10), size)
    s = xp.where(kinked, xp.maximum(s + t * d.s, s / 10), 0)
    return Interior(Lam, S, V, p, s)


def longest_step(x, dx):
    """The largest t for which x + t dx >= 0, (T,); infinite where nothing shrinks."""
    xp = array_namespace(x)
    falls = dx < 0
    return xp.min(xp.where(falls, -x / xp.where(falls, dx, 1), xp.inf), axis=(1, 2))


def pivot_bases(Lam):
    """B (T, n, k, c): for each sample the columns e_l - e_r, r the class of its largest Lam.

    There a large S_l/Lam_l stands alone on the diagonal of a Newton system; in the coordinates of Q
    it would drown the small entries beside it.
    """
    xp, k = array_namespace(Lam), Lam.shape[2]
    rank = xp.argsort(xp.argsort(-Lam, axis=2, stable=True), axis=2)                # r has 0
    eye = identity(k - 1, Lam)
    rows = xp.concat([-xp.ones_like(eye[:1, :]), eye], axis=0)      # (k, c)
    return xp.reshape(xp.take(rows, xp.reshape(rank, (-1,)), axis=0), (*Lam.shape, k - 1))


def newton_system(svm, at):
    """The matrix of a Newton step in d (T, n c), Lam moving by B d, scaled to a diagonal of 1; the
    slopes of a BST smoothed by p and s; and by how much p, s and dD miss their definitions.
    """
    F, Y, lam1, lam2, Q = svm
    xp = array_namespace(F)
    T, n, _ = Y.shape
    c = Q.shape[1]
    unit, size = directions(at.V)
    size = size[:, 0, :]
    total = safe_divisor(at.p + at.s)
    kinked = lam1[:, None] > 0
    flat = xp.where(kinked, at.p / xp.maximum(size, total), 1)      # W_j = flat V_j/lam2
    along = xp.where(kinked, at.p / total, 1)
    B = pivot_bases(at.Lam)
    barrier = xp.matmul(transpose(B) * (at.S / at.Lam)[..., None, :], B)            # (T, n, c, c)
    H = svm_curvature(F, at.V, flat, along, lam2)
    A = on_both_sides(xp.matmul(transpose(B), Q), H)
    A = A + barrier[:, :, :, None, :] * identity(n, F)[:, None, :, None]
    A, D = with_unit_diagonal(xp.reshape(A, (T, n * c, n * c)))
    miss_p = at.p - size + lam1[:, None] - at.s
    W = at.V * (flat / lam2[:, None])[:, None, :]
    miss_dD = xp.matmul(xp.matmul(F, transpose(W)), transpose(Q)) - (Y - at.S)      # (T, n, k)
    return Newton(regularised(A), D, B, along, unit, total, miss_p, miss_dD)


def newton_direction(svm, at, system, dLamS, dps):
    """The step that changes the products Lam S and p s by dLamS and dps, to first order."""
    F, Y, _, lam2, Q = svm
    xp = array_namespace(F)
    T, n, _ = Y.shape
    dp = (dps - at.p * system.miss_p) / system.total                # the part that is not through V
    through_p = xp.matmul(F, transpose(system.unit * (dp / lam2[:, None])[:, None, :]))
    b = xp.matmul(through_p, transpose(Q)) + dLamS / at.Lam + system.miss_dD        # (T, n, k)
    b = xp.reshape(xp.matmul(transpose(system.B), b[..., None]), (T, -1))
    d = solve(system.A, (b / system.D)[..., None])[..., 0] / system.D
    dLam = xp.matmul(system.B, xp.reshape(d, (T, n, -1, 1)))[..., 0]
    dV = -xp.matmul(transpose(xp.matmul(dLam, Q)), F)               # (T, c, m)
    dsize = xp.sum(system.unit * dV, axis=1)
    dp = dp + system.along * dsize
    return Step(dLam, (dLamS - at.S * dLam) / at.Lam, dp, dp - dsize + system.miss_p)


def svm_crossover(svm, Lam, S, steps=3):
    """From a nearly optimal point to an exact Lam: entries with Lam < S are zero, Newton's method
    finds the others."""
    F, Y, lam1, lam2, Q = svm
    xp = array_namespace(F)
    free = (Lam > S) | (Lam >= xp.max(Lam, axis=2, keepdims=True))
    Lam = xp.where(free, Lam, 0)
    for step in range(steps + 1):
        Lam = Lam / xp.sum(Lam, axis=2, keepdims=True)
        if step == steps or bool(xp.all(gap_at(svm, Lam) <= 1e-12)):
            return Lam
        V, _, dD = svm_primal(F, Y, Lam, lam1, lam2)
        H = svm_curvature(F, xp.matmul(transpose(Q), V), *bst_slopes(V, lam1), lam2)
        d, _ = solve_on_face(H, free, Q, -dD)
        t = xp.minimum(longest_step(Lam, d), 1)[:, None, None]
        Lam = xp.maximum(Lam + t * d, 0)


def on_both_sides(M, H):
    """M_i H_ii' M_i'' for symmetric H (T, n, c, n, c) and M (T, n, a, c)  ->  (T, n, a, n, a)."""
    xp = array_namespace(H)
    T, n, a, c = M.shape
    A = xp.reshape(xp.matmul(M, xp.reshape(H, (T, n, c, n * c))), (T, n, a, n, c))
    A = xp.reshape(xp.permute_dims(A, (0, 3, 4, 1, 2)), (T, n, c, n * a))
    return xp.reshape(xp.matmul(M, A), (T, n, a, n, a))


def face_bases(free):
    """M (T, n, k, c), orthonormal, and a mask S (T, n, c): those columns of M_i span the vectors of
    sample i that are 0 where not free and sum to 0 (Helmert's, with the free entries first)."""
    xp, k = array_namespace(free), free.shape[2]
    order = xp.argsort(xp.astype(~free, xp.int8), axis=2, stable=True)
    rank = xp.argsort(order, axis=2)
    i, j = xp.arange(k, device=device(free))[:, None], xp.arange(1, k, device=device(free))
    rows = xp.astype(xp.where(i < j, 1, xp.where(i == j, -j, 0)), xp.float64)       # (k, c)
    rows = rows / xp.sqrt(xp.astype(j * (j + 1), xp.float64))
    M = xp.reshape(xp.take(rows, xp.reshape(rank, (-1,)), axis=0), (*free.shape, k - 1))
    return M, j < xp.sum(xp.astype(free, xp.int64), axis=2)[..., None]


def solve_on_face(H, free, Q, B):
    """The u (T, n, k) of least norm, 0 where not free and of rows that sum to 0, for which H u and
    B agree along all such vectors, and whether there are others, (T,); H (T, n, c, n, c) in the
    coordinates of Q."""
    xp = array_namespace(B)
    T, n, k = B.shape
    M, S = face_bases(free)
    M = xp.astype(M, B.dtype)
    A = xp.reshape(on_both_sides(xp.matmul(transpose(M), Q), H), (T, n * (k - 1), n * (k - 1)))
    b = xp.reshape(xp.matmul(transpose(M), B[..., None]), (T, n * (k - 1)))
    support = gather_support(xp.reshape(S, b.shape))
    A = padded(gather_square(A, support.first), support.on)
    x, many = solve_and_tell(A, on_support(b, support))
    x = xp.reshape(off_support(x, support), (T, n, k - 1, 1))
    return xp.matmul(M, x)[..., 0], many


SVM_METHODS = {"interior-point": (svm_interior_point, 80), "pbcd": (svm_pbcd, 10_000)}


@on_one_blas_thread
def group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW):
    """Pull dW back through the solution of group_svm.              [docs/derivations.md, 5]

    J_j is the Jacobian of BST at V_j, P the projector on the face of the simplices where Lam lies,
    {d : d_il = 0 where Lam_il = 0, sum_l d_il = 0}:
      1. through V   dV = J dW/lam2,  dF = (Y - Lam) dV        dLam = -F dV'
      2. adjoint     P H P u = P dLam,  H = 1/lam2 sum_j F_j F_j' (x) J_j    (of least norm)
      3. pull back   dF += u W + (Y - Lam) J u'F/lam2

    F (T, n, m), Y and Lam (T, n, k), W and dW (T, k, m)  ->  dF (T, n, m), dlam1, dlam2 (T,).
    Valid where neither the set of active features nor the zeros of Lam change.
    """
    Y, lam1, lam2 = check_problem(F, Y, lam1, lam2)
    xp, Q = array_namespace(F), tangent_basis(Y)
    V, _, dD = svm_primal(F, Y, Lam, lam1, lam2)
    flat, along = bst_slopes(V, lam1)
    unit, _ = directions(V)

    def J(X):
        bend = (along - flat)[:, None, :] * xp.sum(unit * X, axis=1, keepdims=True)
        return flat[:, None, :] * X + bend * unit

    dV = J(dW) / lam2[:, None, None]
    H = svm_curvature(F, xp.matmul(transpose(Q), V), flat, along, lam2)
    u, _ = solve_on_face(H, Lam > 0, Q, -scores(F, dV))
    uF = xp.matmul(transpose(u), F)                                 # (T, k, m)
    through_V = dV + J(uF) / lam2[:, None, None]
    dF = xp.matmul(u, W) + xp.matmul(label_minus_dual(Y, Lam), through_V)
    dlam1 = -xp.sum(along[:, None, :] * unit * (dW + uF), axis=(1, 2)) / lam2
    dlam2 = -(xp.sum(dW * W, axis=(1, 2)) + xp.sum(u * (Y - dD), axis=(1, 2))) / lam2
    return dF, dlam1, dlam2


# ------------------------------------------------------------------------------ sparse and shared
# Our reading of [F23]: the full text was not at hand. Heads phi (T, 1, m) of T binary tasks, Y
# (T, n, 1) of 0 and 1, fitted jointly:
#     min_phi  J = (1/T) sum_t CE(F_t phi_t, y_t) + alpha/T sum |phi| + beta H(p)
#     H(p) = - sum_j p_j log p_j,    p_j = sum_t |phi_tj| / s,    s = sum_tj |phi_tj|
# p_j is the importance of feature j; peaked p means shared features. H couples the tasks, is not
# convex, and does not see the size of phi: dH/d|phi_tj| = -(log p_j + H)/s, so that T J's slope is
# that of a Lasso in which feature j has the weight alpha - T beta (log p_j + H)/s. A feature that
# no head uses has an infinite weight and stays off.


def importances(phi):
    """p (m,), the share of each feature in the sum of all |phi| (0 where that is 0)."""
    xp = array_namespace(phi)
    A = xp.sum(xp.abs(phi), axis=(0, 1))
    return A / safe_divisor(xp.sum(A))


def sharing_entropy(phi):
    """H(p), from 0, one feature for all heads, to log m, all features alike.    [F23]"""
    p = importances(phi)
    return -array_namespace(phi).sum(p * log_of_positive(p))


def log_of_positive(p):
    """log p, and 0 where p = 0."""
    return array_namespace(p).log(safe_divisor(p))


def entropy_slopes(phi):
    """dH/d|phi_tj| = -(log p_j + H)/s, (m,): the same for all tasks; infinite where p_j = 0."""
    xp = array_namespace(phi)
    p = importances(phi)
    slopes = -(log_of_positive(p) + sharing_entropy(phi)) / safe_divisor(xp.sum(xp.abs(phi)))
    return xp.where(p > 0, slopes, xp.inf)


def entropy_curvature(phi):
    """d2H/d|phi_tj| d|phi_t'j'| = (1 + log p_j + log p_j' + 2 H - 1_{j=j'}/p_j)/s^2, (m, m)."""
    xp = array_namespace(phi)
    p = importances(phi)
    log_p = log_of_positive(p)
    smooth = 1 + log_p[:, None] + log_p + 2 * sharing_entropy(phi)
    peaks = identity(p.shape[0], phi) / safe_divisor(p)
    return (smooth - peaks) / safe_divisor(xp.sum(xp.abs(phi))) ** 2


def sharing_weights(alpha, beta, phi):
    """alpha - T beta (log p_j + H)/s, (m,), the weight of each feature in the tasks' Lassos."""
    if not beta:
        return alpha + 0 * importances(phi)
    return alpha + phi.shape[0] * beta * entropy_slopes(phi)


def sharing_objective(F, Y, alpha, beta, phi):
    """J, a number."""
    xp = array_namespace(F)
    loss = xp.mean(data_loss(scores(F, phi), Y, "logistic"))
    return float(loss + alpha * xp.sum(xp.abs(phi)) / F.shape[0] + beta * sharing_entropy(phi))


def sharing_violation(F, Y, alpha, beta, phi):
    """T |dJ/dphi| where phi is not 0, and by how much T |dCE/dphi| exceeds the weight elsewhere:
    the largest, a number."""
    xp = array_namespace(F)
    g = data_gradient(F, Y, phi, "logistic")
    weight = sharing_weights(alpha, beta, phi) + 0 * phi
    on = xp.abs(g + xp.where(phi != 0, weight, 0) * xp.sign(phi))
    off = xp.maximum(xp.abs(g) - weight, 0)
    return float(xp.max(xp.where(phi != 0, on, off)))


def sharing_curvature(F, beta, phi):
    """T d2J/dphi2 where phi is not 0, (T m, T m)."""
    xp = array_namespace(F)
    T, _, m = phi.shape
    H = xp.reshape(softmax_curvature(F, phi), (T, m, 1, m))
    H = H * identity(T, F)[:, None, :, None]                        # (T, m, T, m)
    if beta:
        s = xp.sign(phi[:, 0, :])
        bend = s[:, :, None, None] * entropy_curvature(phi)[:, None, :] * s
        H = H + T * beta * bend
    return xp.reshape(H, (T * m, T * m))


@on_one_blas_thread
def sparse_sharing(F, Y, alpha, beta, start=None, stages=5, max_iter=1000):
    """A stationary point of J, from `start` (T, 1, m) (or 0) at beta = 0, then along growing beta.

    F (T, n, m), Y (T, n, 1) of 0 and 1, alpha > 0 and beta >= 0 numbers  ->  phi (T, 1, m) with
    exact zeros, info with n_iter and
        gap        sharing_violation over that of the data term at 0
        converged  gap <= 1e-12 in float64, 1e-5 in float32
        entropy    H along the path, one for each of the stages of beta, from 0 on
    An iteration fits a Lasso per task with the weights of phi (beta = 0: Newton's method for the
    logistic Lasso), or takes a Newton step of J on the entries that are not 0, where that halves
    the gap. Raises ValueError as check_problem does.             [F23, our reading]
    """
    Y = check_sharing(F, Y, alpha, beta)
    xp = array_namespace(F)
    zero = xp.zeros((F.shape[0], 1, F.shape[2]), dtype=F.dtype, device=device(F))
    phi = zero if start is None else start + 0
    unit = sharing_violation(F, Y, 0.0, 0.0, zero) or 1
    path, total = [], 0
    tol = tolerance("sparse_sharing", F)
    betas = [beta * stage / stages for stage in range(stages + 1)] if beta else [0]
    for now in betas:
        for n_iter in range(max_iter + 1):
            gap = sharing_violation(F, Y, alpha, now, phi) / unit
            if gap <= tol or n_iter == max_iter:
                break
            new = sharing_step(F, Y, alpha, now, phi)
            if bool(xp.all(new == phi)):
                break
            phi = new
        total += n_iter
        path.append(float(sharing_entropy(phi)))
    return phi, {"n_iter": total, "gap": gap, "converged": gap <= tol, "entropy": path}


def check_sharing(F, Y, alpha, beta):
    """Refuse other shapes, labels and penalties, which are alpha > 0 and beta >= 0; returns Y."""
    if not (0 < alpha < float("inf") and 0 <= beta < float("inf")):
        raise ValueError(
            f"alpha and beta: found {alpha} and {beta}, expected a positive number and one that "
            "is not negative")
    Y, = check_problem(F, Y)
    if Y.ndim != 3 or Y.shape[2] != 1:
        raise ValueError(f"Y: found {tuple(Y.shape)}, expected one column of 0 and 1 a task")
    check_labels(Y, "logistic")
    return Y


def sharing_step(F, Y, alpha, beta, phi):
    """Newton's step where it halves the gap without raising J, else that of weighted Lassos."""
    if beta:
        new = sharing_newton(F, Y, alpha, beta, phi)
        left = sharing_violation(F, Y, alpha, beta, phi)
        if 2 * sharing_violation(F, Y, alpha, beta, new) <= left:
            height = sharing_objective(F, Y, alpha, beta, phi)
            if sharing_objective(F, Y, alpha, beta, new) <= height + 1e-13 * abs(height):
                return new
    return weighted_lasso_step(F, Y, sharing_weights(alpha, beta, phi), alpha, phi)


def sharing_newton(F, Y, alpha, beta, phi):
    """Newton's step of J on the entries that are not 0; what would change sign becomes 0."""
    xp = array_namespace(F)
    S = phi != 0
    weight = xp.where(S, sharing_weights(alpha, beta, phi), 0)
    g = data_gradient(F, Y, phi, "logistic") + weight * xp.sign(phi)
    new = phi - solve_on_entries(sharing_curvature(F, beta, phi), S, g)
    return xp.where(phi * new > 0, new, 0)


def solve_on_entries(A, S, B):
    """U (T, 1, m) with A U = B on the entries S, U = 0 elsewhere; A (T m, T m)."""
    xp = array_namespace(B)
    flat = [xp.reshape(a, (1, -1)) for a in (S, B)]
    return xp.reshape(solve_on_support(A[None, :, :], *flat), B.shape)


def weighted_lasso_step(F, Y, weight, alpha, phi):
    """A step of Newton's method for min CE + sum_j weight_j |phi_j| in every task: its quadratic
    model is a Lasso, of columns root F_j alpha/weight_j with root = sqrt(P (1 - P)); a weight below
    alpha/10 counts as alpha/10. Each task takes the longest of a few parts of the step that does
    not raise its objective.                                            [Lee et al. 2006]"""
    xp = array_namespace(F)
    weight = xp.maximum(weight, alpha / 10)                         # a slope may be negative
    scale = alpha / weight                                          # (m,), 0: off
    Z = scores(F, phi)                                              # (T, n, 1)
    P = softmax(Z)
    root = xp.sqrt(xp.maximum(P * (1 - P), 1e-10))
    psi, _ = lasso(F * root * scale, (root * Z + (Y - P) / root)[..., 0], alpha)
    d = psi[:, None, :] * scale - phi
    weight = xp.where(scale > 0, weight, 0)

    def objective(phi):
        penalty = xp.sum(weight * xp.abs(phi), axis=(1, 2))
        return data_loss(scores(F, phi), Y, "logistic") + penalty

    best, height = phi, objective(phi) * (1 + 1e-14)
    for t in (0.01, 0.1, 0.25, 0.5, 1.0):
        lower = objective(phi + t * d) <= height
        best = xp.where(lower[:, None, None], phi + t * d, best)
    return best


@on_one_blas_thread
def sparse_sharing_vjp(F, Y, alpha, beta, phi, dphi, one_step=False):
    """Pull dphi back through the solution of sparse_sharing.       [docs/derivations.md, 6]

    On the entries S that are not 0, dJ/dphi = 0:
      1. curvature   A = T d2J/dphi_S2, coupled over tasks by H
      2. adjoint     A u_S = dphi_S,  u = 0 off S
                     (one_step: u = dphi_S/L with a bound L of the data's part of A, inexact)
      3. pull back   dF_t = -(R_t u_t + R'[F_t u_t'] phi_t),   dalpha = -sum sign(phi) u,
                     dbeta = -T sum dH/d|phi| sign(phi) u

    F (T, n, m), phi and dphi (T, 1, m)  ->  dF (T, n, m), dalpha, dbeta. Valid where S does not
    change.
    """
    Y = check_sharing(F, Y, alpha, beta)
    xp = array_namespace(F)
    T, n, _ = F.shape
    S = phi != 0
    if one_step:
        u = xp.where(S, dphi, 0) * (2 * n / xp.max(xp.sum(F * F, axis=(1, 2))))
    else:
        u = solve_on_entries(sharing_curvature(F, beta, phi), S, dphi)
    R, R_prime = loss_gradient(scores(F, phi), Y, "logistic")
    dF = -(xp.matmul(R, u) + xp.matmul(R_prime(scores(F, u)), phi))
    along = xp.sign(phi) * u
    slopes = xp.where(S, entropy_slopes(phi), 0)
    return dF, -xp.sum(along), -T * xp.sum(slopes * along)
