"""metrics.py -- how a representation is scored against the factors it should have found, and a gradient against differences.

    z      (N, d)  ground-truth factors          z_hat  (N, m)  learned features
    C      (d, m)  |Pearson correlation| of factors and features
    B      (d, m)  |coefficients| of the regression of standardised factors on standardised features

Everything here runs on the CPU: arrays of other libraries are brought to NumPy at the edge.
At m = 6 the MCC of a random Gaussian mixing is 0.63 +- 0.04 and of a random rotation 0.69 +- 0.05.

[L23] Lachapelle et al., ICML 2023.   [EW18] Eastwood and Williams, ICLR 2018.
"""
import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA
from sklearn.linear_model import LinearRegression


def to_numpy(a):
    """A NumPy array from any library's array, on whatever device it lies."""
    return np.asarray(a.get() if hasattr(a, "get") else a.cpu() if hasattr(a, "cpu") else a)


def standardise(a):
    """Columns (N, d) of mean 0 and variance 1; a constant column becomes 0."""
    a = to_numpy(a).astype(np.float64)
    a = a - a.mean(axis=0)
    size = np.abs(a).max(axis=0)
    a = a / np.where(size > 0, size, 1)                                     # no overflow in the variance
    deviation = a.std(axis=0)
    return np.where(deviation > 1e-12, a / np.where(deviation > 1e-12, deviation, 1), 0)


def correlation(z, z_hat):
    """|Pearson correlation| of each factor with each feature, C (d, m); 0 for a constant column."""
    return np.abs(standardise(z).T @ standardise(z_hat)) / len(z)


def match(C):
    """The one-to-one matching of factors and features of largest total |correlation|: (rows, columns)."""
    return linear_sum_assignment(-C)


def mcc(z, z_hat):
    """Mean correlation coefficient: mean |Pearson correlation| of the best one-to-one matching.   [L23, App. D.2.7]

    1 where the features are the factors up to permutation and scale; a factor left without a feature counts 0.
    """
    C = correlation(z, z_hat)
    return float(C[match(C)].sum() / len(C))


def r_score(z, z_hat):
    """Mean coefficient of multiple correlation R of each factor given all features.               [L23, App. D.2.7]

    1 where the factors are a linear function of the features; never below MCC.
    """
    z, z_hat = standardise(z), standardise(z_hat)
    residual = z - LinearRegression(fit_intercept=False).fit(z_hat, z).predict(z_hat)
    varies = z.var(axis=0)                                                  # 1, or 0 for a constant factor
    return float(np.sqrt(np.maximum(varies - residual.var(axis=0), 0)).mean())


def dci(z, z_hat, weighted=False):
    """Disentanglement and completeness from linear regression coefficients.             [L23, App. D.2.7; EW18, Sec. 2]

    D: how far each feature serves one factor; 1 - entropy of its column of B over factors, in base d.
    C: how far each factor needs one feature; 1 - entropy of its row of B over features, in base m.
    A zero row or column scores 0. Means are unweighted, as in the paper, or weighted by the share of B (EW18).
    """
    B = np.abs(LinearRegression(fit_intercept=False).fit(standardise(z_hat), standardise(z)).coef_)     # (d, m)
    return concentration(B.T, weighted), concentration(B, weighted)


def concentration(B, weighted=False):
    """Mean over the rows of B >= 0 of 1 - entropy of the normalised row, in base the row's length."""
    total = B.sum(axis=1)
    total = np.where(total > 1e-10 * total.max(), total, 0)                 # rounding is no coefficient
    P = B / np.where(total > 0, total, 1)[:, None]
    entropy = -np.sum(P * np.log(np.where(P > 0, P, 1)), axis=1) / np.log(max(B.shape[1], 2))
    score = np.where(total > 0, 1 - entropy, 0)
    weight = total if weighted and total.sum() > 0 else np.ones(len(B))
    return float(score @ weight / weight.sum())


