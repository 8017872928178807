"""theory.py -- the formal claims of [L23], Sections 2, 3 and B, tried on numbers.

    F (N, m)   factors f(x), m = 6, N = 400       W (T, m)   coefficients of tasks, T = 300
    L (m, m)   F_hat = F L' are other features, f_hat = L f, so that predictors become W L^-1
               (the convention of [L23, Sec. 2]; its App. B has f = L f_hat and W L)
    S (T, m)   supports of tasks

Also Figs. 2 and 3, what the assumptions mean, and the bound of Proposition B.7 as a figure.
The checks of Assumptions 3.2 to 3.6 on samples are in metrics.py.
"""
import itertools
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

import data
import metrics
import solvers
from experiments import plots
from experiments.settings import OUT, option, out_path

# What is claimed, what was computed, and whether it holds.
Claim = namedtuple("Claim", "text computed holds")


@dataclass(frozen=True)
class Theory:
    """Check the formal claims of [L23] on numbers, and draw the bound of Proposition B.7."""

    out: str = option("", OUT)
    results: str = option("results", "folder of the results")


def command(config):
    """Print every claim and what was computed; 1 where one fails."""
    failed = False
    with solvers.cpu_threads(1):                    # small problems: more threads would only wait
        for claim in theory():
            verdict = "holds" if claim.holds else "FAILS"
            print(f"{verdict}  {claim.text}\n         {claim.computed}", flush=True)
            failed |= not claim.holds
    path = out_path(config, "theory.png")
    draw_bound(path)
    print(path)
    return int(failed)


def theory(m=6, N=400, T=300, seed=0):
    """All claims, one after another."""
    rng = np.random.default_rng(seed)
    F, L = rng.standard_normal((N, m)), rng.standard_normal((m, m))
    order, signs = rng.permutation(m), rng.uniform(0.5, 2, m)[:, None]
    scaling = np.eye(m)[order] * signs * rng.choice([-1, 1], (m, 1))        # a permutation-scaling
    W = rng.standard_normal((T, m)) * supports(rng, T, m)
    yield from predictions_do_not_see_L(rng, F, L)
    yield from population_predictor(rng, W, L)
    yield from sparse_estimators(F[:60], W[:40], L, scaling)
    yield from minima(np.random.default_rng(seed))
    yield from permutation_in_every_invertible_matrix(rng, m)
    yield from linear_identifiability(rng, F, W)
    yield from sparsity_prefers_scalings(rng, m, scaling)
    yield from finitely_many_tasks()
    yield from tasks_on_a_sphere(rng, m, T)
    yield from several_outputs(rng, m, T)
    yield from support_variability_bound(rng)
    yield from ridge_under_batch_norm(rng, m)


def supports(rng, T, m, p=0.5):
    """Supports (T, m) of independent entries, an empty one given one entry."""
    return data.nonempty(rng, rng.random((T, m)) < p)


# ------------------------------------------------------------------------------ Section 2


