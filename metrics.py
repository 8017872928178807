"""metrics.py -- how a representation is scored and drawn against the factors it should have found, a gradient against differences.

    z      (N, d)  ground-truth factors          z_hat  (N, m)  learned features
    C      (d, m)  |Pearson correlation| of factors and features
    B      (d, m)  |coefficients| of the regression of standardised factors on standardised features

Everything here runs on the CPU: arrays of other libraries are brought to NumPy at the edge.
At m = 6 the MCC of a random Gaussian mixing is 0.63 +- 0.04 and of a random rotation 0.69 +- 0.05.

[L23] Lachapelle et al., ICML 2023.   [EW18] Eastwood and Williams, ICLR 2018.
"""
import itertools
import json
import os
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.decomposition import FastICA
from sklearn.linear_model import LassoCV, LinearRegression, LogisticRegression, RidgeCV, lasso_path


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


def mean_ci(a):
    """The mean of a (T,), over episodes, and the half width of its 95 % interval."""
    a = to_numpy(a)
    return float(a.mean()), float(1.96 * a.std(ddof=1) / len(a) ** 0.5)


def signatures(result, m):
    """What has gone wrong, as far as the scores tell, one line each."""
    return [text for bad, text in (
        (result["features_per_head"] > 0.8 * m, f"importances all alike: a head weighs {result['features_per_head']:.1f} of {m} features alike"),
        (result["unused"] > 0.5, f"most features unused: {100 * result['unused']:.0f} % by no head"),
        (result["accuracy_seen"] < 0.65, f"poor on the tasks trained on: {100 * result['accuracy_seen']:.1f} %"),
        (result["accuracy"] < 0.65, f"poor on unseen tasks: {100 * result['accuracy']:.1f} %")) if bad]


def ica(z_hat, fit_on=None):
    """Linear ICA of features z_hat (N, m): FastICA [Hyvarinen 1999] fitted on the features fit_on, of the training distribution.

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


def describe_latents(z, p):
    """How much of the data the weights p leave: the number of effective images 1/sum p^2 and the mean correlation."""
    Z = z - p @ z
    C = Z.T @ (Z * p[:, None])
    s = np.sqrt(np.maximum(np.diag(C), 1e-300))
    R = C / np.outer(s, s)
    return {"effective_images": float(1 / np.sum(p * p)), "realised_correlation": float(R[~np.eye(len(R), dtype=bool)].mean())}


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


def choose_eps(rows, features):
    """Prints the eps whose runs, a seed each, agree most by UDR, and how far that is, in MCC, from the best; features(row) -> z_hat."""
    told = {}
    for eps in sorted({row["eps"] for row in rows}):
        same = [row for row in rows if row["eps"] == eps]
        if len(same) > 1:
            told[eps] = float(np.median(udr([features(row) for row in same]))), float(np.mean([row["mcc"] for row in same]))
    if not told:
        raise ValueError("at least two finished seeds per eps are needed: run.py sweep main")
    for eps, (agreement, score) in told.items():
        print(f"eps {eps:<6} UDR {agreement:.3f}   MCC {score:.4f}")
    chosen, best = (max(told, key=lambda eps: told[eps][k]) for k in (0, 1))
    print(f"UDR chooses eps {chosen}: MCC {told[chosen][1]:.4f}, {told[best][1] - told[chosen][1]:.4f} below the best, eps {best}")


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


def describe_assumptions(z, w, likelihood):
    """In one line, whether factors z (N, m) and the coefficients w (T, m) of drawn tasks meet Assumptions 3.2 to 3.6."""
    told = assumptions(z[np.random.default_rng(0).integers(len(z), size=1000)], w, likelihood)
    return ", ".join(name for name, (holds, _) in told.items() if holds) + " hold" + "".join(
        f"; {name} does not: {why}" for name, (holds, why) in told.items() if not holds)


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


def print_theory(out):
    """Check the formal claims of [L23] on numbers, and draw the bound of Prop. B.7 beside what is drawn; True where all hold."""
    good = True
    for claim, computed, holds in theory():
        good &= bool(holds)
        print(f"{'holds' if holds else 'FAILS'}  {claim}\n         {computed}", flush=True)
    draw_bound(Path(out))
    print(out)
    return good


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
           f"predictions differ by {same:.1e}, not explained linearly: {left:.2f}", same < 1e-12 and 0.1 < left < 1.5)


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


# -------------------------------------------------------------------------------------------- files, figures


def write_atomically(path, write):
    """Write a file under a temporary name and move it into place, so that it is there whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as file:
            write(file)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def locked(folder):
    """The open file FOLDER/.lock, locked until it is closed or the process ends, however it ends; ValueError where another process holds it."""
    lock = open(folder / ".lock", "w")
    try:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:                                                     # Windows: nothing is refused
        pass
    except OSError:
        raise ValueError(f"{folder}: another process is at work on this result") from None
    return lock


