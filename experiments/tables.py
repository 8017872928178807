"""tables.py -- the user's own rows: an npz or a CSV file becomes arrays that fit together.

    x (N, d) or (N, H, W[, C])   a table, or images           Y (N, K)   targets, NaN in gaps
    factors (N, f) or None       to score features against    test (N,)  which rows are held out

Columns of a CSV file are known by their names; every error names the file, the column and the line,
and what to do.
"""
import csv
import difflib
import hashlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsetasks.targets import Targets, some

DELIMITERS = ",;\t|"


class Rows(NamedTuple):
    """What a file holds."""

    x: np.ndarray
    Y: np.ndarray
    known: np.ndarray                                               # (N, K), where Y has labels
    factors: np.ndarray | None
    test: np.ndarray
    names: list                                                     # of targets
    inputs: list                                                    # names of x's columns, or none

    def fingerprint(self):
        """Ten digits that tell this content from any other."""
        digest = hashlib.sha256(repr((self.names, self.inputs)).encode())
        for a in (self.x, self.Y, self.test, self.factors):
            digest.update(f"{np.shape(a)} {getattr(a, 'dtype', '')}".encode())
            digest.update(b"" if a is None else a.tobytes())
        return digest.hexdigest()[:10]


def read_rows(config):
    """The Rows of an npz or a CSV file; config as tasks.TableTasks, whose targets, inputs and drop
    are names of columns. ValueError tells what does not fit."""
    path, classes = Path(config.data), config.likelihood == "categorical"
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    if path.suffix.lower() == ".npz":
        if config.test:
            raise ValueError("--test: of a CSV file; an npz file holds a mask, test")
        found = read_npz(path)
    else:
        names = (words(given) for given in (config.targets, config.inputs, config.drop))
        found = read_csv(path, *names, classes=classes, test=config.test)
    try:
        return checked(found, classes, config.seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_npz(path):
    """The arrays x, Y, factors and test of an npz file, as far as it has them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as npz ({error})") from None
    missing = [name for name in ("x", "Y") if name not in found]
    if missing:
        raise ValueError(
            f"{path}: expected x and Y, found {', '.join(found) or 'nothing'}")
    return {name: found[name] for name in ("x", "Y", "factors", "test") if name in found}


def read_arrays(path, *names):
    """The arrays named of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except Exception as error:
        expected = " and ".join(names)
        raise ValueError(f"{path}: expected an npz file with {expected} ({error!r})") from None


def checked(found, classes, seed):
    """Rows, of arrays that fit together; a fifth of the rows is held out where test is missing."""
    x, Y = found["x"], found["Y"]
    N = len(x) if x.ndim else 0
    Y = Y[:, None] if Y.ndim == 1 else Y
    if x.ndim not in (2, 3, 4) or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(f"x: found {x.shape} {x.dtype}, expected numbers (N, d) or (N, H, W[, C])")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        raise ValueError(f"x: row {bad[0][0]}, column {bad[0][1]} is not finite")
    if Y.ndim != 2 or len(Y) != N or Y.dtype.kind not in "biufU":
        raise ValueError(f"Y: found {Y.shape} {Y.dtype}, expected numbers ({N}, K)")
    names = found.get("names") or [f"target {k}" for k in range(Y.shape[1])]
    known = checked_targets(Y, names, classes).known
    factors, test = checked_factors(found.get("factors"), N), checked_test(found, N, seed)
    for k, name in enumerate(names):
        counts = [np.count_nonzero(known[rows, k]) for rows in (~test, test)]
        if min(counts) < 2:
            raise ValueError(
                f"{name}: {counts[0]} labels to train on and {counts[1]} held out, expected 2 or "
                "more: leave it out, or hold out other rows (test)")
    return Rows(x, Y, known, factors, test, list(names), list(found.get("inputs", ())))


def checked_targets(Y, names, classes, where=""):
    """Targets of Y (N, K); ValueError names the one whose values are none."""
    try:
        return Targets(Y, "categorical" if classes else "gaussian", least=1)
    except ValueError as error:
        told = re.sub(r"Y: column (\d+)", lambda found: names[int(found[1])], str(error))
        raise ValueError(f"{where}{told}") from None


def checked_factors(factors, N):
    """Finite factors (N, f), or None."""
    if factors is not None:
        fits = factors.ndim == 2 and len(factors) == N and factors.dtype.kind in "biuf"
        if not fits or not np.isfinite(factors).all():
            raise ValueError(f"factors: found {factors.shape}, expected finite numbers ({N}, f)")
    return factors


def checked_test(found, N, seed):
    """The mask of the rows held out: that of the file, or a fifth at random."""
    test = found.get("test")
    if test is None:
        test = np.random.default_rng(seed).permutation(N) < N / 5
    fits = test.shape == (N,) and test.dtype.kind in "biuf" and np.isin(test, (0, 1)).all()
    if not fits or not 0 < np.count_nonzero(test) < N:
        raise ValueError(
            f"test: found {test.shape} {test.dtype}, expected True or False ({N},), both of them")
    return test.astype(bool)


# ------------------------------------------------------------------------------ CSV


def words(names):
    """Names that were given with spaces or commas between them; quotes keep a comma."""
    try:
        cells = [cell.strip() for word in names for cell in next(csv.reader([word], strict=True))]
    except csv.Error as error:
        raise ValueError(f"names of columns: found {' '.join(names)} ({error})") from None
    return [cell for cell in cells if cell]                         # "y1, y2": a comma and a space


def read_csv(path, targets, inputs=(), drop=(), classes=False, test=""):
    """x, Y, and names of both, of the columns named of a CSV file, and test where one is named;
    inputs: all others, when not given. Columns that are left out are printed."""
    table = Table(path)
    if not targets:
        raise ValueError(f"{path}: --targets is needed: names of its columns; {some(table.names)}")
    masks = [test] if test else []
    for flag, names in (("targets", targets), ("inputs", inputs), ("drop", drop), ("test", masks)):
        table.check(names, flag)
    targets = [name for name in targets if name not in (*drop, *masks)]
    named = [name for name in table.names if name]                  # not pandas' row numbers
    inputs = [name for name in inputs or named if name not in (*targets, *drop, *masks)]
    for left, role in ((targets, "a target"), (inputs, "an input")):
        if not left:
            raise ValueError(f"{path}: no column is left as {role}")
    table.tell_left_out((*targets, *inputs, *masks))
    read = table.classes if classes else table.targets
    found = {"x": table.columns(inputs), "Y": read(targets), "inputs": inputs, "names": targets}
    return found | ({"test": table.columns(masks)[:, 0]} if test else {})


def read_inputs(path, names):
    """x (N, d) of the columns named, in that order, whatever else a CSV file holds."""
    table = Table(path)
    table.check(names, "inputs")
    table.tell_left_out(names)
    return table.columns(names)


class Table:
    """The cells of a CSV file with a line of names first, whatever its delimiter is."""

    def __init__(self, path):
        self.path = path
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                delimiter = delimiter_of(file.readline())
                file.seek(0)
                reader = csv.reader(file, delimiter=delimiter)
                self.names = [name.strip() for name in next(reader, [])]
                self.lines = [(reader.line_num, line) for line in reader if line]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: cannot be read as CSV ({error})") from None
        named = [name for name in self.names if name]
        twice = [name for name in named if named.count(name) > 1]
        if twice or not self.lines:
            told = f"two columns {twice[0]!r}" if twice else "no rows"
            raise ValueError(f"{path}: {told}")
        if named and all(map(is_number, named)):
            raise ValueError(f"{path}: line 1: found numbers, expected the columns' names")
        for number, line in self.lines:
            if len(line) != len(self.names):
                raise ValueError(f"{path}: line {number}: found {len(line)} cells, expected "
                                 f"{len(self.names)}, as in its first line")

    def check(self, names, flag):
        """ValueError for a name that is no column, or is given twice."""
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self.path}: {name} is given twice (--{flag})")
            if name not in self.names:
                close = difflib.get_close_matches(name, self.names, n=1)
                told = f"did you mean {close[0]}?" if close else some(self.names)
                raise ValueError(f"{self.path}: no column {name} (--{flag}); {told}")

    def tell_left_out(self, used):
        """Print the columns that are not used."""
        left = [name or f"column {i}, which has no name" for i, name in enumerate(self.names, 1)
                if name not in used]
        if left:
            print(f"{self.path}: left out: {some(left)}")

    def columns(self, names, gaps=False):
        """Numbers (N, len(names)); gaps: an empty cell is NaN."""
        found = np.empty((len(self.lines), len(names)))
        for j, name in enumerate(names):
            at = self.names.index(name)
            for i, (number, line) in enumerate(self.lines):
                found[i, j] = self.number(line[at].strip(), name, number, gaps)
        return found

    def targets(self, names):
        """Real targets (N, K), NaN where a cell is empty."""
        return self.columns(names, gaps=True)

    def classes(self, names):
        """Classes (N, K): numbers, or texts where one is none; gaps are as those of targets, and in
        a column of numbers beside texts negative ones, too. Words that are gaps are printed."""
        places = [self.names.index(name) for name in names]
        cells = np.array([[line[at].strip() for at in places] for _, line in self.lines])
        gaps = np.isin(np.char.lower(cells), GAPS)
        gone = sorted(set(cells[gaps].tolist()) - {""})
        if gone:
            print(f"{self.path}: taken as missing labels: {', '.join(gone)}")
        cells[gaps] = ""
        of_numbers = [all(map(is_exact, column[column != ""])) for column in cells.T]
        if all(of_numbers):
            return self.targets(names)
        for name in itertools.compress(names, of_numbers):
            checked_targets(self.targets([name]), [name], True, f"{self.path}: ")
        texts = [[as_class(cell) if number else cell for cell in column]
                 for number, column in zip(of_numbers, cells.T, strict=True)]
        return np.array(texts).T

    def number(self, cell, name, line, gaps):
        """The finite number of a cell, or NaN; ValueError tells a remedy."""
        if is_number(cell):
            return float(cell)
        if gaps and cell.lower() in GAPS:
            return np.nan
        raise ValueError(
            f"{self.path}: column {name}, line {line}: found {cell!r}, expected a number: "
            f"{remedy(cell, name, gaps)}")


GAPS = ("", "na", "nan", "none", "null", "n/a", "#n/a", "<na>")


def as_class(cell):
    """A number as the text of a class, which is the same for 1 and 1.0; "" of a negative one."""
    if cell == "" or float(cell) < 0:
        return ""
    return str(int(float(cell))) if float(cell) % 1 == 0 else cell


def is_number(cell):
    """Whether a cell holds a finite number; 3_12, which Python reads as one, is a text."""
    try:
        return "_" not in cell and bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def is_exact(cell):
    """Whether a cell holds a number that is not rounded, as long codes would be."""
    return is_number(cell) and abs(float(cell)) < 2 ** 53


def remedy(cell, name, gaps):
    """What to do about a cell that is no number."""
    if cell.lower() in GAPS:
        return f"fill it, leave its row out, or --drop {name}"
    if is_number(cell.replace(",", ".")):
        return "write decimal points"
    return f"code it as numbers, {'leave the cell empty, ' if gaps else ''}or --drop {name}"


def delimiter_of(line):
    """The one of DELIMITERS that makes most cells of the names' line."""
    return max(DELIMITERS, key=lambda d: len(next(csv.reader([line], delimiter=d), ())))
