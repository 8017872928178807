"""jax_heads.py -- the Lasso as a function of JAX, with its adjoint.

    w = lasso(F, y, lam)        F (T, n, m), y (T, n), lam (T,) or a number  ->  w (T, m)

The solver runs in NumPy, called back from compiled code; `jit` and `grad` work as usual, tasks are
the batch (no `vmap`). jax.config.update("jax_enable_x64", True): the solver's accuracy is the
gradient's.
"""
import jax
import numpy as np

import solvers
from sparsetasks.unsolved import warn_of_unsolved


def lasso(F, y, lam):
    """w (T, m), the Lasso solution of every task; solvers.lasso."""
    return lasso_of_tasks(F, y, jax.numpy.broadcast_to(lam, F.shape[:1]).astype(F.dtype))


@jax.custom_vjp
def lasso_of_tasks(F, y, lam):
    """The same, with a penalty (T,)."""
    shape = jax.ShapeDtypeStruct((F.shape[0], F.shape[2]), F.dtype)
    return jax.pure_callback(solve, shape, F, y, lam)


def solve(F, y, lam):
    """solvers.lasso on NumPy arrays."""
    w, info = solvers.lasso(*map(np.asarray, (F, y, lam)))
    warn_of_unsolved(info)
    return w


def lasso_forward(F, y, lam):
    """w, and what the backward pass needs."""
    w = lasso_of_tasks(F, y, lam)
    return w, (F, y, lam, w)


def lasso_backward(kept, dw):
    """dF, dy and dlam of dw."""
    F, y, lam, _ = kept
    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (F, y, lam))
    return jax.pure_callback(pull_back, shapes, *kept, dw)


def pull_back(*arrays):
    """dF, dy, dlam of dw: solvers.lasso_vjp."""
    return solvers.lasso_vjp(*map(np.asarray, arrays))


lasso_of_tasks.defvjp(lasso_forward, lasso_backward)
