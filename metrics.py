"""metrics.py -- how a representation is scored against the factors it should have found, and a gradient against differences.

    z      (N, d)  ground-truth factors          z_hat  (N, m)  learned features
    C      (d, m)  |Pearson correlation| of factors and features
    B      (d, m)  |coefficients| of the regression of standardised factors on standardised features

Everything here runs on the CPU: arrays of other libraries are brought to NumPy at the edge.
At m = 6 the MCC of a random Gaussian mixing is 0.63 +- 0.04 and of a random rotation 0.69 +- 0.05.

[L23] Lachapelle et al., ICML 2023.   [EW18] Eastwood and Williams, ICLR 2018.
"""
import itertools
import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.decomposition import FastICA
from sklearn.linear_model import LinearRegression, LogisticRegression


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


def block_share(z, z_hat, size):
    """The share of |L| inside blocks, L the regression of standardised features on standardised factors.

    Factors come in blocks of `size` consecutive ones; a feature belongs to its matched factor's block. 1 where
    features mix no factors of different blocks: the partial disentanglement conjectured after [L23, Assumption 3.6].
    Mass spread evenly gives size/d.
    """
    L = np.abs(LinearRegression(fit_intercept=False).fit(standardise(z), standardise(z_hat)).coef_)     # (m, d)
    factor, feature = match(correlation(z, z_hat))
    same = factor[:, None] // size == np.arange(L.shape[1])[None, :] // size
    return float((L[feature] * same).sum() / max(L[feature].sum(), 1e-300))


def udr(models):
    """Unsupervised disentanglement ranking of models' features [(N, m), ...] on the same images: one score for each.

    Two models agree where each feature of one has one counterpart in the other: with R the |Spearman correlations|,
    the mean over rows and columns of max^2/sum. A model's score is the median over the others.   [Duan et al. 2020, Eq. 2]
    """
    ranks = [np.apply_along_axis(rankdata, 0, standardise(a)) for a in models]
    pairs = np.full((len(models), len(models)), np.nan)
    for i, j in np.ndindex(pairs.shape):
        if i != j:
            R = correlation(ranks[i], ranks[j])
            agreement = [np.where(S.sum(axis=1) > 0, S.max(axis=1) ** 2 / np.maximum(S.sum(axis=1), 1e-300), 0) for S in (R, R.T)]
            pairs[i, j] = np.concatenate(agreement).mean()
    return np.nanmedian(pairs, axis=1)


def supports_are_sufficient(S):
    """Assumption 3.6 on supports S (T, m), a mask: for any two features, some task uses the one without the other.  [L23]"""
    S = to_numpy(S) != 0
    alone = S.T.astype(int) @ ~S                                            # (m, m): tasks that use i and not j
    return bool((alone + np.eye(S.shape[1], dtype=int) > 0).all())


def assumptions(F, W, likelihood="gaussian"):
    """What samples tell of [L23, Assumptions 3.2 to 3.6]: features F (N, m), coefficients W (T, m) -> name -> (holds, why).

    3.5 is judged by the rank of coefficients that share a support: evidence, not proof.
    """
    F, W = to_numpy(F), to_numpy(W)
    m, S, rng = W.shape[1], W != 0, np.random.default_rng(0)
    deficient = []
    for support in np.unique(S, axis=0):
        w = W[(S == support).all(axis=1)][:, support]                       # coefficients on that support
        k = w.shape[1]
        draws = [np.linalg.matrix_rank(w[rng.choice(len(w), k, replace=False)]) < k for _ in range(20)] if len(w) >= k else []
        if any(draws):
            deficient.append(np.flatnonzero(support).tolist())
    return {"3.2": (True, f"the mean of a {likelihood} label determines its distribution"),
            "3.3": (np.linalg.matrix_rank(F) == F.shape[1], f"features of rank {np.linalg.matrix_rank(F)} of {F.shape[1]}"),
            "3.4": (np.linalg.matrix_rank(W) == m, f"coefficients of rank {np.linalg.matrix_rank(W)} of {m}"),
            "3.5": (not deficient, f"dependent coefficients on support {deficient[0]}" if deficient else "full rank on every support seen"),
            "3.6": (supports_are_sufficient(S), "any two factors are told apart by some support" if supports_are_sufficient(S)
                    else "some factor never comes without another")}


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


# ----------------------------------------------------------------------------------- the theory, on numbers
# theory() yields (claim, what was computed, holds). Factors F (N, m) = f(x), other features F_hat = F L' (f_hat = L f),
# so that predictors transform as W_hat = W L^-1 (the convention of [L23, Sec. 2]; its App. B has f = L f_hat).


