"""quote.py -- the numbers that the pages quote: each from a table beside them, or from the papers.

    python docs/quote.py      writes the tables' numbers into the pages, lists what has no source

    0.962 ± 0.001<!-- main-quick.csv head=inner-lasso rho=0.9 eps=0.3 mcc mean±sd .3f -->
        settings of a table's rows (a/b: of either; a|b: a number for each), a column (a_*: the mean
        of all that begin so), a statistic over the rows (correlation: of two columns, a~b), and a
        format, of a percentage without its sign
    <!-- rows real-tables.csv -->
        before a table: its decimals are cells of the same row of the CSV, rounded
    0.79<!-- L23, Fig. 14 -->
        a number of the papers, and its place
    <!-- timings -->
        before a table or a paragraph of ratios of times, or behind one

Code, formulas, quotations, settings, durations and references to the papers need no source.
"""
import csv
import functools
import itertools
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NUMBER = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
QUOTED = re.compile(r"<!-- (?P<table>\S+\.csv) (?P<words>\S.*?) -->")
ROWS = re.compile(r"<!-- rows (\S+\.csv) -->\n\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)")
DECIMAL = re.compile(r"[-+]?\d+\.\d+")

# ------------------------------------------------------------------------------ from tables


def best(values, seeds):
    """The largest value of each seed."""
    return [max(v for v, own in zip(values, seeds, strict=True) if own == seed)
            for seed in dict.fromkeys(seeds)]


