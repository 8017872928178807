"""metrics.py -- how a representation is scored against the factors that it should have found.

    N        images, N = 20,000
    z        (N, d)  ground-truth factors, d = 6        z_hat  (N, m)  learned features, m = 6
    C        (d, m)  |Pearson correlation| of factors and features
    B        (d, m)  |coefficients| of standardised factors regressed on standardised features

Everything here runs on the CPU: arrays of other libraries are brought to NumPy at the edge.
What is drawn of these scores is in experiments/plots.py and figures.py.

[L23] Lachapelle et al., ICML 2023.   [EW18] Eastwood and Williams, ICLR 2018.
"""
import functools
import itertools
import warnings

import numpy as np
from array_api_compat import is_cupy_array, is_torch_array
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.decomposition import FastICA
from sklearn.linear_model import LinearRegression


def to_numpy(a):
    """A NumPy array from any library's array or table, on whatever device it lies; ValueError where
    values are masked."""
    if np.ma.is_masked(a):
        raise ValueError("found masked values: fill them, or leave their rows out")
    if is_cupy_array(a):
        return a.get()
    if is_torch_array(a):
        a = a.detach().cpu()
        return np.asarray(a.float() if str(a.dtype) == "torch.bfloat16" else a)
    return np.asarray(a)


def to_samples(*arrays):
    """Arrays (N, d) of finite numbers and of one N, as float64; ValueError for anything else, and
    for arrays without a number."""
    arrays = [to_numpy(a) for a in arrays]
    shapes = [a.shape for a in arrays]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"expected samples (N, d) of one N, found {', '.join(map(str, shapes))}")
    for a in arrays:
        if a.size == 0:
            raise ValueError(f"expected samples and columns, found {a.shape}")
        if a.dtype.kind not in "biuf" or not np.isfinite(a.astype(np.float64)).all():
            raise ValueError(f"expected finite real numbers, found {a.dtype} or NaN or infinity")
    return [a.astype(np.float64) for a in arrays]


def moments(a):
    """Mean and standard deviation of each column of a (N, d); of a constant one, whose largest and
    smallest values are equal, its value and 1. Values are brought to [0, 1] first: units from
    1e-300 to 1e300 will do."""
    low, high = a.min(axis=0).astype(np.float64), a.max(axis=0)
    width = np.where(high > low, high - low, 1)
    share = (a - low) / width
    return low + width * share.mean(axis=0), np.where(high > low, width * share.std(axis=0), 1)


def standardise(a):
    """Columns (N, d) of mean 0 and variance 1; a constant column becomes 0."""
    a, = to_samples(a)
    mean, deviation = moments(a)
    return (a - mean) / deviation


def coefficients(x, y):
    """B (d, m): y (N, d) regressed on x (N, m), both standardised, without intercept."""
    x, y = to_samples(x, y)
    fit = LinearRegression(fit_intercept=False).fit(standardise(x), standardise(y))
    return fit.coef_


# ------------------------------------------------------------------------------ MCC and R


def correlation(z, z_hat):
    """|Pearson correlation| of each factor with each feature, C (d, m); 0 for a constant column."""
    z, z_hat = to_samples(z, z_hat)
    return np.abs(standardise(z).T @ standardise(z_hat)) / len(z)


def match(C):
    """The one-to-one matching of factors and features of largest total C: (rows, columns)."""
    return linear_sum_assignment(-C)


def mcc(z, z_hat):
    """Mean correlation coefficient: mean C over the best one-to-one matching. [L23, App. D.2.2]

    1 where the features are the factors up to permutation and scale; a factor that is left without
    a feature, or never varies, counts 0.
    """
    C = correlation(z, z_hat)
    return float(C[match(C)].sum() / len(C))


@functools.cache
def chance(d, m, draws=500):
    """The mean MCC of a random Gaussian mixing of d independent factors into m features.

    0.63 at 6 and 6, 0.71 at 6 and 10.
    """
    M = np.random.default_rng(0).standard_normal((draws, d, m))
    C = np.abs(M) / np.linalg.norm(M, axis=1, keepdims=True)            # of z and z M
    return float(np.mean([C_draw[match(C_draw)].sum() / d for C_draw in C]))


def r_score(z, z_hat):
    """Mean coefficient of multiple correlation R of each factor given all features.

    1 where the factors are a linear function of the features; a factor that never varies counts 0.
    Never below MCC.                                                       [L23, App. D.2.2]
    """
    z, z_hat = (standardise(a) for a in to_samples(z, z_hat))
    fit = LinearRegression(fit_intercept=False).fit(z_hat, z)
    missed = (z - fit.predict(z_hat)).var(axis=0)
    explained = z.var(axis=0) - missed                                  # of 1, or of 0 if constant
    return float(np.sqrt(np.maximum(explained, 0)).mean())


