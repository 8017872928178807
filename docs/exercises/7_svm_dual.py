"""Exercise 7: the multiclass SVM with group Lasso, from its dual.

n samples F (n, m), k classes Y (n, k), one-hot. For each sample a row of Lam (n, k), in the
simplex: no number below 0, and they sum to 1. With V = (Y - Lam)'F (k, m):

    min_W    P = sum_i max_l (1 - Y_il + (W_l - W_{y_i}) . F_i)
                 + lam1 sum_j ||W_j|| + lam2/2 ||W||^2
    min_Lam  D = 1/(2 lam2) sum_j (||V_j|| - lam1)_+^2 + <Y, Lam>             min P = n - min D

W_l is the row of a class, W_j and V_j the columns of a feature. solvers.project_simplex(a) is the
nearest point of the simplex to each row of a.
"""
import numpy as np

from solvers import project_simplex as project_simplex  # for step


def weights(F, Y, Lam, lam1, lam2):
    """The W that belongs to Lam: the minimum over W of
    lam1 sum_j ||W_j|| + lam2/2 ||W||^2 - <V, W>,  (k, m).

    >>> F, Y = np.array([[1.0], [-1.0]]), np.eye(2)
    >>> weights(F, Y, np.full((2, 2), 0.5), 0.0, 2.0).ravel().tolist()
    [0.5, -0.5]
    """
    raise NotImplementedError


def step(F, Y, Lam, lam1, lam2):
    """Lam after one projected gradient step that lowers D; repeated, it ends at the minimum.

    The gradient of D in Lam is Y - F W' (show it), and its curvature at most ||F||^2/lam2, with the
    largest singular value ||F||.
    """
    raise NotImplementedError


def gap(F, Y, Lam, lam1, lam2):
    """P(W) + D(Lam) - n for the W that belongs to Lam: 0 at the solution only.

    >>> F, Y = np.array([[1.0], [-1.0]]), np.eye(2)
    >>> float(gap(F, Y, Y, 0.0, 2.0)), float(gap(F, Y, np.full((2, 2), 0.5), 0.0, 2.0))
    (2.0, 0.0)
    """
    raise NotImplementedError
