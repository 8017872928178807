"""Exercise 2: a Lasso by coordinate descent, and a certificate of its solution.

Minimise over one weight at a time, with the others held, until a sweep moves none by more than
1e-10 (the last digits never rest). Then say how far a given w is from the solution, without knowing
it: from the optimality conditions alone. The solution is asked for to 1e-6 of that measure.
"""
import numpy as np


def lasso(F, y, lam):
    """argmin_w  ||y - F w||^2/(2 n) + lam ||w||_1.

    F (n, m) features, y (n,) labels, lam >= 0 a number  ->  w (m,)

    >>> F, y = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([3.0, 1.0])
    >>> lasso(F, y, 0.5)
    array([1.5, 0.5])
    """
    raise NotImplementedError


def lasso_gap(F, y, lam, w):
    """By how much w violates the optimality conditions of lasso, at the worst feature, as a share
    of lambda_max = max_j |F_j'y|/n, the lam from which on w = 0: a number, 0 at the solution only.

    >>> F, y = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([3.0, 1.0])
    >>> float(lasso_gap(F, y, 0.5, np.array([1.5, 0.5])))
    0.0
    >>> float(lasso_gap(F, y, 0.5, np.zeros(2)))
    0.75
    """
    raise NotImplementedError
