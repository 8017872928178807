"""targets.py -- targets Y (N, K) of rows, some missing: as given, as numbers, as heads take them.

    N, K        rows, targets            k        classes, the most that a target has
    known       (N, K)  no gap           codes    (N, K) which of its classes a row is, -1 in gaps
    columns     (N, C)  of mean 0 and variance 1, NaN in gaps: real targets, C = K; or one for each
                        class of two rows or more of each target; of two, one where both have
    labels      (N, K), columns with 0 in gaps, or (N, K, k), one-hot: what a head is fitted to
"""
import functools
import numbers
import sys

import numpy as np

FEW = 5  # rows of a class from where on it is fitted
ROUNDING = 1e-14  # of a column's values
AT_ONCE = 10 ** 7  # values of which there is a copy in double precision
SHOWN = 8  # names in a message


class Targets:
    """The targets of fit; classes: what predict tells of each target, None where it is real.

    Raises ValueError where Y is none.
    """

    def __init__(self, Y, likelihood="gaussian", least=2):
        if np.ma.isMaskedArray(Y):
            nothing = None if Y.dtype.kind in "USO" else np.nan
            Y = np.where(np.ma.getmaskarray(Y), nothing, Y.data)
        Y = array_of(Y)
        self.one = Y.ndim == 1
        Y = Y[:, None] if self.one else Y
        if Y.ndim != 2 or Y.shape[1] == 0:
            raise ValueError(f"Y: found {Y.shape}, expected (N, K) or (N,)")
        self.Y, self.classes = Y, None
        if likelihood == "categorical":
            self.classes, self.codes = coded(Y)
            self.known = self.codes >= 0
        else:
            self.Y = checked_numbers(Y)
            self.known = np.isfinite(self.Y)
        self.negative = count_negative(Y) if self.classes else 0
        if self.negative and least:
            refuse_signs(Y, self.classes)
        poor = np.flatnonzero(self.known.sum(axis=0) < least)
        if len(poor):
            raise ValueError(f"Y: column {poor[0]} has fewer than {least} labels")

    @functools.cached_property
    def columns(self):
        if self.classes is None:
            return standardised(self.Y)
        found = []
        for k, names in enumerate(self.classes):
            code, on = self.codes[:, k], self.known[:, k]
            count = np.bincount(code[on], minlength=len(names))
            own = np.flatnonzero(count > 1)
            if len(names) == 2:                                     # one tells the other
                own = own[1:]
            found += [np.where(on, code == c, np.nan) for c in own]
        if not found:
            raise ValueError("Y: no target has two classes of two rows")
        return standardised(np.stack(found, axis=1))

    @property
    def labels(self):
        if self.classes is None:
            return np.nan_to_num(standardised(self.Y))
        return np.eye(self.most)[np.maximum(self.codes, 0)]

    @property
    def most(self):
        """k, 2 or more."""
        return max(2, *map(len, self.classes))


def array_of(Y):
    """Y as an array: a list's numbers, None and NaN beside texts stay what they are, and gaps of
    pandas, of which there are many kinds, are NaN."""
    found, pandas = np.asarray(Y), sys.modules.get("pandas")
    if found.dtype.kind == "U" and not hasattr(Y, "dtype"):
        found = np.array(Y, dtype=object)
    if found.dtype == object and pandas:                            # else there are none of these
        found = np.where(pandas.isna(found), np.nan, found)
    return found


def checked_numbers(Y):
    """Y (N, K) as floating point numbers, NaN where missing."""
    if Y.dtype.kind in "cmM":                                       # dates: NaT would be a number
        raise ValueError(f"Y: found {Y.dtype}, expected real numbers")
    try:
        Y = Y.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"Y: found {Y.dtype}, expected numbers (classes: likelihood='categorical')"
                         ) from None
    if np.isinf(Y).any():
        raise ValueError("Y: found infinity")
    return Y


def coded(Y):
    """The classes of each target, sorted, and codes (N, K); missing are negative numbers, NaN,
    None and empty texts."""
    classes, codes = [], np.full(Y.shape, -1)
    for k, column in enumerate(Y.T):
        values = column.tolist()
        if any(isinstance(v, numbers.Real) and v == v and v % 1 != 0 for v in values):
            raise ValueError(f"Y: column {k} has numbers that are no classes 0, 1, ...")
        try:
            there = np.flatnonzero([is_class(value) for value in values])
            names, codes[there, k] = np.unique(column[there], return_inverse=True)
        except TypeError:
            raise ValueError(f"Y: column {k} has classes that are neither all numbers nor all texts"
                             ) from None
        classes.append(names)
    return classes, codes


def count_negative(Y):
    """How many labels are negative numbers."""
    return sum(isinstance(v, numbers.Real) and v < 0 for v in Y.ravel().tolist())


def refuse_signs(Y, classes):
    """ValueError where classes are -1 and 1: as a negative number is a gap, one would be left."""
    for k, (names, column) in enumerate(zip(classes, Y.T, strict=True)):
        if len(names) == 1 and count_negative(column):
            raise ValueError(f"Y: column {k} has the class {names[0]} alone, for negative numbers "
                             "are missing ones: code classes from 0, or as texts")


def class_name(value):
    """A class as it is written: 1 for 1.0."""
    return f"{value:.0f}" if isinstance(value, numbers.Real) else str(value)


def some(names):
    """The first names of many, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def is_class(value):
    """Whether a value names a class, and is not missing."""
    if isinstance(value, str):
        return value != ""
    return value is not None and value >= 0                         # NaN is not


def standardised(Y):
    """Columns of mean 0 and variance 1 over what is known; constant ones 0."""
    with np.errstate(all="ignore"):
        mean, scale = mean_and_scale(Y)
    return (Y - mean) / scale


def mean_and_scale(X):
    """Mean and deviation, NaN left out, of each column or channel; of a constant one, whose largest
    and smallest values are equal but for rounding, its value and 1. As metrics.moments, in any
    units."""
    axes, parts = tuple(range(X.ndim - 1)), np.array_split(X, 1 + X.size // AT_ONCE)
    lows, highs, counts = zip(*(range_of(part, axes) for part in parts), strict=True)
    low, high, n = np.min(lows, axis=0), np.max(highs, axis=0), np.maximum(sum(counts), 1)
    low, high = (np.where(np.isfinite(a), a, 0) for a in (low, high))           # 0: all is missing
    varied = varies(low, high)
    width = np.where(varied, high - low, 1)

    def mean_of(power, centre):                                     # of values as shares of width
        shares = ((part.astype(np.float64) - low) / width - centre for part in parts)
        return sum(np.nansum(share ** power, axis=axes) for share in shares) / n

    mean = mean_of(1, 0)
    return low + width * mean, np.where(varied, width * np.sqrt(mean_of(2, mean)), 1)


def varies(low, high, rounding=ROUNDING):
    """Whether smallest and largest values differ by more than rounding, a share of the larger."""
    return high - low > rounding * np.maximum(np.abs(low), np.abs(high))


def range_of(X, axes):
    """The smallest and the largest value over some axes, and how many are known."""
    X = X.astype(np.float64)
    known = np.isfinite(X)
    low = np.min(X, axis=axes, where=known, initial=np.inf)
    high = np.max(X, axis=axes, where=known, initial=-np.inf)
    return low, high, known.sum(axis=axes)