def scores(z, z_hat):
    """All of the above under the names of result.json."""
    d, c = dci(z, z_hat)
    return {"mcc": mcc(z, z_hat), "r": r_score(z, z_hat), "dci_d": d, "dci_c": c}


def ica(z_hat, fit_on=None):
    """Linear ICA of features z_hat (N, m): FastICA fitted on the features fit_on, of the training distribution.

    Where ICA does not apply (constant or dependent features) it finds fewer components; the rest score nothing.
    """
    fit_on = z_hat if fit_on is None else fit_on
    mean, scale = to_numpy(fit_on).mean(axis=0), np.maximum(to_numpy(fit_on).std(axis=0), 1e-12)
    X, Y = (to_numpy(fit_on) - mean) / scale, (to_numpy(z_hat) - mean) / scale
    rank = np.linalg.matrix_rank(X, tol=1e-4 * len(X) ** 0.5)
    if rank == 0:
        return np.zeros(Y.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                     # of an iteration that stops at its limit
        found = FastICA(rank, whiten="unit-variance", random_state=0, max_iter=500).fit(X).transform(Y)
    return np.pad(found, ((0, 0), (0, Y.shape[1] - rank)))


def check_gradient(f, arrays, h=1e-5, entries=20, seed=0):
    """Error of a gradient against central differences, and the rate of its Taylor remainder.

    f(arrays) -> loss, gradients, pattern, for a dict of float64 arrays: gradients() has the keys of arrays; pattern
    is the discrete part of the computation (supports, masks), which must stay the same under the differences.
    The error is the worst over arrays of |g - g_fd| / max(|g|, |g_fd|, 1e-6 |all g|), on at most `entries` random
    entries of each. The rate, log2 of how the remainder of the linear model falls as the step halves, should be 2.
    Where a step changes the pattern, a tenth of it is taken, at most three times; same tells whether that sufficed.
    """
    rng = np.random.default_rng(seed)
    loss, gradients, pattern = f(arrays)
    grads, missed = gradients(), []

    def values(direction, steps):
        """[f(arrays + t direction) for t in steps], and the shrinking that kept the pattern."""
        for shrink in (1, 0.1, 0.01, 0.001):
            results = [f({**arrays, **{k: arrays[k] + shrink * t * e for k, e in direction.items()}}) for t in steps]
            if all(np.array_equal(a, b) for result in results for a, b in zip(pattern, result[2])):
                return [float(result[0]) for result in results], shrink
        missed.append(True)
        return [float(result[0]) for result in results], shrink

    picked = {}
    for name, a in arrays.items():
        g, g_fd = [], []
        for i in rng.permutation(a.size)[:entries]:
            e = np.reshape(np.arange(a.size) == i, a.shape)
            (up, down), shrink = values({name: e}, (h, -h))
            g.append(grads[name].reshape(-1)[i])
            g_fd.append((up - down) / (2 * h * shrink))
        picked[name] = np.array(g), np.array(g_fd)
    norm = np.linalg.norm
    floor = max(1e-6 * norm([norm(g) for g, _ in picked.values()]), 1e-300)
    errors = {name: float(norm(g - g_fd) / max(norm(g), norm(g_fd), floor)) for name, (g, g_fd) in picked.items()}

    v = {name: rng.standard_normal(a.shape) for name, a in arrays.items()}
    t = 1e-2 / norm([norm(x) for x in v.values()])
    (full, half), shrink = values(v, (t, t / 2))
    slope = shrink * t * sum(float((grads[k] * v[k]).sum()) for k in arrays)
    remainder = abs(full - float(loss) - slope), abs(half - float(loss) - slope / 2)
    rate = np.log2(remainder[0] / remainder[1]) if remainder[1] > 0 else np.inf
    norms = {name: (float(norm(g)), float(norm(g_fd))) for name, (g, g_fd) in picked.items()}
    return {"errors": errors, "error": max(errors.values()), "norms": norms, "rate": float(rate), "same": not missed}
