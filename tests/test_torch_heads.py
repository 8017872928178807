"""The heads of PyTorch pass its own gradient check."""

import pytest

import solvers

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from sparsetasks import torch_heads  # noqa: E402


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n_support", [None, 12])
def test_the_lasso_of_pytorch_passes_its_gradcheck(n_support, intercept):
    torch.manual_seed(0)
    F = torch.randn(2, 30, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 30, dtype=torch.float64) + 3 * intercept
    head = torch_heads.LassoHead(0.2, n_support, intercept)
    lam = 0.2 * solvers.lasso_lambda_max(F.detach(), y)  # a constant of the derivative
    head.fit = lambda F, y: torch_heads.LassoSolution.apply(F, y, lam)
    loss, w = head(F, y)
    assert w.shape == (2, 5) and 0 < (w != 0).sum() < 10
    assert torch.autograd.gradcheck(lambda F: head(F, y)[0], F, eps=1e-6, atol=1e-6)


def test_an_intercept_takes_the_mean_away():
    F, y = torch.randn(3, 40, 4).double(), torch.randn(3, 40).double()
    head = torch_heads.LassoHead(0.3, intercept=True)
    loss, w = head(F, y)
    loss_moved, w_moved = head(F + 5, y - 7)
    torch.testing.assert_close(loss, loss_moved)
    torch.testing.assert_close(w, w_moved)


def test_the_svm_of_pytorch_passes_its_gradcheck():
    torch.manual_seed(1)
    F = torch.randn(2, 10, 3, dtype=torch.float64, requires_grad=True)
    Y = torch.eye(2, dtype=torch.float64)[torch.arange(10).repeat(2, 1) % 2]
    lam1, lam2 = (torch.full((2,), a, dtype=torch.float64) for a in (0.3, 1.0))

    def solution(F):
        return torch_heads.SVMSolution.apply(F, Y, lam1, lam2)

    assert torch.autograd.gradcheck(solution, F, eps=1e-6, atol=1e-5)
    head = torch_heads.SVMHead(n_support=6)
    loss, W = head(F, Y)
    loss.backward()
    assert W.shape == (2, 2, 3) and F.grad.abs().sum() > 0 and head.scale.grad is not None
