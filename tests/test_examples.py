"""docs/examples run as their first lines say, and print what they promise."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import run

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SAID = {
    "lasso_alone": "numpy",
    "torch_layer": "Lasso fits",
    "jax_layer": "Lasso fits",
    "your_images": "MCC",
    "add_a_head": "True",
    "add_an_encoder": "parameters",
    "envelope": "0.0    0.00375       0.00358       0.00358       0.00000",
    "inexact": "   128     2e-05      5.1e-05 1.8e-04               0%",
    "real_tables": "stability",
    "how_many_targets": "one_or_two",
    "sharing_cost": "beta 0.02  T 64  m 10",
    "spurious": "domain 2 0 erm-even",
    "blob_images": "x (3000, 28, 28) Y (3000, 30)",
}
WORDS = {"real_tables": ["wine"], "how_many_targets": ["1", "200", "2"],
         "sharing_cost": ["1"], "spurious": ["1", "600", "2"]}
ERROR = r"(?:gradient error|violation|violated by) (\S+?),?\s"
NEEDS = {"torch_layer": ("torch", "PyTorch"), "jax_layer": ("jax", "JAX")}


def skip_without(name):
    """Skip where the library of an example is not there."""
    package, title = NEEDS.get(name, ("numpy", ""))
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{title} is not installed")


SLOW = [pytest.param(EXAMPLES / f"{name}.py", marks=pytest.mark.slow, id=name)
        for name in (*NEEDS, "sharing_cost", "how_many_targets", "spurious")]
APART = {*NEEDS, "shortcut", "sharing_cost", "how_many_targets", "spurious"}
FAST = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in APART]


@pytest.mark.parametrize("path", [*FAST, *SLOW], ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    skip_without(path.stem)
    words = [sys.executable, path, *WORDS.get(path.stem, ())]
    told = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert told.returncode == 0, told.stderr
    assert all(float(error) < 1e-6 for error in re.findall(ERROR, told.stdout))
    assert SAID[path.stem] in told.stdout
    assert str(path.relative_to(EXAMPLES.parent.parent)) in path.read_text()
    if path.stem == "your_images":
        assert float(re.search(r"([\d.]+) after", told.stdout)[1]) > 0.95
    if path.stem in NEEDS:
        ridge, lasso = map(float, re.findall(r"fits: ([\d.]+)", told.stdout))
        assert lasso > 0.98 > ridge + 0.02


@pytest.mark.slow
def test_how_wrong_the_shortcut_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--way", "3", "--shot", "2", "--query", "2", "--episodes", "2", "--test-episodes", "4"]
    assert run.main(["fewshot", "--steps", "2", *sizes]) == 0
    (folder,) = tmp_path.glob("results/fewshot/*/")
    words = [sys.executable, EXAMPLES / "shortcut.py", folder, "5", "50"]
    subprocess.run(words, check=True, cwd=tmp_path, timeout=300)
    with open("shortcut.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["features"] for row in rows} == {"random-ReLU", "trained-conv4"}
    more = [float(row["error_W"]) for row in rows if row["lam2"] == "160.0"]
    assert more[0] > 10 * more[1]
