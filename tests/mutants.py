"""Single-token mutants of solvers.py, sparsedis.py and metrics.py: would the tests notice?

    python tests/mutants.py [--count 66] [--seed 0] [--jobs 2] [--modules solvers,sparsedis,metrics]

Draws mutations (sign, factor, comparison, index or axis, transpose, max and min) from the code of functions, runs the tests of each
mutant's module in a copy of the project until one fails, and prints caught and survived. Not part of the default suite. EQUIVALENT holds
those looked at and found to change nothing that could be told apart, with the reason.
"""
import argparse
import ast
import io
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
TESTS = {"solvers": ["tests/test_sparsedis.py::test_gradient", "tests/test_solvers.py", "tests/test_errata.py", "tests/test_properties.py",
                     "tests/test_sharing.py::test_binary_heads_are_stationary_from_five_starts", "tests/test_sharing.py::test_a_head_that_is_zero_takes_no_part",
                     "tests/test_sharing.py::test_without_sharing_binary_heads_are_those_of_scikit_learn",
                     "tests/test_sharing.py::test_one_logit_is_two_classes_with_a_reference"],
         "sparsedis": ["tests/test_sparsedis.py", "tests/test_sharing.py::test_a_tiny_run_of_every_method",
                       "tests/test_experiments.py::test_lam1_as_a_number_makes_features_switch_off", "tests/test_run.py::test_two_threads_and_a_kill_change_no_bit"],
         "metrics": ["tests/test_metrics.py", "tests/test_properties.py", "tests/test_sparsedis.py::test_gradient",
                     "tests/test_sparsedis.py::test_the_gradient_check_can_fail", "tests/test_sharing.py::test_failures_are_named",
                     *(f"tests/test_experiments.py::test_{name}" for name in (
                         "a_bound_that_is_too_low_fails", "every_claim_of_the_theory_holds", "the_assumptions_are_told_apart", "support_variability_by_hand", "block_share_by_hand",
                         "udr_prefers_models_that_agree", "accuracy_interval_by_hand")),
                     "tests/test_run.py::test_a_run_leaves_scores_figures_and_a_checkpoint", "tests/test_run.py::test_encode_writes_the_encoders_features"]}
SWAPS = {"+": "-", "-": "+", "*": "/", "/": "*", "<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "==", "maximum": "minimum",
         "minimum": "maximum", "transpose": "", "max": "min", "min": "max", "0": "1", "1": "2", "2": "1", "any": "all", "argmax": "argmin", "sum": "mean"}
EQUIVALENT = {                                                              # (module, start of the line, old, new): reason
    ("sparsedis", "F_t, cache = normalise(xp.reshape(F, (*Y.shape[:2], -1))", "1", "2"): "reshape takes any negative number for -1",
    ("metrics", "weight = total if weighted and total.sum() > 0", "sum", "mean"): "positive together",
    ("metrics", "L = np.eye(m)[rng.permutation(m)] + ", "*", "/"): "another random sparse matrix",
    ("metrics", "L = np.eye(m)[rng.permutation(m)] + ", "+", "-"): "another random sparse matrix",
    ("sparsedis", "(qq, C, O), q = V.shape, W.shape[0] // stride", "0", "1"): "kernels are square",
    ("metrics", "labels = rng.random(len(F)) < 1 / (1 + np.exp(-F @ w))", "-", "+"): "labels of another random task",
    ("metrics", "labels = rng.random(len(F)) < 1 / (1 + np.exp(-F @ w))", "1", "2"): "labels of another random task",
    ("metrics", "m, S, rng = W.shape[1], W != 0", "0", "1"): "another seed",
    ("metrics", "g.append(grads[name].reshape(-1)[i])", "1", "2"): "reshape takes any negative number for -1",
    ("solvers", "B = xp.stack([b, zero + xp.cos(i ** 2), zero + xp.cos(i ** 3)]", "+", "-"): "another probe",
    ("solvers", "if now <= J + 1e-13 * abs(J) and (now < J", "-", "+"): "steps at equal J are taken a little sooner",
    ("sparsedis", "return dF + 2e-7 / F.shape[1] * d_ridge", "*", "/"): "a term of 1e-7, below what differences resolve",
    ("sparsedis", "return dF + 2e-7 / F.shape[1] * d_ridge", "+", "-"): "a term of 1e-7, below what differences resolve"}


def sites(module):
    """(line, column, old, new) of every place that may be mutated: in functions, outside docstrings, messages and drawings."""
    source = (ROOT / f"{module}.py").read_text()
    skip = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.FunctionDef) and node.name.startswith(("draw_", "print_", "figure", "save_", "write_"))):
            skip.update(range(node.lineno, node.end_lineno + 1))
    inside = {line for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) for line in range(node.lineno + 1, node.end_lineno + 1)}
    found, before = [], ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, column = token.start
        unpacks = token.string == "*" and before in ("(", ",", "=", "[", "return", "*", "for", "**")
        if token.string in SWAPS and line in inside - skip and not unpacks and token.type in (tokenize.OP, tokenize.NUMBER, tokenize.NAME):
            found.append((line, column, token.string, SWAPS[token.string]))
        before = token.string
    return found


def mutated(module, line, column, old, new):
    """The source with one token changed; None where it no longer parses."""
    lines = (ROOT / f"{module}.py").read_text().splitlines(keepends=True)
    text = lines[line - 1]
    lines[line - 1] = text[:column] + new + text[column + len(old):]
    try:
        ast.parse("".join(lines))
    except SyntaxError:
        return None
    return "".join(lines)


def run_tests(copy, module):
    """Whether the tests of a module fail in a copy of the project; too long counts as failing."""
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(t for t in TESTS[module] if (copy / t.split("::")[0]).exists())]
        return subprocess.run(command, cwd=copy, capture_output=True, timeout=600).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=66)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--modules", default="solvers,sparsedis,metrics")
    args = parser.parse_args()
    rng, chosen, modules = random.Random(args.seed), [], args.modules.split(",")
    everything = {module: sites(module) for module in modules}
    while len(chosen) < args.count:
        module = modules[len(chosen) % len(modules)]
        site = rng.choice(everything[module])
        source = mutated(module, *site)
        if source and (module, site) not in [(m, s) for m, s, _ in chosen]:
            chosen.append((module, site, source))
    folders = queue.Queue()
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(args.jobs) as pool:
        for i in range(args.jobs):
            shutil.copytree(ROOT, Path(top) / str(i), ignore=shutil.ignore_patterns(".git", "results", "__pycache__"))
            folders.put(Path(top) / str(i))

        def attempt(mutant):
            module, (line, column, old, new), source = mutant
            copy = folders.get()
            try:
                (copy / f"{module}.py").write_text(source)
                caught = run_tests(copy, module)
            finally:
                shutil.copy(ROOT / f"{module}.py", copy)
                folders.put(copy)
            text = (ROOT / f"{module}.py").read_text().splitlines()[line - 1].strip()
            reason = [why for (m, start, a, b), why in EQUIVALENT.items() if (m, a, b) == (module, old, new) and text.startswith(start)]
            told = "caught  " if caught else "equal   " if reason else "SURVIVED"
            print(f"{told} {module}.py:{line}:{column} {old!r} -> {new!r}   {text[:100]}   {'; '.join(reason)}", flush=True)
            return told.strip()
        told = list(pool.map(attempt, chosen))
    caught, equal = told.count("caught"), told.count("equal")
    print(f"{caught} of {len(chosen)} caught, {equal} change nothing that could be told: {100 * caught / max(len(chosen) - equal, 1):.0f} % of the others")


if __name__ == "__main__":
    main()
