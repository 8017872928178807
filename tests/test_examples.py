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
    "torch_layer": "gradcheck by PyTorch: True",
    "your_images": "MCC",
    "add_a_head": "True",
    "add_an_encoder": "parameters",
}
ERROR = r"(?:gradient error|violation|violated by) (\S+?),?\s"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    if "torch" in path.stem and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    words = [sys.executable, path]
    told = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert told.returncode == 0, told.stderr
    assert all(float(error) < 1e-6 for error in re.findall(ERROR, told.stdout))
    assert SAID[path.stem] in told.stdout
    assert str(path.relative_to(EXAMPLES.parent.parent)) in path.read_text()
    if path.stem == "your_images":
        assert float(re.search(r"([\d.]+) after", told.stdout)[1]) > 0.95
