"""Exercise 5: a convolution, backward.

Forward, with x padded by `pad` zeros on all sides, and rows i and columns j of out:

    out[:, i, j, o] = b[o] + sum_{a, c, channel} x[:, stride i + a, stride j + c, channel]
                                                 W[a, c, channel, o]

Ask of each number of x, W and b: in which numbers of out is it, and times what? Plain loops over i
and j are fine.
"""
import numpy as np


def conv2d_backward(dout, x, W, stride, pad):
    """The gradients of a loss in x, W and b, from that in out.

    dout (N, h, w, O), x (N, H, W, C), W (k, k, C, O), stride and pad whole numbers
      ->  dx (N, H, W, C), dW (k, k, C, O), db (O,)

    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    >>> W = np.array([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    >>> dx, dW, db = conv2d_backward(np.full((1, 1, 1, 1), 2.0), x, W, 1, 0)
    >>> dx.ravel().tolist(), dW.ravel().tolist(), db.tolist()
    ([2.0, 0.0, 0.0, -2.0], [2.0, 4.0, 6.0, 8.0], [2.0])
    """
    raise NotImplementedError
