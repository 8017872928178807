"""docs/examples run as their first lines say, and print what they promise; the layers of PyTorch
and JAX pass those libraries' own gradient checks and train better than ridge."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SAID = {
    "lasso_alone": "numpy",
    "torch_layer": "Lasso fits",
    "jax_layer": "Lasso fits",
    "your_images": "MCC",
    "add_a_head": "True",
    "add_an_encoder": "parameters",
}
ERROR = r"(?:gradient error|violation|violated by) (\S+?),?\s"
NEEDS = {"torch_layer": ("torch", "PyTorch"), "jax_layer": ("jax", "JAX")}


def skip_without(name):
    """Skip where the library of an example is not there."""
    package, title = NEEDS.get(name, ("numpy", ""))
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{title} is not installed")


def example(name):
    """An example as a module; importing it runs nothing."""
    skip_without(name)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SLOW = [pytest.param(EXAMPLES / f"{name}.py", marks=pytest.mark.slow, id=name) for name in NEEDS]
FAST = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in NEEDS]


@pytest.mark.parametrize("path", [*FAST, *SLOW], ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    skip_without(path.stem)
    words = [sys.executable, path]
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


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n_support", [None, 12])
def test_the_lasso_of_pytorch_passes_its_gradcheck(n_support, intercept):
    module = example("torch_layer")
    torch = module.torch
    torch.manual_seed(0)
    F = torch.randn(2, 30, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 30, dtype=torch.float64) + 3 * intercept
    head = module.LassoHead(0.2, n_support, intercept)
    lam = 0.2 * module.solvers.lasso_lambda_max(F.detach(), y)  # a constant of the derivative
    head.fit = lambda F, y: module.LassoSolution.apply(F, y, lam)
    loss, w = head(F, y)
    assert w.shape == (2, 5) and 0 < (w != 0).sum() < 10
    assert torch.autograd.gradcheck(lambda F: head(F, y)[0], F, eps=1e-6, atol=1e-6)


def test_an_intercept_takes_the_mean_away():
    module = example("torch_layer")
    torch = module.torch
    F, y = torch.randn(3, 40, 4).double(), torch.randn(3, 40).double()
    head = module.LassoHead(0.3, intercept=True)
    loss, w = head(F, y)
    loss_moved, w_moved = head(F + 5, y - 7)
    torch.testing.assert_close(loss, loss_moved)
    torch.testing.assert_close(w, w_moved)


def test_the_svm_of_pytorch_passes_its_gradcheck():
    module = example("torch_layer")
    torch = module.torch
    torch.manual_seed(1)
    F = torch.randn(2, 10, 3, dtype=torch.float64, requires_grad=True)
    Y = torch.eye(2, dtype=torch.float64)[torch.arange(10).repeat(2, 1) % 2]
    lam1, lam2 = (torch.full((2,), a, dtype=torch.float64) for a in (0.3, 1.0))

    def solution(F):
        return module.SVMSolution.apply(F, Y, lam1, lam2)

    assert torch.autograd.gradcheck(solution, F, eps=1e-6, atol=1e-5)
    head = module.SVMHead(n_support=6)
    loss, W = head(F, Y)
    loss.backward()
    assert W.shape == (2, 2, 3) and F.grad.abs().sum() > 0 and head.scale.grad is not None


def test_the_lasso_of_jax_passes_its_check():
    module = example("jax_layer")
    from jax.test_util import check_grads

    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((2, 30, 5)), rng.standard_normal((2, 30))
    lam = 0.2 * module.solvers.lasso_lambda_max(F, y)
    w = module.jax.jit(module.lasso)(F, y, lam)
    assert 0 < (np.asarray(w) != 0).sum() < 10
    check_grads(module.lasso, (F, y, lam), order=1, modes=["rev"], eps=1e-6, atol=1e-6, rtol=1e-5)
