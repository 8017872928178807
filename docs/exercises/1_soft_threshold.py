"""Exercise 1: soft thresholding, the proximal operator of tau |x|.

Every Lasso solver is made of it. Find the minimum on x > 0, on x < 0 and at 0, and which of them it
is for which a.
"""
import numpy as np


def soft_threshold(a, tau):
    """argmin_x  (x - a)^2/2 + tau |x|  for each number of a.

    a  an array of any shape, tau >= 0 a number  ->  x, of a's shape

    >>> soft_threshold(np.array([3.0, -1.5, 0.5]), 1.0)
    array([ 2. , -0.5,  0. ])
    """
    raise NotImplementedError