def write_json(path, content):
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode()))


def save_checkpoint(path, start, seed):
    """params, state, optimiser (Adam's moments, or SGD's velocity as the mean) and step; step s draws from the generator (seed, s)."""
    params, state, (adam_step, mean, square), step = start
    groups = {"params": params, "state": state, "adam_mean": mean, "adam_square": square}
    arrays = {f"{group}/{name}": to_numpy(a) for group, named in groups.items() for name, a in named.items()}
    write_atomically(path, lambda file: np.savez(file, adam_step=adam_step, step=step, seed=seed, **arrays))


def load_checkpoint(path, xp=np, device=None):
    """(params, state, opt, step) from a file that save_checkpoint wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            groups = {group: {name.split("/", 1)[1]: xp.asarray(file[name], device=device) for name in file.files
                              if name.startswith(group + "/")} for group in ("params", "state", "adam_mean", "adam_square")}
            opt = (int(file["adam_step"]), groups["adam_mean"], groups["adam_square"])
            return groups["params"], groups["state"], opt, int(file["step"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of this program ({error})") from None


def read_rows(path, until):
    """The rows of metrics.jsonl up to a step: what an interrupted run wrote after its checkpoint is dropped."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [row for row in rows if row["step"] <= until]


def read_images(path, *names):
    """Images (N, 64, 64, 3) as float32 in [0, 1], and the other arrays named, of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, *others = (file[name] for name in ("images", *names))
    except Exception as error:
        raise ValueError(f"{path}: expected an npz file with {' and '.join(('images', *names))} ({error})") from None
    if x.ndim != 4 or x.shape[1:] != (64, 64, 3) or not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"{path}: expected images (N, 64, 64, 3), uint8 or real in [0, 1], found {x.shape} {x.dtype}")
    return x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1), *others


def write_table(rows, path, settings=()):
    """Rows as CSV, without those of the settings that no row's name needs."""
    always = ("steps", "seed", "rho", "alpha", "head", "eps", "tasks", "method", "beta", "factors")
    keys = [k for k in {k: None for row in rows for k in row} if k != "folder" and (k not in settings or k in always)]
    lines = [",".join(keys)] + [",".join(f"{row[k]:.4f}" if isinstance(row.get(k), float) and k not in always else str(row.get(k, "")).replace(",", ";")
                                         for k in keys) for row in rows]
    write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))
    print(path)


def figure(rows, columns, size):
    """A figure and its axes, for files only."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def save_figure(fig, path):
    """Write a figure as PNG, whole or not at all, and close it."""
    from matplotlib import pyplot
    write_atomically(path, lambda file: fig.savefig(file, dpi=130, format="png"))
    pyplot.close(fig)


TITLES = {"loss": "outer loss (rises with eps)", "nonzero": "share of weights not zero", "mcc": "MCC (1,000 images)",
          "accuracy": "accuracy (50 validation episodes)"}


def draw_training(rows, path, keys=("loss", "nonzero", "mcc")):
    """Loss, sparsity and a score against the step."""
    fig, axes = figure(1, 3, (10, 2.8))
    step = [row["step"] for row in rows]
    for ax, key in zip(axes, keys):
        ax.plot(step, [row[key] for row in rows])
        ax.set(xlabel="step", title=TITLES[key])
        ax.set_ylim(0, None if key == "loss" else 1.02)
    if "eps" in rows[0]:
        axes[1].plot(step, [row["eps"] for row in rows], "--")
        axes[1].legend(["nonzero", "eps"])
    if keys[2] == "mcc":
        axes[2].axhline(0.63, color="grey", ls=":")
        axes[2].legend(["inner fit's features", "random mixing"], loc="lower right")
    save_figure(fig, path)


def draw_correlation(C, matched, names, path):
    """|Correlation| of factors (rows) and features (columns), the matched features in their factor's place."""
    order = list(matched[1]) + [j for j in range(C.shape[1]) if j not in matched[1]]
    fig, ax = figure(1, 1, (4.6, 3.8))
    image = ax.imshow(C[:, order], vmin=0, vmax=1, cmap="viridis")
    for (i, j), value in np.ndenumerate(C[:, order]):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white", fontsize=8)
    ax.set(xticks=range(len(order)), xticklabels=order, yticks=range(len(names)), yticklabels=names, xlabel="feature",
           title=f"|correlation|, MCC {C[matched].sum() / len(C):.3f}")
    fig.colorbar(image)
    save_figure(fig, path)


