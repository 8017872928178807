"""docs/examples run as their first lines say, and print what they promise."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    if "torch" in path.stem and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    told = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert told.returncode == 0, told.stderr
    errors = [float(x) for x in re.findall(r"(?:gradient error|violation|violated by) (\S+?),?\s", told.stdout)]
    assert all(error < 1e-6 for error in errors)
    said = {"lasso_alone": "numpy", "torch_layer": "gradcheck by PyTorch: True", "your_images": "MCC", "add_a_head": "True", "add_an_encoder": "parameters"}
    assert said[path.stem] in told.stdout and str(path.relative_to(EXAMPLES.parent.parent)) in path.read_text()
    if path.stem == "your_images":
        assert float(re.search(r"([\d.]+) after", told.stdout)[1]) > 0.95
