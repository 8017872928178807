"""metrics.py -- how a representation is scored and drawn against the factors it should have found, a gradient against differences.

    z      (N, d)  ground-truth factors          z_hat  (N, m)  learned features
    C      (d, m)  |Pearson correlation| of factors and features
    B      (d, m)  |coefficients| of the regression of standardised factors on standardised features

Everything here runs on the CPU: arrays of other libraries are brought to NumPy at the edge.
At m = 6 the MCC of a random Gaussian mixing is 0.63 +- 0.04 and of a random rotation 0.69 +- 0.05.

[L23] Lachapelle et al., ICML 2023.   [EW18] Eastwood and Williams, ICLR 2018.
"""
import itertools
import os
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


def mean_ci(a):
    """The mean of a (T,), over episodes, and the half width of its 95 % interval."""
    a = to_numpy(a)
    return float(a.mean()), float(1.96 * a.std(ddof=1) / len(a) ** 0.5)


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


# -------------------------------------------------------------------------------------------------- figures


def write_atomically(path, write):
    """Write a file under a temporary name and move it into place, so that it is there whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as file:
            write(file)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


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
    fig, axes = figure(len(order), 6, (10, 1.35 * len(order) + 0.6))
    axes = np.reshape(axes, (len(order), 6))
    for k in range(6):
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
        for k in range(6):
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
    fig, axes = figure(2, len(variables), (4.2 * len(variables), 5.2))
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
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=5, loc="outside upper center")
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


def draw_fig1(scores, estimators, percents, sizes, path):
    """[L23, Fig. 1]: R^2 (sparsity, samples, seed, estimator) against the number of samples, a panel for each sparsity in percent."""
    fig, axes = figure(1, len(percents), (3.7 * len(percents), 3.2))
    axes = np.atleast_1d(axes)
    for ax, percent, told in zip(axes, percents, scores):
        for k, (features, penalty) in enumerate(estimators):
            ax.errorbar(sizes, told[:, :, k].mean(axis=1), told[:, :, k].std(axis=1) / told.shape[1] ** 0.5, marker="o" if penalty == "lasso" else "^",
                        color="C1" if features == "disentangled" else "C0", ls="-" if penalty == "lasso" else "--", capsize=3,
                        label=f"{features}-{penalty.capitalize()}")
        ax.set(title=f"$\\ell/m$ = {percent} %", xlabel="samples", ylim=(-0.3, 1.02))
    axes[0].set_ylabel("$R^2$")
    axes[-1].legend(fontsize=8)
    save_figure(fig, path)


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
