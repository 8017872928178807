"""Exercise 8: a rotation that makes tasks' weights sparse.

Each row of W (T, m) holds a task's weights on m features. The features are an unknown rotation of
the factors, on which every task's weights are sparse: W = S Q', with S sparse. Find Q from W alone.
Any way will do: turn one pair of columns at a time to lower the sum of |W Q|, or take gradient
steps and make Q orthogonal again, by its singular value decomposition. There are local optima. The
directions are asked for to 2.5 degrees.
"""
import numpy as np


def sparse_basis(W):
    """Q (m, m), orthogonal, with W Q as sparse as can be; columns in any order, of any sign.

    >>> W = np.array([[1.0, 1.0], [1.0, -1.0], [2.0, 2.0], [3.0, -3.0]])
    >>> int((np.abs(W @ sparse_basis(W)) > 1e-3).sum())
    4
    """
    raise NotImplementedError