def predictions_do_not_see_L(rng, F, L):
    """Proposition 2.2: the maximum-likelihood predictions are the same on f and on L f.  [L23]"""
    def sigmoid(Z):
        return 1 / (1 + np.exp(-Z))

    w = rng.standard_normal(F.shape[1])
    y = F @ w + 0.5 * rng.standard_normal(len(F))
    positive = rng.random(len(F)) < sigmoid(F @ w)

    def squared(X):
        return X @ np.linalg.lstsq(X, y)[0]

    def logistic(X):
        fit = LogisticRegression(
            C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
        return fit.fit(X, positive).decision_function(X)

    for predict, mean, labels in ((squared, np.copy, y), (logistic, sigmoid, positive)):
        change = np.abs(predict(F @ L.T) - predict(F)).max()
        slope = np.abs(F.T @ (mean(predict(F)) - labels)).max()     # 0 at the MLE
        yield Claim(
            f"Prop. 2.2, {predict.__name__} loss: an invertible L leaves the MLE's predictions as "
            "they are", f"largest change {change:.1e}, slope there {slope:.1e}",
            change < 1e-6 and slope < 1e-6)


def population_predictor(rng, W, L):
    """Proposition 2.4: on L f the population predictor is W L^-1.  [L23]"""
    A = rng.standard_normal(L.shape)
    Sigma = A @ A.T                                                         # any covariance of f
    W_hat = np.linalg.solve(L @ Sigma @ L.T, L @ Sigma @ W.T).T             # least squares on L f
    error = np.abs(W_hat - W @ np.linalg.inv(L)).max()
    before = (W != 0).sum(axis=1).mean()
    after = (np.abs(W_hat) > 1e-9).sum(axis=1).mean()
    yield Claim(
        "Prop. 2.4: on features L f the population predictor is W L^-1, whatever the covariance",
        f"error {error:.1e}", error < 1e-8)
    yield Claim(
        "          ... and a sparse W becomes dense",
        f"{before:.2f} coefficients a task become {after:.2f}", after == L.shape[0] > before)


def best_subset(F, y, size):
    """The l0-constrained estimator: least mean squared error over all supports of a size."""
    errors = []
    for support in itertools.combinations(range(F.shape[1]), size):
        X = F[:, list(support)]
        errors.append(np.mean((y - X @ np.linalg.lstsq(X, y)[0]) ** 2))
    return min(errors)


def fewest_features(F, y):
    """The size of the smallest support that fits exactly."""
    sizes = range(1, F.shape[1] + 1)
    return next(size for size in sizes if best_subset(F, y, size) < 1e-18)


def sparse_estimators(F, W, L, scaling):
    """Problems (2), (4) and (55), by enumeration of supports.  [L23]"""
    sizes = (W != 0).sum(axis=1)
    mixings = {
        "the factors": np.eye(len(L)), "a permutation-scaling": scaling,
        "a rotation": np.linalg.qr(L)[0], "a random L": L}
    loss, need = {}, {}
    for name, M in mixings.items():
        X = F @ M.T
        tasks = zip(W, sizes, strict=True)
        loss[name] = np.mean([best_subset(X, F @ w, size) for w, size in tasks])
        need[name] = np.mean([fewest_features(X, F @ w) for w in W])
    mixed = min(loss["a rotation"], loss["a random L"])
    errors = ", ".join(f"{name} {value:.3g}" for name, value in loss.items())
    scaled = loss["a permutation-scaling"]
    yield Claim(
        "Thm. 3.1, Problems (2), (4): with ||w||_0 as in the truth, only permutation-scalings fit",
        "mean squared error: " + errors, scaled < 1e-18 and mixed > 1e-4)
    mixed = min(need["a rotation"], need["a random L"])
    counts = ", ".join(f"{name} {value:.2f}" for name, value in need.items())
    scaled = need["a permutation-scaling"]
    yield Claim(
        "Thm. B.6, Problem (55): the fewest features that fit exactly are attained by "
        "permutation-scalings",
        "mean ||w||_0: " + counts, scaled == need["the factors"] < mixed)


def subset_losses(L, C, W):
    """For factors of covariance C (m, m), features L f and tasks w (T, m): the least mean squared
    error of any j features, (m + 1, T), and its derivative in L, (m + 1, T, m, m)."""
    T, m = W.shape
    losses, dL = [], np.zeros((m + 1, T, m, m))
    for size in range(m + 1):
        found = []
        for support in map(list, itertools.combinations(range(m), size)):
            A = L[support]                                                  # of the features kept
            b = np.linalg.solve(A @ C @ A.T, A @ C @ W.T).T                 # their weights
            r = (W - b @ A) @ C
            found.append((np.sum(W * r, axis=1), support, -2 * b[..., None] * r[:, None, :]))
        best = np.argmin([loss for loss, _, _ in found], axis=0)
        for t, k in enumerate(best):
            _, support, dA = found[k]
            dL[size, t, support] = dA[t]
        losses.append(np.min([loss for loss, _, _ in found], axis=0))
    return np.array(losses), dL


def draw_theorem(path):
    """Theorem 3.1 on two factors, correlated at 0.8: two features are turned away from them; the
    error of tasks of one factor or both, fitted with as many features as they have factors, or with
    both."""
    C = np.array([[1, 0.8], [0.8, 1]])
    W = np.array([[1.0, 0], [0, 1], [1, 1], [1, -1], [1, -0.3], [0.4, 1]])
    size, signal = np.count_nonzero(W, axis=1), np.sum(W @ C * W, axis=1)
    degrees, errors = np.linspace(0, 180, 181), []
    for angle in np.radians(degrees):
        L = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        losses, _ = subset_losses(L, C, W)
        errors.append([np.mean(losses[size, range(len(W))] / signal), np.mean(losses[2] / signal)])
    fig, ax = plots.subplots(1, 1, (6, 3.2))
    for error, style, label in zip(np.transpose(errors), ("-", "--"), BUDGETS, strict=True):
        ax.plot(degrees, 100 * error, style, label=label)
    ax.set(xlabel="features turned away from the factors, degrees", xticks=range(0, 181, 45),
           ylabel="error, % of the signal", ylim=(-0.2, 5))
    ax.legend(fontsize=8)
    plots.save(fig, path)


BUDGETS = ("as many features as factors, Problem (4)", "both features")


def shared_out(losses, total):
    """The numbers of features (T,), `total` in all, by which the sum of the losses is least."""
    least, chosen = np.full(total + 1, np.inf), []                          # of so many features
    least[0] = 0
    for of_task in losses.T:
        ways = np.full((len(of_task), total + 1), np.inf)
        for j, loss in enumerate(of_task):
            ways[j, j:] = least[:total + 1 - j] + loss
        chosen.append(ways.argmin(axis=0))
        least = ways.min(axis=0)
    left, sizes = int(least.argmin()), []
    for choice in chosen[::-1]:
        sizes.append(choice[left])
        left -= sizes[-1]
    return np.array(sizes[::-1])


def minima(rng, m=4, T=40, starts=12, near=6, rho=0.8):
    """Problems (4) and (55) minimised over L, the features being L f, f of correlation rho: each
    task has as many features as its w uses, or all tasks together have (the budget is then within
    the fits, where (55) has it outside: the losses of 0 are the same). Searches start at random,
    and `near` more of them beside a permutation-scaling.  [L23]"""
    C = rho + (1 - rho) * np.eye(m)
    W = rng.standard_normal((T, m)) * supports(rng, T, m)
    own = (W != 0).sum(axis=1)
    signal = np.sum(W @ C * W)
    for name, together in (("(4)", False), ("(55)", True)):
        def loss(flat, together=together):
            losses, dL = subset_losses(flat.reshape(m, m), C, W)
            sizes = shared_out(losses, own.sum()) if together else own
            some = sizes, np.arange(T)
            return losses[some].sum() / signal, dL[some].sum(axis=0).ravel() / signal

        some = [rng.standard_normal((m, m)) for _ in range(starts)]
        some += [permutation_scaling(rng, m) + 0.1 * rng.standard_normal((m, m))
                 for _ in range(near)]
        ends = [descend(loss, L.ravel()) for L in some]
        solved = [end.fun < 1e-8 for end in ends]
        off = [mixing(end.x.reshape(m, m)) for end, is_0 in zip(ends, solved, strict=True) if is_0]
        others = [end.fun for end, is_0 in zip(ends, solved, strict=True) if not is_0]
        yield Claim(
            f"Problem {name} over L, {T} tasks, factors correlated at {rho}: a loss of 0 is found "
            "at permutation-scalings only",
            f"{sum(solved[:starts])} of {starts} searches from random starts end at 0, and "
            f"{sum(solved[starts:])} of {near} from beside one; L off by at most "
            f"{max(off, default=1):.1e}; the others in local minima, of "
            f"{min(others, default=0):.2g} of the signal and more", max(off, default=1) < 1e-2)


def permutation_scaling(rng, m):
    """A random one, (m, m)."""
    return np.eye(m)[rng.permutation(m)] * (rng.uniform(0.5, 2, m) * rng.choice([-1, 1], m))


def descend(loss, x):
    """Where BFGS ends, begun again until it gets no further: it may stop early at an edge, where
    the best support of a task changes."""
    end = minimize(loss, x, jac=True, method="BFGS", options={"gtol": 1e-9})
    for _ in range(5):
        again = minimize(loss, end.x, jac=True, method="BFGS", options={"gtol": 1e-9})
        if again.fun > 0.999 * end.fun:
            break
        end = again
    return end


def mixing(L):
    """How far L is from a permutation-scaling: the largest share of a row beside its largest entry,
    1 where two rows have theirs in one column."""
    share = np.abs(L) / np.abs(L).max(axis=1, keepdims=True)
    largest = share.argmax(axis=1)
    share[np.arange(len(L)), largest] = 0
    return float(share.max()) if len(set(largest.tolist())) == len(L) else 1.0


# ------------------------------------------------------------------------------ Section 3, App. B


def permutation_in_every_invertible_matrix(rng, m, trials=500):
    """Lemma B.1.  [L23]"""
    found = tried = 0
    while tried < trials:
        L = rng.standard_normal((m, m)) * (rng.random((m, m)) < 0.4)
        if np.linalg.matrix_rank(L) == m:
            tried += 1
            found += bool((L[metrics.match(1.0 * (L != 0))] != 0).all())
    yield Claim(
        "Lemma B.1: an invertible L has a permutation s with L_i,s(i) != 0 for all i",
        f"{found} of {tried} sparse matrices", found == tried)


def linear_identifiability(rng, F, W):
    """Theorem B.4, and a counterexample where its assumption fails.  [L23]"""
    m = F.shape[1]
    U, s, _ = np.linalg.svd(F @ W.T, full_matrices=False)                   # another exact fit of
    F_hat = U[:, :m] * s[:m] @ rng.standard_normal((m, m))                  # the same predictions
    left = not_linear(F_hat, F) / np.abs(F).max()
    yield Claim(
        "Thm. B.4: exact fits with coefficients that span R^m make f linear in f_hat",
        f"not explained linearly: {left:.1e}", left < 1e-10)
    thin = W @ (np.eye(m) - np.ones((m, m)) / m)                            # misses (1, ..., 1),
    other = F + np.sin(3 * F[:, :1])                                        # along which this moves
    same = np.abs(other @ thin.T - F @ thin.T).max()
    left = not_linear(other, F)
    yield Claim(
        "          counterexample: coefficients that miss a direction fit exactly with a nonlinear "
        "f_hat", f"predictions differ by {same:.1e}, not explained linearly: {left:.2f}",
        same < 1e-12 and 0.1 < left < 1.5)


def not_linear(F_hat, F):
    """The largest part of F that no linear function of F_hat explains."""
    return np.abs(F - F_hat @ np.linalg.lstsq(F_hat, F)[0]).max()


def sparsity_prefers_scalings(rng, m, scaling, T=2000, k=3):
    """Theorem B.5, in the convention f = L f_hat.  [L23]"""
    W = rng.standard_normal((T, k, m)) * supports(rng, T, m)[:, None, :]

    def used(L):                                                            # E ||W L||_2,0
        return (np.abs(W @ L) > 1e-9).any(axis=1).sum(axis=1).mean()

    true, scaled = used(np.eye(m)), used(scaling)
    others = []
    while len(others) < 200:
        L = np.eye(m)[rng.permutation(m)]
        L = L + (rng.random((m, m)) < 0.1) * rng.standard_normal((m, m))
        if np.linalg.matrix_rank(L) == m and (L != 0).sum() > m:
            others.append(used(L))
    yield Claim(
        "Thm. B.5: E||W L||_2,0 >= E||W||_2,0, with equality only for permutation-scalings",
        f"W {true:.3f}, permutation-scaling {scaled:.3f}, least of 200 others {min(others):.3f}",
        scaled == true < min(others))


def finitely_many_tasks():
    """App. B.4, (63) to (66): three tasks that meet Assumption 3.6, not 3.5, and an L that keeps
    them sparse and mixes the factors.  [L23]"""
    L = np.array([[3, -1, -1], [-1, 1, 3], [1, 3, 1]])
    W = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    before, after = ((A != 0).sum(axis=1).tolist() for A in (W, W @ L))
    verdicts = metrics.assumptions(np.eye(3), np.tile(W, (5, 1)))
    met_5, _ = verdicts["3.5"]
    met_6, _ = verdicts["3.6"]
    yield Claim(
        "App. B.4, (63): with three tasks that meet 3.6, not 3.5, a mixing L keeps every ||w||_0",
        f"||w||_0 {before}, ||w L||_0 {after}; 3.5 {met_5}, 3.6 {met_6}",
        before == after and met_6 and not met_5)


def tasks_on_a_sphere(rng, m, T):
    """App. B.6: coefficients on the unit sphere of each support, a distribution without a density,
    meet Assumption 3.5.  [L23]"""
    w = data.sample_tasks(rng, 10 * T, m, "sphere")
    holds, why = metrics.assumptions(np.eye(m), w)["3.5"]
    off = np.abs(np.linalg.norm(w, axis=1) - 1).max()
    text = "App. B.6: coefficients on a sphere, without a density, meet Assumption 3.5"
    yield Claim(text, f"{why}; off the sphere by {off:.0e}", holds and off < 1e-12)


def several_outputs(rng, m, T, k=2):
    """Assumption 3.5 for k outputs: W_S a = 0 with probability 0 for every a.  [L23, Sec. 3.3]

    One coefficient matrix, seen again and again, meets it where its columns are independent,
    which takes k >= |S|.
    """
    S = np.eye(m, dtype=bool) | np.eye(m, k=1, dtype=bool)              # one or two features
    S = S[rng.integers(m, size=10 * T)]
    fixed = rng.standard_normal((m, k, m)) * (np.eye(m) + np.eye(m, k=1))[:, None, :]
    again = fixed[rng.integers(m, size=10 * T)]
    cases = {
        "density": rng.standard_normal((10 * T, k, m)) * S[:, None, :],
        "finitely many W of independent columns": again,
        "rank one on each support": again[:, :1] * rng.standard_normal((10 * T, k, 1)),
        "finitely many w, k = 1": again[:, :1]}
    verdicts = {name: metrics.assumptions(np.eye(m), W)["3.5"][0] for name, W in cases.items()}
    words = ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
    yield Claim(
        f"Assumption 3.5 with k = {k} outputs holds for a finite set of W, |S| <= k, but not for k "
        "= 1", words, list(verdicts.values()) == [True, True, False, False])


def variability_bound(m, p, T):
    """Proposition B.7: Assumption 3.6 fails with at most this probability, of supports of T tasks
    that hold each feature with probability p.  [L23]"""
    return np.minimum(1, m * (m - 1) * (1 - p * (1 - p)) ** np.asarray(T, dtype=float))


def variability_violated(rng, m, p, T, trials=400):
    """The same probability, by drawing."""
    drawn = [metrics.supports_are_sufficient(rng.random((T, m)) < p) for _ in range(trials)]
    return 1 - np.mean(drawn)


def support_variability_bound(rng):
    """Proposition B.7.  [L23]"""
    worst, pairs = 0.0, []
    for m, p, T in ((6, 0.5, 10), (6, 0.5, 20), (6, 0.2, 40), (20, 0.5, 25), (20, 0.2, 60)):
        bound, drawn = float(variability_bound(m, p, T)), variability_violated(rng, m, p, T)
        worst = max(worst, drawn - bound)
        pairs.append(f"{drawn:.3f} of {bound:.3f}")
    yield Claim(
        "Prop. B.7: P(Assumption 3.6 fails) <= m(m-1)(1-p(1-p))^T",
        "share of 400 draws, of the bound, within the sampling error: " + ", ".join(pairs),
        worst < 0.03)


# ------------------------------------------------------------------------------ ours


def ridge_under_batch_norm(rng, m, sets=2000, n=50, K=4, eps=0.3):
    """Ours: why a strong inner-Ridge finds independent uniform factors, not Gaussian or Laplace
    ones. eps ||F||_F^2/n is eps m under batch norm."""
    W = rng.standard_normal((sets, K, m))
    W = (W * supports(rng, sets * K, m).reshape(W.shape)).swapaxes(1, 2)    # (sets, m, K)
    noise = 0.1 * rng.standard_normal((sets, n, K))

    def loss(features, y):                                                  # of ridge, under norm
        deviation = features.std(axis=1, keepdims=True)
        F = (features - features.mean(axis=1, keepdims=True)) / deviation
        A = F.swapaxes(1, 2) @ F / n + eps * m * np.eye(m)
        return np.mean((y - F @ np.linalg.solve(A, F.swapaxes(1, 2) @ y / n)) ** 2)

    drawn = {
        "uniform": rng.uniform(-3 ** 0.5, 3 ** 0.5, (sets, n, m)),
        "Gaussian": rng.standard_normal((sets, n, m)),
        "Laplace": rng.laplace(scale=0.5 ** 0.5, size=(sets, n, m))}
    gain = {}
    for name, z in drawn.items():
        y = z @ W + noise
        rotations = [np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(4)]
        rotated = np.mean([loss(z @ rotation, y) for rotation in rotations])
        gain[name] = 100 * (rotated / loss(z, y) - 1)
    words = ", ".join(f"{name} {value:+.2f}" for name, value in gain.items())
    holds = gain["uniform"] > 0.25 > abs(gain["Gaussian"])
    holds = holds and gain["Laplace"] < -0.25
    yield Claim(
        "Ours: batch norm and a strong ridge prefer uniform factors to their rotations, Laplace's "
        "rotations to them",
        f"loss of a rotation, in %: {words}", holds)


# ------------------------------------------------------------------------------ figures


def draw_bound(path):
    """The bound of Proposition B.7 beside what is drawn."""
    fig, axes = plots.subplots(1, 2, (8.5, 3.2))
    rng, T = np.random.default_rng(0), np.arange(2, 81, 6)
    by_m = [(m, 0.5) for m in (3, 6, 12, 24)]
    by_p = [(6, p) for p in (0.1, 0.2, 0.5)]
    for ax, cells in zip(axes, (by_m, by_p), strict=True):
        for k, (m, p) in enumerate(cells):
            ax.plot(T, variability_bound(m, p, T), color=f"C{k}", label=f"m = {m}, p = {p}")
            drawn = [variability_violated(rng, m, p, t) for t in T]
            ax.plot(T, drawn, "o", ms=3, color=f"C{k}")
        ax.set(xlabel="tasks T", ylabel="P(Assumption 3.6 fails)")
        ax.set_title("line: bound of Prop. B.7; dots: drawn")
        ax.legend(fontsize=8)
    plots.save(fig, path)


def draw_fig2(path):
    """[L23, Fig. 2]: three distributions P_W|S of the coefficients of a support of two features,
    and a vector a with w.a = 0 with positive probability, where there is one.

    A density gives every such event probability zero: Assumption 3.5 holds.
    """
    rng = np.random.default_rng(0)
    along = np.array([1, 0.6])
    finite = np.array([[1.2, 1.6], [-1.8, 0.4], [0.6, -1.5], [1.9, -0.3]])
    fig, axes = plots.subplots(1, 3, (9.6, 3.7))
    grid = np.linspace(-3, 3, 121)
    x, y = np.meshgrid(grid, grid)
    axes[0].contour(x, y, x ** 2 - 0.8 * x * y + y ** 2, levels=(0.4, 1.5, 3.5), colors="C3")
    axes[1].plot(*np.outer(along, [-3, 3]), color="C0")
    axes[2].plot(*finite.T, "o", color="C1")
    covariance = [[1, 0.4], [0.4, 1]]
    drawn = {
        "Gaussian, full-rank covariance": rng.multivariate_normal([0, 0], covariance, 300),
        "Gaussian, low-rank covariance": rng.standard_normal((300, 1)) * along,
        "finite support": finite[rng.integers(len(finite), size=300)]}
    for ax, (name, w) in zip(axes, drawn.items(), strict=True):
        holds, _ = metrics.assumptions(rng.standard_normal((50, 2)), w)["3.5"]
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="$w_1$", ylabel="$w_2$")
        ax.set_title(f"{name}\n3.5 {'holds' if holds else 'is violated'}", fontsize=9)
    for ax, w in ((axes[1], along), (axes[2], finite[0])):
        draw_orthogonal(ax, w)
    fig.supxlabel("red: level sets; blue: the support; orange: all points of the support; dotted: "
                  "where w.a = 0, with points of positive probability", fontsize=9)
    plots.save(fig, path)


