"""sharing_solver.py -- heads of binary tasks fitted jointly, sparse and shared. [F23, our reading]

    T, n, m       tasks, samples a task, features            F (T, n, m)  features
    Y (T, n, 1)   labels, 0 and 1                            phi (T, 1, m)  the heads
    p (m,)        importance of each feature; H its entropy; s = sum |phi|
    alpha, beta   weights of the L1 norm and of the entropy
    u             the adjoint solution, as in solvers.py

The joint fit, its certificate and its adjoint. Derivations: docs/derivations.md, 7.

[F23] Fumero et al., Leveraging sparse and shared feature activations, NeurIPS 2023; the full text
was not at hand.
"""
from array_api_compat import array_namespace, device

from solvers import (
    check_labels,
    check_problem,
    check_shapes,
    data_gradient,
    data_loss,
    identity,
    lasso,
    loss_gradient,
    safe_divisor,
    scores,
    softmax,
    softmax_curvature,
    solve_on_support,
)

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}                     # of the gap, converged

# The problem, for T heads at once:
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


def sparse_sharing(F, Y, alpha, beta, start=None, stages=5, max_iter=1000):
    """A stationary point of J, from `start` (T, 1, m) (or 0) at beta = 0, then along growing beta.

    F (T, n, m), Y (T, n, 1) of 0 and 1, alpha > 0 and beta >= 0 numbers  ->  phi (T, 1, m) with
    exact zeros, info with n_iter and
        gap        sharing_violation over that of the data term at 0
        converged  gap <= 1e-12 in float64, 1e-5 in float32
        entropy    H along the path, one for each of the stages of beta, from 0 on
    An iteration fits a Lasso per task with the weights of phi (beta = 0: Newton's method for the
    logistic Lasso), or takes a Newton step of J on the entries that are not 0, where that halves
    the gap. Raises ValueError as check_sharing does.             [F23, our reading]
    """
    F, Y = check_sharing(F, Y, alpha, beta)
    xp = array_namespace(F)
    zero = xp.zeros((F.shape[0], 1, F.shape[2]), dtype=F.dtype, device=device(F))
    phi = zero if start is None else start + 0
    unit = sharing_violation(F, Y, 0.0, 0.0, zero) or 1
    path, total = [], 0
    tol = TOLERANCE["float64" if F.dtype == xp.float64 else "float32"]
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
    """Refuse other shapes, labels and penalties, which are alpha > 0 and beta >= 0; F, Y."""
    if not (0 < alpha < float("inf") and 0 <= beta < float("inf")):
        raise ValueError(
            f"alpha and beta: found {alpha} and {beta}, expected a positive number and one that "
            "is not negative")
    F, Y = check_problem(F, Y)
    if Y.ndim != 3 or Y.shape[2] != 1:
        raise ValueError(f"Y: found {tuple(Y.shape)}, expected one column of 0 and 1 a task")
    check_labels(Y, "logistic")
    return F, Y


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
    U, _ = solve_on_support(A[None, :, :], *flat)
    return xp.reshape(U, B.shape)


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

    rounding = max(1e-14, 4 * xp.finfo(F.dtype).eps)
    best, height = phi, objective(phi) * (1 + rounding)
    for t in (0.01, 0.1, 0.25, 0.5, 1.0):
        lower = objective(phi + t * d) <= height
        best = xp.where(lower[:, None, None], phi + t * d, best)
    return best


def sparse_sharing_vjp(F, Y, alpha, beta, phi, dphi, one_step=False):
    """Pull dphi back through the solution of sparse_sharing.       [docs/derivations.md, 7]

    On the entries S that are not 0, dJ/dphi = 0:
      1. curvature   A = T d2J/dphi_S2, coupled over tasks by H
      2. adjoint     A u_S = dphi_S,  u = 0 off S
                     (one_step: u = dphi_S/L with a bound L of the data's part of A, inexact)
      3. pull back   dF_t = -(R_t u_t + R_Z[F_t u_t'] phi_t),   dalpha = -sum sign(phi) u,
                     dbeta = -T sum dH/d|phi| sign(phi) u

    F (T, n, m), phi and dphi (T, 1, m)  ->  dF (T, n, m), dalpha, dbeta. Valid where S does not
    change.
    """
    F, Y = check_shapes(F, Y)
    xp = array_namespace(F)
    T, n, _ = F.shape
    S = phi != 0
    # 1 curvature, 2 adjoint
    if one_step:
        L = safe_divisor(xp.max(xp.sum(F * F, axis=(1, 2)))) / (2 * n)
        u = xp.where(S, dphi, 0) / L
    else:
        u = solve_on_entries(sharing_curvature(F, beta, phi), S, dphi)
    # 3 pull back
    R, R_Z = loss_gradient(scores(F, phi), Y, "logistic")
    dF = -(R @ u + R_Z(scores(F, u)) @ phi)
    along = xp.sign(phi) * u
    slopes = xp.where(S, entropy_slopes(phi), 0)
    return dF, -xp.sum(along), -T * xp.sum(slopes * along)