# ------------------------------------------------------------------------------ DCI


def dci(z, z_hat):
    """Disentanglement and completeness from regression coefficients.   [L23, App. D.2.7; EW18]

    Disentanglement: how far each feature serves one factor, 1 - entropy (base d) of its column.
    Completeness: how far each factor needs one feature, 1 - entropy (base m) of its row of B. (The
    text of D.2.7 has the two the other way round: docs/errata.md.) A zero row or column scores 0.
    Means are unweighted, as in [L23]; [EW18] weights them by the share of B.
    """
    B = np.abs(coefficients(z_hat, z))                                  # (d, m)
    return concentration(B.T), concentration(B)


def concentration(B):
    """Mean over the rows of B >= 0 of 1 - entropy of the row's shares, in base the row's length."""
    total = B.sum(axis=1)
    total = np.where(total > 1e-10 * total.max(), total, 0)             # rounding is no coefficient
    P = B / np.where(total > 0, total, 1)[:, None]
    entropy = -np.sum(P * np.log(np.where(P > 0, P, 1)), axis=1) / np.log(max(B.shape[1], 2))
    return float(np.where(total > 0, 1 - entropy, 0).mean())


def scores(z, z_hat):
    """All of the above under the names of result.json."""
    d, c = dci(z, z_hat)
    return {"mcc": mcc(z, z_hat), "r": r_score(z, z_hat), "dci_d": d, "dci_c": c}


def mean_ci(a):
    """The mean of a (T,), over two episodes or more, and the half width of its 95 % interval by the
    normal approximation, which is short for a few."""
    a = to_numpy(a)
    return float(a.mean()), float(1.96 * a.std(ddof=1) / len(a) ** 0.5)


# ------------------------------------------------------------------------------ other scores


