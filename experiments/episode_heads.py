"""episode_heads.py -- how the classifiers of few-shot episodes are fitted.         [L23, Sec. 5.2]

    F (T, n, m)  features of T episodes, support samples first     n_support  how many those are
    Y (T, n, k)  one-hot labels, k = 5                              W (T, k, m)  classifiers
    Z (T, n - n_support, k)  scores of the query samples
    params       what a head learns: "scale" (), a factor of the scores (Lee et al. 2019); svm also
                 "log_lam1" and "log_lam2" ()

    head(F, Y, lam, n_support, params, smoothing=0.0, fit_only=False) -> loss, dF, dparams, info

The loss is the cross-entropy of the query samples, with smoothed labels; lam as the head takes it.
fit_only: for evaluation, without the adjoint; dF is None, and info has W as "w" and Z as "scores".
sharing_episode, [F23]'s, fits its tasks jointly.

[L23] Lachapelle et al., ICML 2023.   [F23] Fumero et al., NeurIPS 2023 (our reading).
"""
import functools

from array_api_compat import array_namespace, device

import solvers
from experiments.sharing_solver import sparse_sharing, sparse_sharing_vjp
from sparsedis import Outer, bilevel, class_loss, features_only, score_loss


def svm_episode(F, Y, lam, n_support, params, smoothing=0.0, fit_only=False):
    """argmin_W sum_i hinge_i(W) + lam1 sum_j ||W_j|| + lam2/2 ||W||^2, the group-Lasso multiclass
    SVM of solvers.group_svm; lam = (lam1, lam2), lam1 = 0 is the SVM of MetaOptNet.

    A sum over samples as in (81), where ridge and logistic take the mean. If params holds
    "log_lam1" or "log_lam2", lam1 and lam2 are multiplied by their exponentials, which are learned.
                                                                   [L23, Problem (81), Sec. 5.2]
    """
    xp = array_namespace(F)
    names = ("log_lam1", "log_lam2")
    zero = xp.zeros(F.shape[0], dtype=F.dtype, device=device(F))
    factors = [xp.exp(params.get(name, zero)) for name in names]
    lams = [a * factor + zero for a, factor in zip(lam, factors, strict=True)]

    def fit(F, Y, lams):
        W, Lam, info = solvers.group_svm(F, Y, *lams)
        return W, {"Lam": Lam, **info}

    def fit_vjp(F, Y, lams, W, dW, info):
        dF, *dlams = solvers.group_svm_vjp(F, Y, *lams, W, info["Lam"], dW)
        solved = info["converged"]
        dlog = {name: xp.sum(xp.where(solved, d * a, 0))
                for name, d, a in zip(names, dlams, lams, strict=True)}
        return dF, {name: dlog[name] for name in names if name in params}

    fit_vjp = None if fit_only else fit_vjp
    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lams, n_support)


# ------------------------------------------------------------------------------ ridge


def ridge_episode(F, Y, lam, n_support, params, smoothing=0.0, fit_only=False):
    """Ridge regression on the one-hot labels, lam a number or (T,).   [Bertinetto et al. 2019]"""
    def fit(F, Y, lam):
        return ridge_classes(F, Y, lam), {}

    fit_vjp = None if fit_only else features_only(ridge_classes_vjp)
    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


def ridge_classes(F, Y, lam):
    """argmin_W (1/n) sum_i 1/2 ||W F_i - Y_i||^2 + lam/2 ||W||^2, lam > 0.

    Of n <= m samples from its dual, W = a'F with (F F'/n + lam I) a = Y/n; of more, where F F' is
    singular, class by class as solvers.ridge. F (T, n, m), Y (T, n, k), lam a number or (T,)  ->
    W (T, k, m). Raises ValueError as check_problem does, and for lam = 0.
                                                                     [docs/derivations.md, 3]
    """
    F, Y, lam = solvers.check_problem(F, Y, lam, ndim=3)
    xp, (_, n, m) = array_namespace(F), F.shape
    if not bool(xp.all(lam > 0)):
        raise ValueError("lam: found 0, expected a positive number")
    if n > m:
        return xp.stack([solvers.ridge(F, y, lam) for y in xp.unstack(Y, axis=2)], axis=1)
    a = ridge_dual(F, lam, Y / F.shape[1])
    return a.mT @ F


def ridge_dual(F, lam, rhs):
    """B^-1 rhs, (T, n, k), with B = F F'/n + lam I."""
    xp, n = array_namespace(F), F.shape[1]
    B = F @ F.mT / n + lam[:, None, None] * solvers.identity(n, F)
    return xp.linalg.solve(B, rhs)


def ridge_classes_vjp(F, Y, lam, W, dW):
    """Pull dW back through W = a'F, with B a = Y/n, B = F F'/n + lam I.  [docs/derivations.md, 3]

    (Of n > m samples class by class, as solvers.ridge_vjp.)
      0. directly    dF = a dW
      1. curvature   B
      2. adjoint     B u = F dW'
      3. pull back   dF -= (u (a'F) + a (u'F))/n

    Returns (dF,).
    """
    F, Y, lam = solvers.check_shapes(F, Y, lam, ndim=3)
    _, n, m = F.shape
    if n > m:
        parts = [solvers.ridge_vjp(F, Y[..., l], lam, W[:, l, :], dW[:, l, :])[0]
                 for l in range(Y.shape[2])]
        return (sum(parts),)
    # 0 directly
    a = ridge_dual(F, lam, Y / n)                                   # (T, n, k)
    dF = a @ dW
    # 1 curvature, 2 adjoint
    u = ridge_dual(F, lam, F @ dW.mT)                               # (T, n, k)
    # 3 pull back
    through_a = u @ (a.mT @ F) + a @ (u.mT @ F)
    return (dF - through_a / n,)


