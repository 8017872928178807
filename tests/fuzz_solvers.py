"""Certificates against an independent solver: `python tests/fuzz_solvers.py [count] [seed]`.

Random problems of odd scales, with constant, equal and zero columns, penalties 0 and at their
maximum. A certificate is either right or False: where `converged` is True, the objective is that
of cvxpy with Clarabel (or lower); where `strict` is True too, the vjp is what differences of exact
solutions give. test_solvers.py runs fifty of them.
"""

import sys
import warnings

import cvxpy
import numpy as np

import solvers


def odd_features(rng, n, m):
    """(1, n, m) of columns of different scale, some constant, equal, or 0."""
    F = rng.standard_normal((n, m)) * 10 ** rng.uniform(-2, 2) * 10 ** rng.uniform(-1, 1, m)
    for j in range(1, m):
        kind = rng.random()
        if kind < 0.1:
            F[:, j] = F[:, j - 1]
        elif kind < 0.2:
            F[:, j] = rng.choice([1.0, 0.0])
    return F[None]


def strength(rng, top):
    """A penalty: 0, its maximum, beyond it, or a part of it."""
    kind = rng.random()
    for below, share in ((0.15, 0.0), (0.2, 1.0), (0.25, 1.3)):
        if kind < below:
            return share * top
    return 10 ** rng.uniform(-3, 0) * top


def solve_by_cvxpy(objective, *variables):
    """The least value of an objective and the variables there, to nine digits."""
    problem = cvxpy.Problem(cvxpy.Minimize(objective))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)                     # of missed tolerances
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-11, tol_feas=1e-11)
    return float(problem.value), *(v.value for v in variables)


def fuzz_lasso(rng):
    n, m = int(rng.integers(2, 30)), int(rng.integers(1, 12))
    F = odd_features(rng, n, m)
    y = rng.standard_normal((1, n)) * 10 ** rng.uniform(-2, 2)
    lam = strength(rng, solvers.lasso_lambda_max(F, y)[0])
    w, info = solvers.lasso(F, y, lam)
    x = cvxpy.Variable(m)
    value, _ = solve_by_cvxpy(
        cvxpy.sum_squares(y[0] - F[0] @ x) / (2 * n) + lam * cvxpy.norm1(x), x)
    ours = np.sum((y[0] - F[0] @ w[0]) ** 2) / (2 * n) + lam * np.abs(w[0]).sum()
    return ours, value, np.sum(y**2) / (2 * n), info["converged"][0]


def fuzz_ridge(rng):
    n, m = int(rng.integers(2, 30)), int(rng.integers(1, 12))
    F = odd_features(rng, n, m)
    y = rng.standard_normal((1, n))
    lam = 10 ** rng.uniform(-6, 2)
    w = solvers.ridge(F, y, lam)
    augmented = np.vstack([F[0], np.sqrt(n * lam) * np.eye(m)])
    exact = np.linalg.lstsq(augmented, np.append(y[0], np.zeros(m)), rcond=None)[0]

    def J(w):
        return np.sum((y[0] - F[0] @ w) ** 2) / (2 * n) + lam / 2 * np.sum(w**2)
    solved = solvers.ridge_residual(F, y, lam, w)[0] <= 1e-9
    return J(w[0]), J(exact), np.sum(y**2) / (2 * n), solved


def fuzz_group_lasso(rng):
    n, m, k = int(rng.integers(3, 25)), int(rng.integers(1, 8)), int(rng.integers(2, 4))
    F = odd_features(rng, n, m)
    loss = rng.choice(["squared", "logistic"])
    Y = np.eye(k)[rng.integers(k, size=n)][None]
    lam = strength(rng, solvers.group_lasso_lambda_max(F, Y, loss)[0])
    if loss == "logistic" and lam == 0:
        lam = 1e-3 * solvers.group_lasso_lambda_max(F, Y, loss)[0]  # separable: no minimum at 0
    W, info = solvers.group_lasso(F, Y, lam, loss, max_iter=300)
    X = cvxpy.Variable((k, m))
    Z = F[0] @ X.T
    data = cvxpy.sum_squares(Z - Y[0]) / 2
    if loss == "logistic":
        data = cvxpy.sum(cvxpy.log_sum_exp(Z, axis=1) - cvxpy.sum(cvxpy.multiply(Y[0], Z), axis=1))
    value, _ = solve_by_cvxpy(data / n + lam * cvxpy.sum(cvxpy.norm(X, axis=0)), X)
    ours = solvers.group_objective(F, Y, np.array([lam]), W, loss)[0]
    unit = solvers.group_objective(F, Y, np.array([lam]), 0 * W, loss)[0]
    return ours, value, unit, info["converged"][0]


