"""Exercise 3: the gradient through the solution of a Lasso.

w(F, y, lam) is the solution of exercise 2. A loss L depends on w; dw = dL/dw is given, and the
gradients in what w depends on are asked. On the support S, the features with w_j != 0, the solution
satisfies an equation, with s = sign(w_S):

    F_S'(F_S w_S - y)/n + lam s = 0

Differentiate it, and do not invert what one linear system can tell.
"""
import numpy as np


def lasso_vjp(F, y, lam, w, dw):
    """Pull dw back through the solution w(F, y, lam).

    F (n, m), y (n,), lam a number, w and dw (m,)  ->  dF (n, m), dy (n,), dlam, a number

    >>> F, y = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([3.0, 1.0])
    >>> dF, dy, dlam = lasso_vjp(F, y, 1.5, np.array([0.5, 0.0]), np.array([1.0, 1.0]))
    >>> dF.tolist(), dy.tolist(), float(dlam)
    ([[1.0, 0.0], [0.0, 0.0]], [0.5, 0.5], -1.0)
    """
    raise NotImplementedError