# ------------------------------------------------------------------------------ prototypes


def prototypes_episode(F, Y, lam, n_support, params, smoothing=0.0, fit_only=False):
    """Prototypical networks: W_l is the mean of class l's support samples.   [Snell et al. 2017]

    The scores are -||F_i - W_l||^2 / m, times params["scale"], which is needed; lam is not used.
    """
    fit_vjp = None if fit_only else class_means_vjp
    return bilevel(
        class_means, fit_vjp, distance_loss(params["scale"], smoothing), F, Y, lam, n_support)


def class_means(F, Y, lam):
    """W_l, the mean of class l, (T, k, m)."""
    return class_shares(Y).mT @ F, {}


def class_means_vjp(F, Y, lam, W, dW, info):
    """dF_i = dW_l / (size of class l)."""
    return class_shares(Y) @ dW, {}


def class_shares(Y):
    """Y (T, n, k) one-hot -> the share of each sample in its class's mean; ValueError where a
    class has none."""
    xp = array_namespace(Y)
    sizes = xp.sum(Y, axis=1, keepdims=True)
    if bool(xp.any(sizes == 0)):
        raise ValueError("prototypes: found a class without support samples")
    return Y / sizes


def distance_loss(scale, smoothing):
    """The outer loss of the scores -scale ||F_i - W_l||^2 / m."""
    def outer_loss(F, Y, W):
        xp, m = array_namespace(F), F.shape[2]
        sizes_F, sizes_W = xp.sum(F * F, axis=2), xp.sum(W * W, axis=2)
        Z = 2 * solvers.scores(F, W) - sizes_W[:, None, :] - sizes_F[..., None]
        Z = Z / m                                                   # -||F_i - W_l||^2/m, (T, n, k)
        loss, dZ = score_loss(scale * Z, Y, smoothing)
        dscale = xp.sum(dZ * Z)
        dZ = 2 * scale / m * dZ
        dW = dZ.mT @ F - xp.sum(dZ, axis=1)[..., None] * W
        dF = dZ @ W                                                 # rows of dZ sum to 0
        return Outer(loss, dF, dW, {"scale": dscale}, Z)

    return outer_loss


# ------------------------------------------------------------------------------ group Lasso


def logistic_episode(F, Y, lam, n_support, params, smoothing=0.0, fit_only=False):
    """Group-Lasso logistic regression of at most 200 iterations, lam a number or (T,)."""
    fit = functools.partial(solvers.group_lasso, loss="logistic", max_iter=200)
    vjp = features_only(functools.partial(solvers.group_lasso_vjp, loss="logistic"))
    fit_vjp = None if fit_only else vjp
    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


EPISODE_HEADS = {"svm": svm_episode, "ridge": ridge_episode, "logistic": logistic_episode,
                 "prototypes": prototypes_episode}

# ------------------------------------------------------------------------------ sharing heads


def sharing_episode(F, Y, lam, n_support, params=None, smoothing=0.0, one_step=False):
    """Sparse heads of binary tasks fitted jointly, which share features; Y (T, n, 1) of 0 and 1.

    lam = (alpha, beta), the weights of the L1 norm and of the entropy. one_step: the inexact
    adjoint of sparse_sharing_vjp. Not in EPISODE_HEADS: its tasks share one fit.
                                                                        [F23, our reading]
    """
    def fit(F, Y, lam):
        return sparse_sharing(F, Y, *lam)

    def fit_vjp(F, Y, lam, phi, dphi, info):
        return sparse_sharing_vjp(F, Y, *lam, phi, dphi, one_step)[0], {}

    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


# ------------------------------------------------------------------------------ the objective


def episode_objective(head, lam, smoothing=0.0):
    """Few-shot episodes, Y (T, n, k), on two batches, support and query images.  [L23, Sec. 5.2]

    lam(F_support, Y_support) -> the head's lam, a constant of the differentiation. Features are not
    normalised here: the encoders' batch norms set their scale. A head's own parameters are named
    "head.NAME". An objective as of sparsedis.train.
    """
    def objective(progress, batches, Y, params):
        xp, T = array_namespace(Y), Y.shape[0]
        parts = [xp.reshape(features, (T, features.shape[0] // T, -1)) for features in batches]
        n_support = parts[0].shape[1]
        F = xp.concat(parts, axis=1)                                # (T, n, m), support first
        own = {name: xp.astype(a, F.dtype) for name, a in head_params(params).items()}
        lams = lam(parts[0], Y[:, :n_support, :])
        loss, dF, dparams, info = EPISODE_HEADS[head](F, Y, lams, n_support, own, smoothing)
        dparts = dF[:, :n_support, :], dF[:, n_support:, :]
        dbatches = [xp.reshape(d, a.shape) for d, a in zip(dparts, batches, strict=True)]
        return loss, dbatches, {f"head.{name}": g for name, g in dparams.items()}, info

    return objective


def head_params(params):
    """The parameters of the head, without their prefix."""
    own = {name: a for name, a in params.items() if name.startswith("head.")}
    return {name.removeprefix("head."): a for name, a in own.items()}