def svm_problem(rng):
    """F, Y, lam1, lam2 of odd scale."""
    n, m, k = int(rng.integers(3, 25)), int(rng.integers(1, 20)), int(rng.integers(2, 5))
    F = odd_features(rng, n, m)
    Y = np.eye(k)[rng.integers(k, size=n)][None]
    lam1 = strength(rng, solvers.svm_lambda_max(F, Y)[0])
    lam2 = 10 ** rng.uniform(-2, 2) * (F**2).sum() / n**2
    return F, Y, lam1, lam2 or 1.0


def svm_objective(F, Y, lam1, lam2, W):
    """P of Problem (81), of one task."""
    Z = F[0] @ W[0].T
    right = (Z * Y[0]).sum(axis=1, keepdims=True)
    hinge = (1 - Y[0] + Z - right).max(axis=1).sum()
    return hinge + lam1 * np.linalg.norm(W[0], axis=0).sum() + lam2 / 2 * np.sum(W**2)


def fuzz_svm(rng):
    F, Y, lam1, lam2 = svm_problem(rng)
    (_, n, m), k = F.shape, Y.shape[2]
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    X = cvxpy.Variable((k, m))
    Z = F[0] @ X.T
    right = cvxpy.sum(cvxpy.multiply(Y[0], Z), axis=1, keepdims=True)
    hinge = cvxpy.sum(cvxpy.max(1 - Y[0] + Z - right @ np.ones((1, k)), axis=1))
    penalty = lam1 * cvxpy.sum(cvxpy.norm(X, axis=0)) + lam2 / 2 * cvxpy.sum_squares(X)
    value, _ = solve_by_cvxpy(hinge + penalty, X)
    ours = svm_objective(F, Y, lam1, lam2, W)
    unit = n - ours if n - ours > 1e-6 * n else n       # Clarabel has nine digits of n
    return ours, value, max(unit, 1e-2 * n), info["converged"][0]


def svm_slope_error(rng, h=1e-6):
    """The relative error of a directional derivative of the SVM, and whether it is `strict`."""
    F, Y, lam1, lam2 = svm_problem(rng)
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    dF = rng.standard_normal(F.shape) * np.abs(F).max(axis=1, keepdims=True)
    dW = rng.standard_normal(W.shape)
    fits = [solvers.group_svm(F + t * dF, Y, lam1, lam2) for t in (-h, h)]
    slope = np.sum(dW * (fits[1][0] - fits[0][0])) / (2 * h)
    told = np.sum(solvers.group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW)[0] * dF)
    same = all(
        np.array_equal(L > 0, Lam > 0) and np.array_equal(V.any(1), W.any(1)) for V, L, _ in fits)
    sure = all(i["converged"][0] and i["strict"][0] for i in (info, fits[0][2], fits[1][2]))
    size = np.linalg.norm(dW) * np.linalg.norm(W)
    return abs(told - slope) / max(abs(slope), 1e-3 * size, 1e-300), sure and same


FUZZ = (fuzz_lasso, fuzz_ridge, fuzz_group_lasso, fuzz_svm)


def check(fuzz, seed, tol=1e-7):
    """None, or what is wrong with a problem's certificate."""
    ours, exact, unit, converged = fuzz(np.random.default_rng([FUZZ.index(fuzz), seed]))
    excess = (ours - exact) / unit
    if converged and not excess <= tol:
        return f"{fuzz.__name__} seed {seed}: converged, {excess:.1e} above the minimum"
    return None if converged else f"not converged: {fuzz.__name__} seed {seed}"


def main(count, seed):
    """Try `count` problems of each kind; returns the number of wrong certificates."""
    wrong = 0
    for fuzz in FUZZ:
        told = [check(fuzz, s) for s in range(seed, seed + count)]
        open_ = sum(t is not None and t.startswith("not") for t in told)
        bad = [t for t in told if t is not None and not t.startswith("not")]
        wrong += len(bad)
        text = f"{fuzz.__name__}: {count} problems, {open_} said not to be converged"
        print(text, *bad, sep="\n  ")
    rng = np.random.default_rng(seed)
    told = [svm_slope_error(rng) for _ in range(count)]
    errors = [error for error, sure in told if sure]
    bad = sum(error > 1e-4 for error in errors)
    print(f"svm slopes: {len(errors)} of {count} strict; worst error {max(errors):.1e}, {bad} bad")
    return wrong + bad


if __name__ == "__main__":
    count, seed = (int(a) for a in (*sys.argv[1:], *("125", "0")[len(sys.argv) - 1 :]))
    sys.exit(1 if main(count, seed) else 0)