def draw_responses(features, factors, names, F, matched, path, bases=6):
    """Every feature's response (row) to one factor varied at a time (column), from a few base images.  [L23, Fig. 11]

    A base's factors stay as they are but for the one that varies; responses in standard deviations of the feature.
    """
    levels_of = factors.max(axis=0).astype(int) + 1
    row_of = {tuple(f): i for i, f in enumerate(factors.tolist())} if len(factors) < levels_of.prod() else None
    order = [int(j) for j in matched[1]]
    base = factors[np.random.default_rng(0).integers(len(factors), size=bases)]
    fig, axes = figure(len(order), len(names), (10, 1.35 * len(order) + 0.6))
    axes = np.reshape(axes, (len(order), len(names)))
    for k in range(len(names)):
        for b in base:
            varied = np.repeat(b[None].astype(int), levels_of[k], axis=0)
            varied[:, k] = np.arange(levels_of[k])
            index = [row_of.get(tuple(f), -1) for f in varied.tolist()] if row_of else np.ravel_multi_index(varied.T, levels_of)
            levels = [i for i, row in enumerate(index) if row >= 0]                     # a smaller file has gaps
            response = (features(np.asarray(index)[levels]) - F.mean(axis=0)) / np.maximum(F.std(axis=0), 1e-12)
            for i, j in enumerate(order):
                axes[i, k].plot(levels, response[:, j], lw=1)
        axes[0, k].set_title(names[k], fontsize=10)
    for i, j in enumerate(order):
        axes[i, 0].set_ylabel(f"feature {j}", fontsize=9)
        for k in range(len(names)):
            axes[i, k].set(ylim=(-2.7, 2.7), xticks=[], yticks=[-2, 0, 2] if k == 0 else [])
            if k == matched[0][i]:
                axes[i, k].set_facecolor("#eef4ff")
    fig.supxlabel("level of the factor varied; shaded: the matched factor", fontsize=9)
    save_figure(fig, path)


SERIES = [("lasso", "", "Lasso", "C0"), ("lasso", "_ica", "Lasso + ICA", "C9"), ("ridge", "", "Ridge", "C1"), ("ridge", "_ica", "Ridge + ICA", "C3")]
LABELS = {"mcc": "MCC", "r": "R", "dci_d": "DCI disentanglement", "dci_c": "DCI completeness", "off": "share of features off"}