def draw_orthogonal(ax, w):
    """The vector a orthogonal to w, as an arrow from 0, and a dotted line where w lies."""
    a = np.array([-w[1], w[0]]) / np.linalg.norm(w) * 1.5
    ax.annotate("", a, (0, 0), arrowprops={"arrowstyle": "->", "color": "C2", "lw": 2})
    ax.text(*(1.15 * a), "a", color="C2")
    ax.plot(*np.outer(w, [-3, 3]), ":", color="C2", lw=1)


SUPPORTS = ((0, 1), (1, 2), (0, 2), (3,), (2, 3, 4), (4, 5), (3, 5))  # meets Assumption 3.6, m = 6


def draw_fig3(path):
    """[L23, Fig. 3]: a set of supports, and the verification of Assumption 3.6 for each feature j:
    the union of the supports without j is every other feature."""
    S = np.array([np.isin(np.arange(6), support) for support in SUPPORTS])
    fig, axes = plots.subplots(1, 7, (12, 2.9))
    axes[0].imshow(S.T, cmap="Greys", vmax=1.5, aspect="auto")
    axes[0].set(title="supports $\\mathcal{S}$", xlabel="support", ylabel="feature", xticks=[])
    for j, ax in enumerate(axes[1:]):
        draw_without(ax, S[~S[:, j]], j)
    holds = metrics.supports_are_sufficient(S)
    fig.suptitle(f"Assumption 3.6 {'holds' if holds else 'is violated'}", fontsize=10)
    fig.supxlabel("columns: supports, those without the feature of the red line; right of the blue "
                  "line their union", fontsize=9)
    plots.save(fig, path)


def draw_without(ax, S, j):
    """The supports (columns) without feature j, and after a line their union."""
    union = S.any(axis=0)
    ax.imshow(np.vstack([S, union]).T, cmap="Greys", vmax=1.5, aspect="auto")
    ax.axvline(len(S) - 0.5, color="C0")
    ax.axhline(j, color="C3", lw=1)
    others = np.delete(union, j)
    verdict = "all others" if others.all() else "not all others"
    ax.set(title=f"without {j}", xticks=[], yticks=[], xlabel=f"union: {verdict}")
    ax.xaxis.label.set_size(8)
