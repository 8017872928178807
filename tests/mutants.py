"""Single-token mutants of the code: would the tests notice?

    python tests/mutants.py [--count 66] [--seed 0] [--jobs 2] [--files solvers,sparsedis,metrics]

Draws mutations (sign, factor, comparison, index or axis, transpose, max and min, one set of images
or rows for the other) from the functions of each file, runs that file's tests in a copy of the
project until one fails, and prints caught and survived. Not part of the default suite. EQUIVALENT
holds those looked at and found to change nothing that could be told apart, with the reason.
"""

import argparse
import ast
import io
import itertools
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRADIENTS = "tests/test_gradcheck.py"
TESTS = {  # file: the tests that should notice, the quick ones first
    "solvers": [GRADIENTS, "tests/test_solvers.py", "tests/test_errata.py"],
    "sparsedis": [GRADIENTS, "tests/test_sparsedis.py", "tests/test_fewshot.py"],
    "data": ["tests/test_data.py", "tests/test_stored_images.py"],
    "metrics": ["tests/test_metrics.py", "tests/test_errata.py", "tests/test_results.py"],
    "experiments/theory": ["tests/test_theory.py"],
    "experiments/episodes": ["tests/test_episodes.py"],
    "experiments/episode_heads": [GRADIENTS, "tests/test_episode_heads.py"],
    "experiments/episode_networks": [GRADIENTS, "tests/test_episode_networks.py"],
    "experiments/sharing": [GRADIENTS, "tests/test_sharing.py"],
    "experiments/sharing_solver": [GRADIENTS, "tests/test_sharing_solver.py"],
    "experiments/sharing_data": ["tests/test_sharing_data.py"],
    "experiments/sweeps": ["tests/test_sweeps.py"],
    "experiments/gradcheck": [GRADIENTS],
    "experiments/bench": ["tests/test_bench.py"],
    **{f"experiments/{name}": [f"tests/test_{name}.py"] for name in (
        "apply", "beyond", "disentangle", "entropy", "fewshot", "figures", "maps", "nuisance",
        "page", "penalties", "regression", "rotation", "shared_maps", "sharing_features", "subsets",
        "tables", "tasks", "transfer")},
    "experiments/report": ["tests/test_tasks.py"],
    "experiments/tell": ["tests/test_run.py", "tests/test_disentangle.py"],
    "sparsetasks/estimator": ["tests/test_estimator.py", "tests/test_sparsetasks_parts.py"],
    "sparsetasks/predictors": ["tests/test_predictors.py", "tests/test_sparsetasks_parts.py"],
}
TESTS["solvers"] += ["tests/test_threads.py"]
TESTS["sparsedis"] += ["tests/test_results.py", "tests/test_disentangle.py"]
SWAPS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*"},
    **{"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="},
    **{"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "any": "all"},
    **{"0": "1", "1": "2", "2": "1", "mT": "real", "argmax": "argmin", "sum": "mean"},
}
TWINS = [  # names that are taken for each other, where a function has both
    ("index", "seen"), ("index", "drawn"), ("F", "F_seen"), ("z", "z_uniform"), ("X", "X_uniform"),
    ("uniform", "seen"), ("fit", "rest"), ("mean", "deviation"), ("accuracy", "off"),
    ("accuracy", "dense"), ("beta1", "beta2"), ("lam1", "lam2"), ("rho", "alpha"), ("n", "m"),
]
DRAWN = ("draw_", "print_", "tell", "save_", "write_")  # functions that are looked at, not tested
EQUIVALENT = {  # (file, start of the line, old, new): reason
    ("experiments/theory", "L = L + (rng.random", "*", "/"): "another random sparse matrix",
    ("experiments/theory", "L = L + (rng.random", "+", "-"): "another random sparse matrix",
    ("experiments/theory", "positive = rng.random", "-", "+"): "labels of another random task",
    ("experiments/theory", "positive = rng.random", "1", "2"): "labels of another random task",
    ("sparsedis", "return dF + 2 * RIDGE / F.shape[1]", "*", "/"): "below what differences see",
    ("sparsedis", "return dF + 2 * RIDGE / F.shape[1]", "+", "-"): "below what differences see",
}