def draw_bars(rows, panels, scores, path):
    """Scores (rows of axes) against eps (groups of bars), a column of axes per panel (title, settings), mean and deviation over seeds."""
    fig, axes = figure(len(scores), len(panels), (4.2 * len(panels), 2.6 * len(scores) + 0.6))
    axes = np.reshape(axes, (len(scores), len(panels)))
    for k, (title, cell) in enumerate(panels):
        inside = [row for row in rows if all(row[key] == value for key, value in cell.items())]
        eps = sorted({row["eps"] for row in inside})
        for i, score in enumerate(scores):
            ax = axes[i, k]
            for j, (penalty, suffix, label, color) in enumerate(SERIES):
                if score == "r" and suffix:
                    continue                                                # R does not see a linear map
                groups = [[row[score + suffix] for row in inside if row["eps"] == e and row["head"].endswith(penalty)] or [np.nan] for e in eps]
                kind = inside[0]["head"].split("-")[0] + "-" if inside else ""
                ax.bar(np.arange(len(eps)) + 0.2 * (j - 1.5), [np.mean(g) for g in groups], 0.18, yerr=[np.std(g) for g in groups],
                       capsize=2, color=color, label=kind + label)
            ax.set(xticks=range(len(eps)), xticklabels=eps, ylim=(0, 1.02), title=title if i == 0 else "")
            ax.set_xlabel("$\\lambda/\\lambda_{max}$" if i == len(scores) - 1 else "")
            if score == "mcc":
                ax.axhline(0.63, color="grey", ls=":", label="random mixing")
            if k == 0:
                ax.set_ylabel(LABELS[score])
    fig.legend(*axes[0, -1].get_legend_handles_labels(), fontsize=8, ncols=5 if len(panels) > 1 else 2, loc="outside upper center")
    save_figure(fig, path)


def draw_line(ax, xs, groups, label, color, style="o-"):
    """Mean and deviation of each group of values against x."""
    ax.errorbar(xs, [np.mean(g) if g else np.nan for g in groups], [np.std(g) if g else 0 for g in groups], fmt=style, color=color, capsize=3,
                label=label)


def draw_best(rows, variables, path):
    """MCC and R of the best eps (by MCC, per seed) against rho and alpha."""
    fig, axes = figure(2, len(variables), (max(5.4, 4.2 * len(variables)), 5.2))
    axes = np.reshape(axes, (2, len(variables)))
    for k, (variable, fixed) in enumerate(variables):
        inside = [row for row in rows if all(row[key] == value for key, value in fixed.items())]
        levels = sorted({row[variable] for row in inside})
        for (penalty, suffix, label, color), (i, score) in itertools.product(SERIES, enumerate(("mcc", "r"))):
            groups = [{} for _ in levels]                                   # of each level: seed -> the best run's score
            for row in sorted(inside, key=lambda row: row["mcc" + suffix]):
                if row["head"].endswith(penalty):
                    groups[levels.index(row[variable])][row["seed"]] = row[score + suffix]
            draw_line(axes[i, k], levels, [list(g.values()) for g in groups], "inner-" + label, color)
            axes[i, k].set(ylim=(0.3, 1.02), xlabel=variable, ylabel=LABELS[score] + ", best eps")
        axes[0, k].axhline(0.63, color="grey", ls=":", label="random mixing")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=5 if len(variables) > 1 else 3, loc="outside upper center")
    save_figure(fig, path)


def draw_blocks(rows, path):
    """[L23, Fig. 8] and the share of |L| that stays inside the blocks."""
    fig, axes = figure(1, 3, (11, 3))
    for (penalty, _, label, color), (ax, score) in itertools.product(SERIES[::2], zip(axes, ("mcc", "r", "block_share"))):
        sizes = [2, 3] if score == "block_share" else [2, 3, 6]
        for eps, style in zip(sorted({row["eps"] for row in rows}), ("o--", "s-", "^:", "v-.", "d-", "x-")):
            groups = [[row[f"{score}_{size}" if score == "block_share" else score] for row in rows if row["tasks"] == f"blocks-{size}"
                       and row["eps"] == eps and row["head"].endswith(penalty)] for size in sizes]
            draw_line(ax, sizes, groups, f"inner-{label}, eps {eps}", color, style)
        ax.set(xlabel="block size", ylim=(0, 1.03), xticks=sizes, title=LABELS.get(score, "share of |L| inside blocks"))
    axes[0].axhline(0.63, color="grey", ls=":", label="random mixing")
    axes[2].plot([2, 3], [2 / 6, 3 / 6], color="grey", ls=":", label="spread evenly")
    axes[0].legend(fontsize=7)
    axes[2].legend(fontsize=7)
    save_figure(fig, path)


