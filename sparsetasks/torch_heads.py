"""torch_heads.py -- the Lasso and the group-Lasso SVM as layers of PyTorch.

    loss, w = LassoHead(eps=0.3)(F, y)      sparse predictors of T tasks, and their loss

    F (T, n, m)  features, y (T, n) labels, w (T, m) predictors; Y (T, n, k) and W (T, k, m) of k
    classes; lam (T,) or a number, a share eps of its largest, a constant, where it is not given.

Give them double precision: the solver's accuracy is the gradient's. They leave autocast, whose
products are of half precision, and run uncompiled within torch.compile. Other shapes and dtypes are
a ValueError; fits that are not solved, a warning.
"""
import functools

import torch
from torch.autograd.function import once_differentiable

import solvers
from sparsetasks.unsolved import warn_of_unsolved


def exactly(method):
    """A method of tensors, out of autocast and uncompiled."""
    @torch.compiler.disable
    @functools.wraps(method)
    def out_of_autocast(*args, **kwargs):
        given = (*args, *kwargs.values())
        kind = next((a.device.type for a in given if isinstance(a, torch.Tensor)), "cpu")
        with torch.autocast(kind, enabled=False):
            return method(*args, **kwargs)

    return out_of_autocast


def check_tensors(F, y, ndim, n_support=None):
    """Refuse what are no tensors, features of another shape or of half precision, labels of other
    samples, and a support without a query."""
    for name, a in (("F", F), ("y", y)):
        if not isinstance(a, torch.Tensor):
            raise ValueError(f"{name}: found {type(a).__name__}, expected a tensor")
    if F.ndim != 3 or F.dtype not in (torch.float64, torch.float32):
        raise ValueError(f"F: found {tuple(F.shape)} {F.dtype}, expected features (T, n, m) of T "
                         "tasks in single or double precision: F.double()")
    solvers.check_shapes(F.detach(), y.detach(), ndim=ndim)
    if n_support is not None and not 0 < n_support < F.shape[1]:
        raise ValueError(f"n_support: found {n_support}, expected 1 to {F.shape[1] - 1} of "
                         f"{F.shape[1]} samples")


def per_task(lam, F):
    """A penalty, (T,), through which PyTorch differentiates."""
    lam = torch.as_tensor(lam, dtype=F.dtype, device=F.device)
    solvers.per_task(lam.detach(), F.detach())
    return lam.expand(len(F))


class LassoSolution(torch.autograd.Function):
    """w (T, m), the Lasso solution of every task; F (T, n, m), y (T, n), lam (T,)."""

    @staticmethod
    @exactly
    def forward(ctx, F, y, lam):
        w, info = solvers.lasso(F.detach(), y.detach(), lam.detach())
        warn_of_unsolved(info)
        ctx.save_for_backward(F, y, lam, w)
        return w

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx, dw):
        return solvers.lasso_vjp(*(a.detach() for a in ctx.saved_tensors), dw)


class LassoHead(torch.nn.Module):
    """Sparse predictors of T tasks, and their loss: F (T, n, m), y (T, n) -> loss, w (T, m).

    n_support: fit on the first so many samples of a task and score on the others, Problem (7);
    None: fit and score on all, Problem (6). intercept: predict w.F + b with b not penalised, by
    fitting what is centred.                                       [L23, Problems (6), (7)]
    """

    def __init__(self, eps=0.3, n_support=None, intercept=False):
        super().__init__()
        self.eps, self.n_support, self.intercept = eps, n_support, intercept

    @exactly
    def fit(self, F, y, lam=None):
        check_tensors(F, y, 2)
        if lam is None:
            lam = self.eps * solvers.lasso_lambda_max(F.detach(), y.detach())
        return LassoSolution.apply(F, y, per_task(lam, F))

    @exactly
    def forward(self, F, y, lam=None):
        check_tensors(F, y, 2, self.n_support)
        F_fit, y_fit = F[:, :self.n_support], y[:, :self.n_support]
        F_score, y_score = F[:, self.n_support or 0:], y[:, self.n_support or 0:]
        if self.intercept:
            F_mean, y_mean = F_fit.mean(1, keepdim=True), y_fit.mean(1, keepdim=True)
            F_fit, y_fit = F_fit - F_mean, y_fit - y_mean
            F_score, y_score = F_score - F_mean, y_score - y_mean       # b = y_mean - w.F_mean
        w = self.fit(F_fit, y_fit, lam)
        r = y_score - (F_score @ w[..., None])[..., 0]
        return (r ** 2).mean() / 2, w


class RidgeHead(LassoHead):
    """The dense baseline, with a ridge in place of the Lasso; PyTorch differentiates it."""

    @exactly
    def fit(self, F, y, lam=None):
        check_tensors(F, y, 2)
        if lam is None:
            lam = self.eps * solvers.ridge_lambda_max(F.detach())
        lam = per_task(lam, F)
        solvers.check_problem(F.detach(), y.detach(), lam.detach(), ndim=2)
        A = F.mT @ F / F.shape[1]
        A = A + lam[:, None, None] * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return torch.linalg.solve(A, (F.mT @ y[..., None])[..., 0] / F.shape[1])


class SVMSolution(torch.autograd.Function):
    """W (T, k, m) of the group-Lasso multiclass SVM; F (T, n, m), Y (T, n, k) one-hot."""

    @staticmethod
    @exactly
    def forward(ctx, F, Y, lam1, lam2):
        W, Lam, info = solvers.group_svm(F.detach(), Y, lam1.detach(), lam2.detach())
        warn_of_unsolved(info)
        ctx.save_for_backward(F, Y, lam1, lam2, W, Lam)
        return W

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx, dW):
        dF, dlam1, dlam2 = solvers.group_svm_vjp(*ctx.saved_tensors, dW)
        return dF, None, dlam1, dlam2


class SVMHead(torch.nn.Module):
    """Few-shot classes: F (T, n, m), Y (T, n, k), support first -> loss, W (T, k, m).

    The loss is the cross-entropy of the query samples' logits, scaled by a learned factor.
                                                                   [L23, Problem (81), Sec. 5.2]
    """

    def __init__(self, n_support, eps=0.02, lam2=1.0):
        super().__init__()
        self.n_support, self.eps, self.lam2 = n_support, eps, lam2
        self.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    @exactly
    def forward(self, F, Y, lam1=None):
        check_tensors(F, Y, 3, self.n_support)
        F_fit, Y_fit = F[:, :self.n_support], Y[:, :self.n_support]
        if lam1 is None:
            lam1 = self.eps * solvers.svm_lambda_max(F_fit.detach(), Y_fit)
        lam1 = per_task(lam1, F)
        W = SVMSolution.apply(F_fit, Y_fit, lam1, torch.full_like(lam1, self.lam2))
        logits = self.scale * F[:, self.n_support:] @ W.mT
        return -(Y[:, self.n_support:] * logits.log_softmax(2)).sum(2).mean(), W
