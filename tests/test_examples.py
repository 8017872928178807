"""docs/examples run as their first lines say, and print what they promise."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SAID = {
    "lasso_alone": "numpy",
    "torch_layer": "Lasso fits",
    "jax_layer": "Lasso fits",
    "your_images": "MCC",
    "add_a_head": "True",
    "add_an_encoder": "parameters",
    "real_tables": "stability",
}
WORDS = {"real_tables": ["wine"]}
ERROR = r"(?:gradient error|violation|violated by) (\S+?),?\s"
NEEDS = {"torch_layer": ("torch", "PyTorch"), "jax_layer": ("jax", "JAX")}


def skip_without(name):
    """Skip where the library of an example is not there."""
    package, title = NEEDS.get(name, ("numpy", ""))
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{title} is not installed")


SLOW = [pytest.param(EXAMPLES / f"{name}.py", marks=pytest.mark.slow, id=name) for name in NEEDS]
FAST = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in NEEDS]


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