def theory(m=6, N=400, T=300, seed=0):
    """Every formal claim of [L23], Sections 2, 3 and B, tried on numbers. Where a statement's exact form was not at hand the
    claim says what was tested."""
    rng = np.random.default_rng(seed)
    F, L = rng.standard_normal((N, m)), rng.standard_normal((m, m))
    scaling = np.eye(m)[rng.permutation(m)] * rng.uniform(0.5, 2, m)[:, None] * rng.choice([-1, 1], (m, 1))
    W = rng.standard_normal((T, m)) * nonempty_supports(rng, T, m)
    yield from predictions_do_not_see_L(rng, F, L)
    yield from population_predictor(rng, W, L)
    yield from sparse_estimators(rng, F[:60], W[:40], L, scaling)
    yield from permutation_in_every_invertible_matrix(rng, m)
    yield from linear_identifiability(rng, F, W)
    yield from sparsity_prefers_scalings(rng, m, scaling)
    yield from support_variability_bound(rng)
    yield from ridge_under_batch_norm(rng, m)


def nonempty_supports(rng, T, m, p=0.5):
    """Supports (T, m) of independent entries, an empty one given one entry."""
    S = rng.random((T, m)) < p
    S[np.arange(T), rng.integers(m, size=T)] |= ~S.any(axis=1)
    return S


def predictions_do_not_see_L(rng, F, L):
    """Proposition 2.2.  [L23]"""
    w = rng.standard_normal(F.shape[1])
    y = F @ w + 0.5 * rng.standard_normal(len(F))
    labels = rng.random(len(F)) < 1 / (1 + np.exp(-F @ w))
    fits = {"squared": lambda X: X @ np.linalg.lstsq(X, y)[0],
            "logistic": lambda X: LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
            .fit(X, labels).decision_function(X)}
    for loss, predict in fits.items():
        change = np.abs(predict(F @ L.T) - predict(F)).max()
        yield f"Prop. 2.2, {loss} loss: an invertible L leaves the MLE's predictions as they are", f"largest change {change:.1e}", change < 1e-6


def population_predictor(rng, W, L):
    """Proposition 2.4.  [L23]"""
    A = rng.standard_normal(L.shape)
    Sigma = A @ A.T                                                         # any covariance of the factors
    W_hat = np.linalg.solve(L @ Sigma @ L.T, L @ Sigma @ W.T).T             # the population least-squares predictor on L f
    error = np.abs(W_hat - W @ np.linalg.inv(L)).max()
    before, after = (W != 0).sum(axis=1).mean(), (np.abs(W_hat) > 1e-9).sum(axis=1).mean()
    yield "Prop. 2.4: on features L f the population predictor is W L^-1, whatever the covariance", f"error {error:.1e}", error < 1e-8
    yield "          ... and a sparse W becomes dense", f"{before:.2f} coefficients a task become {after:.2f}", after == L.shape[0] > before


def best_subset(F, y, size):
    """The l0-constrained least-squares estimator: least mean squared error over all supports of `size` features."""
    return min(np.mean((y - F[:, S] @ np.linalg.lstsq(F[:, S], y)[0]) ** 2) for S in map(list, itertools.combinations(range(F.shape[1]), size)))


def sparse_estimators(rng, F, W, L, scaling):
    """Equations (2) and (4), by enumeration of supports.  [L23]"""
    sizes = (W != 0).sum(axis=1)
    rotation = np.linalg.qr(L)[0]
    mixings = {"the factors": np.eye(len(L)), "a permutation-scaling": scaling, "a rotation": rotation, "a random L": L}
    loss, need = {}, {}
    for name, M in mixings.items():
        X = F @ M.T
        loss[name] = np.mean([best_subset(X, F @ w, size) for w, size in zip(W, sizes)])
        need[name] = np.mean([next(k for k in range(1, len(L) + 1) if best_subset(X, F @ w, k) < 1e-18) for w in W])
    told = ", ".join(f"{name} {value:.3g}" for name, value in loss.items())
    yield ("Eq. (2): with ||w||_0 as in the truth, only permutation-scalings fit exactly", "mean squared error: " + told,
           loss["a permutation-scaling"] < 1e-18 and min(loss["a rotation"], loss["a random L"]) > 1e-4)
    told = ", ".join(f"{name} {value:.2f}" for name, value in need.items())
    yield ("Eq. (4): the fewest features that fit exactly are attained by permutation-scalings", "mean ||w||_0: " + told,
           need["a permutation-scaling"] == need["the factors"] < min(need["a rotation"], need["a random L"]))


def permutation_in_every_invertible_matrix(rng, m, trials=500):
    """Lemma B.1.  [L23]"""
    found = tried = 0
    while tried < trials:
        L = rng.standard_normal((m, m)) * (rng.random((m, m)) < 0.4)
        if np.linalg.matrix_rank(L) == m:
            tried += 1
            found += bool((L[match(1.0 * (L != 0))] != 0).all())
    yield "Lemma B.1: an invertible L has a permutation s with L_i,s(i) != 0 for all i", f"{found} of {tried} sparse matrices", found == tried


