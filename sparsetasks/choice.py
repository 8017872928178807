"""choice.py -- of choices in order, the simplest first, which do as well as the best.

The rule by which the number of features, the encoder and the penalties are chosen.
"""
import numpy as np

FOLDS = 5  # of cross-validation


def as_good(losses, slight=0.0):
    """Which choices (c, ...) lose no more than the best by a standard error, or by `slight`.

    losses (c, n, ...), of the same n rows or folds: differences are paired, and their deviation is
    over n, not n - 1.
                                                                 [Hastie et al. 2009, Sec. 7.10]
    """
    best = losses.mean(axis=1).argmin(axis=0)
    more = losses - np.take_along_axis(losses, best[None, None], axis=0)
    error = more.std(axis=1) / losses.shape[1] ** 0.5
    return more.mean(axis=1) <= np.maximum(error, slight)