def draw_usage(runs, scores, path):
    """[L23, Fig. 5]: left, the share of tasks that use each feature, sorted, a curve for each run (label, used and dead (T, m));
    right, accuracy against the share of features that are off, scores a list of (label, off, accuracy, interval)."""
    fig, axes = figure(1, 2 if scores else 1, (9 if scores else 4.6, 3.2))
    axes = np.atleast_1d(axes)
    for label, used, dead in runs:
        axes[0].plot(np.sort(used.mean(axis=0))[::-1], label=f"{label} ({100 * dead.mean():.0f} % dead)")
    axes[0].set(xlabel="feature, sorted", ylabel="share of tasks that use it", ylim=(-0.02, 1.02))
    axes[0].legend(fontsize=8)
    for k, (label, off, accuracy, interval) in enumerate(scores):
        axes[1].errorbar([100 * off], [100 * accuracy], [100 * interval], fmt="o", capsize=3, color=f"C{k % 10}", label=label)
    if scores:
        axes[1].set(xlabel="% of live features off, on average", ylabel="accuracy, %")
        axes[1].legend(fontsize=7)
    save_figure(fig, path)


def draw_fig2(path):
    """[L23, Fig. 2]: coefficients of tasks on one support of two features, and what the checker of Assumption 3.5 says."""
    rng = np.random.default_rng(0)
    line = rng.standard_normal((300, 1)) * [1, 0.6]
    cases = {"Gaussian": rng.standard_normal((300, 2)), "on a line": line, "finitely many": rng.standard_normal((4, 2))[rng.integers(4, size=300)]}
    fig, axes = figure(1, 3, (9, 3))
    for ax, (name, w) in zip(axes, cases.items()):
        holds, why = assumptions(rng.standard_normal((50, 2)), w)["3.5"]
        ax.plot(*w.T, ".", ms=4)
        ax.set(title=f"{name}: {'holds' if holds else 'violated'}\n{why}", xlabel="$w_1$", ylabel="$w_2$", xlim=(-3, 3), ylim=(-3, 3))
        ax.title.set_fontsize(8)
    save_figure(fig, path)


def draw_fig3(supports, path):
    """[L23, Fig. 3]: supports (T, m) of tasks of several kinds, and what the checker of Assumption 3.6 says."""
    fig, axes = figure(1, len(supports), (3 * len(supports), 2.6))
    for ax, (kind, S) in zip(axes, supports.items()):
        ax.imshow(S.T, cmap="Greys", aspect="auto")
        ax.set(title=f"{kind}: {'holds' if supports_are_sufficient(S) else 'violated'}", xlabel="task", ylabel="feature")
    save_figure(fig, path)


FIG1 = [("disentangled", "lasso"), ("entangled", "lasso"), ("disentangled", "ridge"), ("entangled", "ridge")]