def spread(values):
    """The sample deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


STATISTICS = {
    "mean": lambda values: [statistics.fmean(values)], "sd": lambda values: [spread(values)],
    "mean±sd": lambda values: [statistics.fmean(values), spread(values)],
    "min": lambda values: [min(values)], "max": lambda values: [max(values)],
    "range": lambda values: [min(values), max(values)], "count": lambda values: [len(values)],
    "each": list}
BETWEEN = {"mean±sd": " ± ", "range": " to ", "each": ", "}


@functools.cache
def read(table):
    """The rows of a table of docs/, as texts."""
    with open(ROOT / "docs" / table, newline="") as file:
        return rows_of(file)


def rows_of(lines):
    """The rows of a CSV, as texts by its first line."""
    return list(csv.DictReader(lines))


def same(text, wanted):
    """Whether a cell is one of what is asked for, a/b, as a number where it is one."""
    def alike(a, b):
        return float(a) == float(b) if is_number(a) and is_number(b) else a == b

    return any(alike(text, one) for one in wanted.split("/"))


def quoted(table, words):
    """The text that a comment asks for."""
    *settings, columns, statistic, form = words.split()
    wanted = dict(word.split("=", 1) for word in settings)
    choices = [value.split("|") for value in (*wanted.values(), columns)]
    told = []
    for *values, column in itertools.product(*choices):
        cell = dict(zip(wanted, values, strict=True))
        told.append(of_rows(table, cell, column, statistic, form))
    return ", ".join(told)


def of_rows(table, cell, column, statistic, form):
    """A statistic of a column over the rows of a cell, as text."""
    inside = [row for row in read(table) if all(same(row[key], cell[key]) for key in cell)]
    columns = column.split("~")
    inside = [row for row in inside if all(cells_of(row, name) for name in columns)]
    if not inside:
        raise ValueError(f"{table}: no row with {cell} and a {column}")
    values, *others = ([statistics.fmean(cells_of(row, name)) for row in inside]
                       for name in columns)
    if statistic == "correlation":
        return format(statistics.correlation(values, *others), form)
    if statistic.startswith("best"):
        values = best(values, [row["seed"] for row in inside])
        statistic = statistic.replace("best", "mean")
    found = [format(value, form).replace("%", "") for value in STATISTICS[statistic](values)]
    return BETWEEN.get(statistic, "").join(found)


def cells_of(row, name):
    """The numbers of a column, or of all whose names begin as a_* does, but for empty cells."""
    names = [key for key in row if key.startswith(name[:-1])] if name.endswith("_*") else [name]
    return [float(row[key]) for key in names if row[key]]


def requoted(text, instead=None):
    """A page with the numbers of its tables, and what stands before a comment that is none.

    instead: what to put where these numbers stand, in place of them."""
    parts, end, wrong = [], 0, []
    for match in QUOTED.finditer(text):
        before, old, told = text[end:match.start()], None, ""
        try:
            told = quoted(match["table"], match["words"])
            alike = NUMBER.join(map(re.escape, re.split(NUMBER, told))) + r"\Z"
            old = re.search(alike, before)
            found = f"{before[-40:]!r}: expected {told}"
        except (OSError, KeyError, ValueError) as error:
            found = f"{match.group()}: {error!r}"
        wrong += [found] if old is None else []
        new = told if instead is None else instead
        parts += [before[:old.start()] + new if old else before, match.group()]
        end = match.end()
    return "".join([*parts, text[end:]]), wrong


def unlike_their_rows(text):
    """The decimals of tables after `rows` comments that are no cells of their row, rounded."""
    wrong = []
    for table, body in ROWS.findall(text):
        for line, row in itertools.zip_longest(body.splitlines(), read(table)):
            if line is None or row is None:
                wrong.append(f"{table}: {'a row' if line is None else line} stands alone")
                continue
            cells = [float(cell) for cell in row.values() if is_number(cell)]
            for number in DECIMAL.findall(line):
                digits = len(number.split(".")[1])
                if not any(float(number) == round(cell, digits) for cell in cells):
                    wrong.append(f"{table}: {number} in {line}")
    return wrong


def is_number(text):
    """Whether a cell is one."""
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text or "") is not None


# ------------------------------------------------------------------------------ without a source

MANY = rf"{NUMBER}(?:(?:, | ± | and | or | to |\|){NUMBER})*(?: %)?"
PLACES = (
    "Secs?|Apps?|Sections?|Assumptions?|Theorems?|Props?|Propositions?|Lemmas?|Defs?|Definition|"
    "Figs?|Problems?|Python|NumPy|arXiv")
SETTINGS = r"rho|alpha|beta\d?|eps|lam\d|p|noise|width|correlation|correlated|agreement"
NO_SOURCE_NEEDED = [re.compile(pattern) for pattern in (
    r"(?s)```.*?```", r"\$`[^`]*`\$", r"`[^`]*`",                   # code, formulas
    r"<!-- rows \S+ -->\n(?:\|.*\n)+", r"<!-- timings -->\n(?:.+\n)+",
    rf"{NUMBER}\s*<!-- [LF]23, .*? -->", rf"{MANY}(?:; {MANY})*<!-- timings -->",
    r"(?s)<!-- .*? -->",
    r"\"[^\"\n]*\"", r"\]\([^)]*\)",                               # quotations, links
    rf"(?:{PLACES})\.? [A-Z]?\.?[\d.]+(?:(?:, | and | or | to )[A-Z]?\.?[\d.]+)*",
    rf"\b(?:{SETTINGS})(?: =|:| of| at| from)* {MANY}",
    rf"{MANY} (?:s|ms|us|min|minutes?|hours?|h|kB|MB|GB|dB)\b")]


def bare(text):
    """The decimals that have no source and need one, with what stands around them."""
    text = QUOTED.sub("<!-- -->", requoted(text, "")[0])
    for pattern in NO_SOURCE_NEEDED:
        text = pattern.sub(lambda match: " " * len(match.group()), text)
    return [text[max(0, m.start() - 30):m.end() + 15].replace("\n", " ")
            for m in re.finditer(r"(?<![\w.])" + DECIMAL.pattern, text)]


def main():
    """Write all pages anew, and tell what is wrong."""
    wrong = []
    for page in PAGES:
        text, unlike = requoted(page.read_text())
        page.write_text(text)
        found = [*unlike, *unlike_their_rows(text), *bare(text)]
        wrong += [f"{page.name}: {line}" for line in found]
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
