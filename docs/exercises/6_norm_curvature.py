"""Exercise 6: the curvature of group Lasso's penalty.

The penalty is lam sum_j ||W_j||, W_j a column of W (k, m): the weights of feature j for k outputs.
Where W_j != 0 its gradient is lam W_j/||W_j||; its curvature is the derivative of that along U.
Where W_j = 0 the column leaves the system, as a zero weight of the Lasso does, and we say 0. A
Lasso's penalty has no curvature: look at k = 1.
"""
import numpy as np


def norm_curvature(W, U, lam):
    """The derivative of the columns lam W_j/||W_j|| along U_j, 0 where W_j = 0.

    W and U (k, m), lam a number  ->  (k, m)

    >>> W, U = np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])
    >>> norm_curvature(W, U, 5.0).round(2).tolist()
    [[0.64, 0.0], [-0.48, 0.0]]
    """
    raise NotImplementedError