def linear_identifiability(rng, F, W):
    """Theorem B.4 and its counterexample.  [L23]"""
    U, s, Vt = np.linalg.svd(F @ W.T, full_matrices=False)                  # any other exact fit of the same predictions
    m = F.shape[1]
    mix = rng.standard_normal((m, m))
    F_hat = U[:, :m] * s[:m] @ mix
    left = np.abs(F_hat - F @ np.linalg.lstsq(F, F_hat)[0]).max() / np.abs(F_hat).max()
    yield "Thm. B.4: exact fits with coefficients that span R^m make f_hat linear in f", f"not explained linearly: {left:.1e}", left < 1e-10
    thin = W @ (np.eye(m) - np.ones((m, m)) / m)                            # coefficients that miss one direction, (1, ..., 1)
    other = F + np.sin(3 * F[:, :1])                                        # moves along it, and not linearly
    same = np.abs(other @ thin.T - F @ thin.T).max()
    left = np.abs(other - F @ np.linalg.lstsq(F, other)[0]).max()
    yield ("          counterexample: coefficients that miss a direction fit exactly with a nonlinear f_hat",
           f"predictions differ by {same:.1e}, not explained linearly: {left:.2f}", same < 1e-12 and left > 0.1)


def sparsity_prefers_scalings(rng, m, scaling, T=2000, k=3):
    """Theorem B.5.  [L23]"""
    W = rng.standard_normal((T, k, m)) * nonempty_supports(rng, T, m)[:, None, :]
    used = lambda L: (np.abs(W @ L) > 1e-9).any(axis=1).sum(axis=1).mean()  # E ||W L||_2,0, in the convention f = L f_hat
    true, scaled = used(np.eye(m)), used(scaling)
    sparse = []
    while len(sparse) < 200:
        L = np.eye(m)[rng.permutation(m)] + (rng.random((m, m)) < 0.1) * rng.standard_normal((m, m))
        if np.linalg.matrix_rank(L) == m and (L != 0).sum() > m:
            sparse.append(used(L))
    yield ("Thm. B.5: E||W L||_2,0 >= E||W||_2,0, with equality only for permutation-scalings",
           f"W {true:.3f}, permutation-scaling {scaled:.3f}, least of 200 others {min(sparse):.3f}", scaled == true < min(sparse))


def variability_bound(m, p, T):
    """Prop. B.7: supports of T tasks, each feature with probability p, violate Assumption 3.6 with at most this probability."""
    return np.minimum(1, m * (m - 1) * (1 - p * (1 - p)) ** np.asarray(T, dtype=float))


def variability_violated(rng, m, p, T, trials=400):
    """The same probability, by drawing."""
    return np.mean([not supports_are_sufficient(rng.random((T, m)) < p) for _ in range(trials)])


def support_variability_bound(rng):
    """Proposition B.7.  [L23]"""
    worst, told = 0.0, []
    for m, p, T in ((6, 0.5, 10), (6, 0.5, 20), (6, 0.2, 40), (20, 0.5, 25), (20, 0.2, 60)):
        bound, drawn = float(variability_bound(m, p, T)), variability_violated(rng, m, p, T)
        worst = max(worst, drawn - bound)
        told.append(f"{drawn:.3f} <= {bound:.3f}")
    yield "Prop. B.7: P(Assumption 3.6 fails) <= m(m-1)(1-p(1-p))^T", "drawn and bound: " + ", ".join(told), worst < 0.03


def ridge_under_batch_norm(rng, m, sets=2000, n=50, K=4, eps=0.3):
    """Ours: why a strong inner-Ridge finds independent factors that are not Gaussian."""
    w = (rng.standard_normal((sets, K, m)) * nonempty_supports(rng, sets * K, m).reshape(sets, K, m)).swapaxes(1, 2)
    noise, told = 0.1 * rng.standard_normal((sets, n, K)), {}

    def loss(features, y):                                                  # of ridge on features normalised over each set
        F = (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1, keepdims=True)
        W = np.linalg.solve(F.swapaxes(1, 2) @ F / n + eps * m * np.eye(m), F.swapaxes(1, 2) @ y / n)
        return np.mean((y - F @ W) ** 2)
    for name, z in (("uniform", rng.uniform(-3 ** 0.5, 3 ** 0.5, (sets, n, m))), ("Gaussian", rng.standard_normal((sets, n, m))),
                    ("Laplace", rng.laplace(scale=0.5 ** 0.5, size=(sets, n, m)))):
        y = z @ w + noise
        rotated = np.mean([loss(z @ np.linalg.qr(rng.standard_normal((m, m)))[0], y) for _ in range(4)])
        told[name] = 100 * (rotated / loss(z, y) - 1)
    yield ("Ours: batch norm and a strong ridge prefer uniform factors to their rotations, Laplace's rotations to them",
           "loss of a rotation, in %: " + ", ".join(f"{name} {value:+.2f}" for name, value in told.items()),
           told["uniform"] > 0.25 > abs(told["Gaussian"]) and told["Laplace"] < -0.25)
