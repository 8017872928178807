"""Exercise 4: a batch normalisation, backward.

Forward, for each channel of x (N, C):

    mean = sum_i x_i / N        variance = sum_i (x_i - mean)^2 / N
    x_hat = (x - mean)/sqrt(variance + 1e-5)        out = g x_hat + b

Mean and variance are functions of x, too: a change of one sample moves all of out.
Compute in double precision, as x comes: the 1e-5 is asked for.
"""
import numpy as np


def batch_norm_backward(dout, x, g):
    """The gradients of a loss in x, g and b, from that in out.

    dout and x (N, C), g (C,)  ->  dx (N, C), dg (C,), db (C,)

    >>> x, dout = np.array([[0.0], [3.0], [3.0]]), np.array([[0.0], [1.0], [0.0]])
    >>> dx, dg, db = batch_norm_backward(dout, x, np.array([2.0]))
    >>> (dx.round(3) + 0).ravel().tolist(), float(dg[0].round(3)), float(db[0])
    ([0.0, 0.707, -0.707], 0.707, 1.0)
    """
    raise NotImplementedError