def ica(z_hat, fit_on=None):
    """Linear ICA of features z_hat (N, m), fitted on the features fit_on. [Hyvarinen et al. 2001]

    fit_on is of the training distribution. Where ICA does not apply (constant or dependent
    features) it finds fewer components; the rest are 0 and score nothing.
    """
    z_hat, = to_samples(z_hat)
    fit_on = z_hat if fit_on is None else to_samples(fit_on)[0]
    mean, scale = moments(fit_on)
    X, Y = (fit_on - mean) / scale, (z_hat - mean) / scale
    rank = np.linalg.matrix_rank(X, tol=1e-4 * len(X) ** 0.5)
    if rank == 0:
        return np.zeros(Y.shape)
    fast = FastICA(rank, whiten="unit-variance", random_state=0, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # of stopping at max_iter
        found = fast.fit(X).transform(Y)
    return np.pad(found, ((0, 0), (0, Y.shape[1] - rank)))


def block_share(z, z_hat, size):
    """The share of |L| inside blocks, L the features regressed on the factors, all standardised.

    Factors come in blocks of `size` consecutive ones; a feature belongs to its matched factor's
    block. 1 where features mix no factors of different blocks, the partial disentanglement
    conjectured after [L23, Assumption 3.6]; mass spread evenly gives size/d.
    """
    if size < 1:
        raise ValueError(f"size: found {size}, expected at least 1")
    L = np.abs(coefficients(z, z_hat))                                  # (m, d)
    factor, feature = match(correlation(z, z_hat))
    same = factor[:, None] // size == np.arange(L.shape[1]) // size
    return float((L[feature] * same).sum() / max(L[feature].sum(), 1e-300))


def udr(models, by="correlation"):
    """Unsupervised disentanglement ranking of models' features [(N, m), ...]: a score for each.

    Two models agree where each feature of one has one counterpart in the other: by correlation, the
    ranks' (Spearman), or by regression, coefficients of one's features for the other's, squared,
    which is as good where factors are correlated (Duan et al.: a Lasso's, ours least squares'). A
    model's score, at most 1, is the median of its agreement with the others, on the same images;
    NaN of one model alone. A dead feature agrees with none; they leave it out.
                                                                       [Duan et al. 2020, Eq. 2]
    """
    if by not in ("correlation", "regression"):
        raise ValueError(f"by: found {by}, expected correlation or regression")
    if by == "correlation":
        models = [np.apply_along_axis(rankdata, 0, standardise(a)) for a in models]
    relation = correlation if by == "correlation" else coefficients
    if len(models) == 1:
        return np.array([np.nan])
    pairs = np.full((len(models), len(models)), np.nan)
    for i, j in np.ndindex(pairs.shape):
        if i != j:
            pairs[i, j] = agreement(np.abs(relation(models[i], models[j])), by)
    return np.nanmedian(pairs, axis=1)


def agreement(R, by):
    """How far one entry stands out in each row and column of relations R >= 0 of features (m, m'),
    on average: max^2/sum of correlations, max^2 over the sum of squares of coefficients, which may
    be of any size."""
    shares = []
    for S in (R, R.T):
        total = (S if by == "correlation" else S * S).sum(axis=1)
        shares.append(np.where(total > 0, S.max(axis=1) ** 2 / np.maximum(total, 1e-300), 0))
    return np.concatenate(shares).mean()


# ------------------------------------------------------------------------------ assumptions


def supports_are_sufficient(S):
    """[L23, Assumption 3.6] on supports S (T, m), a mask: for any two features, some task uses the
    one without the other, and some task the other without the one."""
    S = to_numpy(S) != 0
    alone = S.T.astype(int) @ ~S                                        # tasks with i, without j
    return bool((alone + np.eye(S.shape[1], dtype=int) > 0).all())


WHY_3_2 = {  # why Assumption 3.2 holds for labels of data.LIKELIHOODS, or does not
    "gaussian": "the mean of a Gaussian label determines its distribution",
    "categorical": "k logits of a softmax may all be shifted: not minimal (k - 1 are)"}


def assumptions(F, W, likelihood="gaussian"):
    """What samples tell of [L23, Assumptions 3.2 to 3.6]: name -> (holds, why).

    F (N, m) are features and W (T, m) or (T, k, m) coefficients of tasks. 3.5 is judged by the
    rank of coefficients that share a support: evidence, not proof. ValueError where F and W have
    not one number of features, or the likelihood is unknown.
    """
    (F,), m = to_samples(F), np.shape(W)[-1]
    if F.shape[1] != m:
        raise ValueError(f"found F {F.shape} and W {np.shape(W)}, expected as many columns")
    if likelihood not in WHY_3_2:
        raise ValueError(f"likelihood: found {likelihood}, expected one of {', '.join(WHY_3_2)}")
    rows, = to_samples(to_numpy(W).reshape(-1, m))                  # (T k, m)
    W = rows.reshape(len(W), -1, m)
    F, rows = of_unit_columns(F), of_unit_columns(rows)             # ranks of any units
    W = rows.reshape(W.shape)
    rank_F, rank_W = np.linalg.matrix_rank(F), np.linalg.matrix_rank(rows)
    poor = support_of_low_rank(W)
    why_5 = "full rank on every support seen"
    if poor is not None:
        why_5 = f"dependent coefficients on support {poor}"
    apart = supports_are_sufficient((W != 0).any(axis=1))
    why_6 = "any two factors are told apart by some support"
    if not apart:
        why_6 = "some factor never comes without another"
    return {
        "3.2": (likelihood == "gaussian", WHY_3_2[likelihood]),
        "3.3": (rank_F == F.shape[1], f"features of rank {rank_F} of {F.shape[1]}"),
        "3.4": (rank_W == m, f"coefficients of rank {rank_W} of {m}"),
        "3.5": (poor is None, why_5),
        "3.6": (apart, why_6)}


def of_unit_columns(A):
    """A (N, d) with each column over its largest |value|."""
    size = np.abs(A).max(axis=0, initial=0)
    return A / np.where(size > 0, size, 1)


def support_of_low_rank(W, draws=20):
    """A support on which drawn coefficients W (T, k, m) are dependent, or None.

    Where 3.5 holds, each further W_S among those drawn raises their common rank, up to |S|: every
    vector a that is orthogonal to the ones before is met by the next. So no W_S of lower rank comes
    twice.
    """
    rng = np.random.default_rng(0)
    S = (W != 0).any(axis=1)
    for support in np.unique(S, axis=0):
        W_S = W[(S == support).all(axis=1)][:, :, support]          # of the tasks that share it
        size = min(W_S.shape[2], len(W_S))
        picked = [W_S[rng.choice(len(W_S), size, replace=False)] for _ in range(draws)]
        if comes_twice(W_S) or not all(rank_rises(some) for some in picked):
            return np.flatnonzero(support).tolist()
    return None


def comes_twice(W):
    """Whether a matrix of W (n, k, s), of rank below s, is among them more than once."""
    different, times = np.unique(W, axis=0, return_counts=True)
    return any(np.linalg.matrix_rank(one) < W.shape[2] for one in different[times > 1])


def rank_rises(W):
    """Whether each matrix of W (n, k, s) raises the rank of those before it, up to s."""
    n, k, s = W.shape
    ranks = [np.linalg.matrix_rank(W[:i].reshape(i * k, s)) for i in range(1, n + 1)]
    return all(b > a or a == s for a, b in itertools.pairwise([0, *ranks]))