def sites(file):
    """(line, column, old, new) of every place that may be mutated: in functions, outside
    docstrings, messages and drawings."""
    source = (ROOT / f"{file}.py").read_text()
    inside, skip, twins = set(), set(), {}  # twins: (line, name) -> the names it is taken for
    for node in ast.walk(ast.parse(source)):
        lines = range(getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) + 1)
        if isinstance(node, ast.FunctionDef):
            (skip if node.name.startswith(DRAWN) else inside).update(lines)
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            pairs = [pair for pair in TWINS if names.issuperset(pair)]
            for line, (a, b) in itertools.product(lines, pairs):
                twins.setdefault((line, a), set()).add(b)
                twins.setdefault((line, b), set()).add(a)
        elif isinstance(node, ast.Raise):
            skip.update(lines)
    found, before = [], ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, column = token.start
        unpacks = token.string == "*" and before in ("(", ",", "=", "[", "return", "for", "**")
        kinds = (tokenize.OP, tokenize.NUMBER, tokenize.NAME)
        if token.string in SWAPS and line in inside - skip and not unpacks and token.type in kinds:
            found.append((line, column, token.string, SWAPS[token.string]))
        if token.type == tokenize.NAME and line in inside - skip:
            others = sorted(twins.get((line, token.string), ()))
            found += [(line, column, token.string, other) for other in others]
        before = token.string
    return found


def mutated(file, line, column, old, new):
    """The source with one token changed; None where it no longer parses."""
    lines = (ROOT / f"{file}.py").read_text().splitlines(keepends=True)
    text = lines[line - 1]
    lines[line - 1] = text[:column] + new + text[column + len(old) :]
    try:
        ast.parse("".join(lines))
    except SyntaxError:
        return None
    return "".join(lines)


def tests_fail(copy, file):
    """Whether the tests of a file fail in a copy of the project; too long counts as failing."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[file]]
    try:
        return subprocess.run(command, cwd=copy, capture_output=True, timeout=900).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def choose(args):
    """The mutants (file, site, source), drawn from each file in turn."""
    rng, chosen, files = random.Random(args.seed), {}, args.files.split(",")
    everything = {file: sites(file) for file in files}
    while len(chosen) < args.count:
        file = files[len(chosen) % len(files)]
        site = rng.choice(everything[file])
        source = mutated(file, *site)
        if source:
            chosen.setdefault((file, site), source)
    return [(file, site, source) for (file, site), source in chosen.items()]


def attempt(mutant, copies):
    """Run a mutant's tests in one of the copies; prints and returns what came of it."""
    file, (line, column, old, new), source = mutant
    copy = copies.get()
    try:
        (copy / f"{file}.py").write_text(source)
        caught = tests_fail(copy, file)
    finally:
        shutil.copy(ROOT / f"{file}.py", copy / f"{file}.py")
        copies.put(copy)
    text = (ROOT / f"{file}.py").read_text().splitlines()[line - 1].strip()
    reasons = [
        why
        for (name, start, a, b), why in EQUIVALENT.items()
        if (name, a, b) == (file, old, new) and text.startswith(start)
    ]
    told = "caught" if caught else "equal" if reasons else "SURVIVED"
    where = f"{file}.py:{line}:{column} {old!r} -> {new!r}"
    print(f"{told:<9}{where}   {text[:90]}   {'; '.join(reasons)}", flush=True)
    return told


def main():
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--count", type=int, default=66)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--files", default="solvers,sparsedis,metrics")
    args = parser.parse_args()
    chosen, copies = choose(args), queue.Queue()
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(args.jobs) as pool:
        for i in range(args.jobs):
            copy = Path(top) / str(i)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "results"))
            copies.put(copy)
        told = list(pool.map(lambda mutant: attempt(mutant, copies), chosen))
    caught, equal = told.count("caught"), told.count("equal")
    share = 100 * caught / max(len(chosen) - equal, 1)
    print(f"{caught} of {len(chosen)} caught, {equal} change nothing that could be told: ", end="")
    print(f"{share:.0f} % of the others")


if __name__ == "__main__":
    main()