def fig1_scores(draw, covariance, percent, n, seed, m=100):
    """Test R^2 of the four estimators of Fig. 1 on one task; the entangled features are a random rotation of the factors."""
    warnings.simplefilter("ignore")                                         # of fits that stop at their limit
    rng = np.random.default_rng([seed, percent, n])
    z, y, _ = draw(rng, n + 1000, m, percent * m // 100, covariance)
    rotation, _ = np.linalg.qr(rng.standard_normal((m, m)))
    scores = []
    for features, penalty in FIG1:
        X = z if features == "disentangled" else z @ rotation
        fit = LassoCV(cv=5, max_iter=5000) if penalty == "lasso" else RidgeCV(np.logspace(-4, 5, 40), cv=5)
        scores.append(fit.fit(X[:n], y[:n]).score(X[n:], y[n:]))
    return scores


def draw_fig1(draw, covariance, jobs, path, seeds=10, percents=(5, 20, 80), sizes=(25, 50, 75, 100, 125, 150)):
    """[L23, Fig. 1]: R^2 against the number of samples, a panel for each sparsity in percent, of tasks from data.gaussian_task."""
    import joblib
    cells = list(itertools.product(percents, sizes, range(seeds)))
    scores = joblib.Parallel(n_jobs=jobs)(joblib.delayed(fig1_scores)(draw, covariance, *cell) for cell in cells)
    scores = np.reshape(scores, (len(percents), len(sizes), seeds, len(FIG1)))
    for percent, told in zip(percents, scores):
        for k, (features, penalty) in enumerate(FIG1):
            print(f"l/m = {percent} %, n = {sizes[0]}, {features}-{penalty}: R^2 {told[0, :, k].mean():.2f} +- {told[0, :, k].std() / seeds ** 0.5:.2f}")
    fig, axes = figure(1, len(percents), (3.7 * len(percents), 3.2))
    axes = np.atleast_1d(axes)
    for ax, percent, told in zip(axes, percents, scores):
        for k, (features, penalty) in enumerate(FIG1):
            ax.errorbar(sizes, told[:, :, k].mean(axis=1), told[:, :, k].std(axis=1) / told.shape[1] ** 0.5, marker="o" if penalty == "lasso" else "^",
                        color="C1" if features == "disentangled" else "C0", ls="-" if penalty == "lasso" else "--", capsize=3,
                        label=f"{features}-{penalty.capitalize()}")
        ax.set(title=f"$\\ell/m$ = {percent} %", xlabel="samples", ylim=(-0.3, 1.02))
    axes[0].set_ylabel("$R^2$")
    axes[-1].legend(fontsize=8)
    save_figure(fig, path)
    return scores


def draw_bound(path):
    """The bound of [L23, Prop. B.7] on the probability that Assumption 3.6 fails, beside what is drawn."""
    fig, axes = figure(1, 2, (8.5, 3.2))
    rng, T = np.random.default_rng(0), np.arange(2, 81, 6)
    for ax, cells in zip(axes, ([(m, 0.5) for m in (3, 6, 12, 24)], [(6, p) for p in (0.1, 0.2, 0.5)])):
        for k, (m, p) in enumerate(cells):
            ax.plot(T, variability_bound(m, p, T), "-", color=f"C{k}", label=f"m = {m}, p = {p}")
            ax.plot(T, [variability_violated(rng, m, p, t) for t in T], "o", ms=3, color=f"C{k}")
        ax.set(xlabel="tasks T", ylabel="P(Assumption 3.6 fails)", title="line: bound of Prop. B.7; dots: drawn")
        ax.legend(fontsize=8)
    save_figure(fig, path)


def draw_against_eps(rows, keys, path):
    """Scores of a sweep's runs against eps, mean and deviation over seeds."""
    fig, ax = figure(1, 1, (5.2, 3.4))
    eps = sorted({row["eps"] for row in rows})
    for k, key in enumerate(keys):
        draw_line(ax, range(len(eps)), [[row[key] for row in rows if row["eps"] == e] for e in eps], LABELS.get(key, key), f"C{k}")
    ax.axhline(0.63, color="grey", ls=":", label="MCC of a random mixing")
    ax.set(xticks=range(len(eps)), xticklabels=eps, xlabel="$\\lambda_1/\\lambda_{max}$", ylim=(0, 1.02))
    fig.legend(fontsize=7, ncols=3, loc="outside upper center")
    save_figure(fig, path)


def draw_real(F_real, F, path):
    """Standardised features (N, m) of real images against those of renders of the same factors; prints how they agree."""
    fig, axes = figure(1, F.shape[1], (2.2 * F.shape[1], 2.5))
    for j, ax in enumerate(np.atleast_1d(axes)):
        told = np.corrcoef(F_real[:, j], F[:, j])[0, 1], np.sqrt(np.mean((F_real[:, j] - F[:, j]) ** 2))
        print(f"feature {j}: correlation of real and rendered {told[0]:.3f}, root mean square difference {told[1]:.3f} standard deviations")
        ax.plot(F[:, j], F_real[:, j], ".")
        ax.axline((0, 0), slope=1, color="grey", lw=0.5)
        ax.set(title=f"feature {j}", xlabel="rendered", ylabel="real" if j == 0 else "")
    save_figure(fig, path)


def draw_curves(folders, path):
    """MCC against the step of several finished runs, named by the settings in which they differ."""
    runs = []
    for folder in map(Path, folders):
        if not (folder / "result.json").exists():
            raise ValueError(f"{folder}: no finished run (no result.json)")
        runs.append((json.loads((folder / "config.json").read_text()), read_rows(folder / "metrics.jsonl", float("inf"))))
    differ = [k for k in runs[0][0] if len({str(config.get(k)) for config, _ in runs}) > 1 and k not in ("code", "device")]
    fig, ax = figure(1, 1, (5.2, 3.4))
    for config, rows in runs:
        ax.plot([row["step"] for row in rows], [row["mcc"] for row in rows], label=", ".join(f"{k.replace('_', ' ')} {config[k]}" for k in differ))
    ax.axhline(0.63, color="grey", ls=":", label="random mixing")
    ax.set(xlabel="step", ylabel="MCC (1,000 images)", ylim=(0.3, 1))
    ax.legend(fontsize=8, loc="lower right")
    save_figure(fig, Path(path))
    print(path)


def draw_fig5(rows, path):
    """Usage and accuracy; prints each run's accuracy against its seed's densest run on the same episodes, with the interval over them."""
    def load(row):
        with np.load(Path(row["folder"]) / "episodes.npz") as file:
            return file["accuracy"], file["used"], file["dead"]
    usage, points = {}, {}
    for seed, same in itertools.groupby(sorted(rows, key=lambda row: (row["seed"], row["eps"])), key=lambda row: row["seed"]):
        same = list(same)
        for row in same:
            accuracy, used, dead = load(row)
            gain, interval = mean_ci(accuracy - load(same[0])[0])
            print(f"eps {row['eps']:<5} seed {seed}: {100 * row['off']:5.1f} % off, {100 * row['dead']:4.1f} % dead, accuracy {100 * row['accuracy']:.2f}; "
                  f"{100 * gain:+.2f} +- {100 * interval:.2f} against eps {same[0]['eps']}")
            usage.setdefault(row["eps"], (f"eps {row['eps']}", used, dead))
            points.setdefault(row["eps"], []).append((row["off"], row["accuracy"], row["accuracy_ci"]))
    draw_usage(list(usage.values()), [(f"eps {eps}", *np.mean(told, axis=0)) for eps, told in points.items()], path)


def draw_importances(phi, names, path):
    """|phi| of heads (T, m), each as a share of its sum, features (rows) by tasks (columns) with their factors' names, sorted.   [F23]"""
    order = sorted(range(len(names)), key=lambda t: names[t])
    shares = np.abs(phi) / np.maximum(np.abs(phi).sum(axis=1, keepdims=True), 1e-300)
    fig, ax = figure(1, 1, (1.5 + 0.22 * len(names), 1.6 + 0.25 * phi.shape[1]))
    image = ax.imshow(shares[order].T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set(xticks=range(len(names)), yticks=range(phi.shape[1]), ylabel="feature", title="importance of each feature for unseen tasks")
    ax.set_xticklabels([names[t] for t in order], rotation=90, fontsize=6)
    fig.colorbar(image)
    save_figure(fig, path)


def draw_sharing(rows, path):
    """DCI disentanglement of runs of `sweep sharing`: against alpha and beta, against the entropy H of the importances with its correlation
    and 95 % interval, and against the number of factors per task; and what a step costs."""
    from scipy.stats import pearsonr
    ours = [row for row in rows if row["method"] == "sharing" and row["rho"] == 0]
    grid = [row for row in ours if row["factors"] == 2 and row["seed"] == 0]
    fig, axes = figure(1, 4, (15, 3.4))
    alphas = sorted({row["alpha"] for row in grid})
    for k, beta in enumerate(sorted({row["beta"] for row in grid})):
        line = sorted((alphas.index(row["alpha"]), row["dci_d"]) for row in grid if row["beta"] == beta)
        axes[0].plot(*zip(*line), "o-", color=f"C{k}", label=f"beta {beta}")
    axes[0].set(xlabel="alpha", ylabel="DCI disentanglement", xticks=range(len(alphas)), xticklabels=alphas)
    axes[0].legend(fontsize=7)
    H, D = np.array([(row["entropy"], row["dci_d"]) for row in grid]).T
    axes[1].scatter(H, D, c=[f"C{sorted({row['beta'] for row in grid}).index(row['beta'])}" for row in grid])
    told = pearsonr(H, D) if len(grid) > 3 else None
    text = f"correlation {told[0]:.2f}, 95 % from {told.confidence_interval().low:.2f} to {told.confidence_interval().high:.2f}" if told else ""
    print(f"DCI-D and the entropy of {len(grid)} runs: {text or 'too few runs'}; [F23] reports 94.7 for the sharing penalty")
    axes[1].set(xlabel="entropy H of the importances", title=text)
    axes[1].title.set_fontsize(9)
    chosen = [row for row in ours if (row["alpha"], row["beta"]) == (ours[0]["alpha"], ours[0]["beta"])]
    sizes = sorted({row["factors"] for row in chosen})
    for k, (key, label) in enumerate((("dci_d", "DCI disentanglement"), ("mcc", "MCC"), ("accuracy", "accuracy, unseen tasks"))):
        draw_line(axes[2], sizes, [[row[key] for row in chosen if row["factors"] == size] for size in sizes], label, f"C{k}")
    axes[2].set(xlabel="factors per task", xticks=sizes, ylim=(0, 1.02))
    axes[2].legend(fontsize=7)
    costs = [(f"{beta}", [row["inner_ms"] for row in grid if row["beta"] == beta]) for beta in sorted({row["beta"] for row in grid})]
    axes[3].bar([name for name, _ in costs], [np.mean(c) for _, c in costs])
    axes[3].set(xlabel="beta", ylabel="ms a step", title="inner problem and its adjoint")
    save_figure(fig, path)


def print_methods(rows, path):
    """[F23] beside [L23] and plain cross-entropy on the same tasks and encoder: mean and deviation over seeds, as text; and as CSV."""
    keys = ("mcc", "dci_d", "dci_c", "accuracy_seen", "accuracy", "seconds")
    print(f"{'rho':>4}  {'method':<9}" + "".join(f"{key:>17}" for key in keys))
    cells = sorted({(row["rho"], row["method"]) for row in rows if row["factors"] == 2})
    for rho, method in cells:
        same = [row for row in rows if (row["rho"], row["method"], row["factors"]) == (rho, method, 2)]
        same = [row for row in same if (row["alpha"], row["beta"]) == (same[0]["alpha"], same[0]["beta"])]
        print(f"{rho:>4}  {method:<9}" + "".join(f"{np.mean([row[key] for row in same]):>9.3f} +- {np.std([row[key] for row in same]):.3f}" for key in keys)
              + f"   ({len(same)} seeds)")


def draw_thresholds(path):
    """Soft and block soft thresholding, the projection on the simplex, and a Lasso path whose support changes, for docs/derivations.md."""
    fig, axes = figure(1, 4, (14, 3.2))
    a = np.linspace(-3, 3, 301)
    axes[0].plot(a, np.sign(a) * np.maximum(np.abs(a) - 1, 0), label="ST(a, 1)")
    axes[0].plot(a, a, ":", color="grey", label="a")
    axes[0].set(title="soft thresholding", xlabel="a")
    axes[0].legend()
    V = np.stack(np.meshgrid(np.linspace(-2.5, 2.5, 11), np.linspace(-2.5, 2.5, 11)), axis=-1).reshape(-1, 2)
    size = np.linalg.norm(V, axis=1, keepdims=True)
    moved = V * np.maximum(1 - 1 / np.maximum(size, 1e-12), 0) - V
    axes[1].quiver(*V.T, *moved.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="C0")
    angle = np.linspace(0, 2 * np.pi, 100)
    axes[1].plot(np.cos(angle), np.sin(angle), color="C1")
    axes[1].set(title="BST(V, 1): the disc goes to 0", aspect="equal", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
    for v in np.random.default_rng(0).uniform(-0.6, 1.8, (14, 2)):
        t = max(v.max() - 1, (v.sum() - 1) / 2)
        x = np.maximum(v - t, 0)
        axes[2].plot(*zip(v, x), "-", color="C0", lw=0.8)
        axes[2].plot(*x, ".", color="C1")
    axes[2].plot([0, 1], [1, 0], color="k")
    axes[2].set(title="projection on the simplex, k = 2", aspect="equal")
    rng = np.random.default_rng(1)
    F = rng.standard_normal((40, 5)) @ np.linalg.cholesky(0.3 * np.eye(5) + 0.7).T
    lam, w, _ = lasso_path(F, F @ [1.5, -1, 0.5, 0, 0] + 0.3 * rng.standard_normal(40))
    axes[3].plot(lam, w.T)
    axes[3].set(title="a Lasso path", xlabel="$\\lambda$", xscale="log", ylabel="w")
    save_figure(fig, path)
