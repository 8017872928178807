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
    lam = (0.2 * solvers.lasso_lambda_max(F.detach(), y)).requires_grad_()
    loss, w = head(F, y, lam)
    assert w.shape == (2, 5) and 0 < (w != 0).sum() < 10
    assert torch.autograd.gradcheck(head, (F, y.requires_grad_(), lam), eps=1e-6, atol=1e-6)


def test_a_penalty_is_one_number_or_a_task_s_own():
    F, y = torch.randn(3, 20, 4).double(), torch.randn(3, 20).double()
    number = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        torch_heads.LassoHead()(F=F, y=y), torch_heads.LassoHead()(F, y))  # by name, too
    for head in (torch_heads.LassoHead(), torch_heads.RidgeHead()):
        each = head(F, y, torch.full((3,), 0.1).double())[1]
        torch.testing.assert_close(head(F, y, number)[1], each)
        assert torch.autograd.gradcheck(lambda lam, head=head: head(F, y, lam)[0], number)


@pytest.mark.parametrize("name", ["LassoHead", "RidgeHead"])
def test_fits_are_not_of_half_precision_under_autocast(name):
    torch.manual_seed(0)
    F, y = torch.randn(4, 40, 6, requires_grad=True), torch.randn(4, 40)
    head, told = getattr(torch_heads, name)(0.2), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, w = head(F, y)
        (dF,) = torch.autograd.grad(loss, F)
        told.append((loss, w, dF))
    torch.testing.assert_close(*told, rtol=0, atol=0)


@pytest.mark.parametrize("dtype, shape", [("float16", (2, 9, 4)), ("bfloat16", (2, 9, 4)),
                                          ("float64", (9, 4))])
def test_features_of_half_precision_or_without_tasks_are_refused(dtype, shape):
    F, y = torch.randn(shape).to(getattr(torch, dtype)), torch.randn(2, 9).double()
    for head in (torch_heads.LassoHead(), torch_heads.RidgeHead(), torch_heads.SVMHead(4)):
        with pytest.raises(ValueError, match="single or double"):
            head(F, y)


def test_a_head_is_left_out_of_what_is_compiled():
    F, y = torch.randn(2, 30, 5).double().requires_grad_(), torch.randn(2, 30).double()
    head = torch_heads.LassoHead(0.3)
    loss, w = torch.compile(head, backend="eager")(F, y)
    torch.testing.assert_close((loss, w), head(F, y))
    (dF,) = torch.autograd.grad(loss, F)
    assert dF.abs().sum() > 0


def test_fits_that_are_not_solved_are_told(monkeypatch):
    lasso = solvers.lasso
    monkeypatch.setattr(solvers, "lasso", lambda *problem: lasso(*problem, max_iter=0))
    with pytest.warns(UserWarning, match="2 of 2 fits"):
        torch_heads.LassoHead(0.1)(torch.randn(2, 30, 5).double(), torch.randn(2, 30).double())


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


@pytest.mark.parametrize("head", [torch_heads.LassoHead, torch_heads.RidgeHead])
def test_labels_and_penalties_that_do_not_fit_are_refused(head):
    F, y = torch.randn(3, 8, 2).double(), torch.randn(3, 8).double()
    for labels in (y[:1], y[..., None], y.float()):
        with pytest.raises(ValueError, match="expected F"):
            head()(F, labels)
    for lam in (-1.0, torch.ones(5)):
        with pytest.raises(ValueError, match="lam"):
            head()(F, y, lam)
    for given in ((F.numpy(), y.numpy()), (F, y.numpy())):
        with pytest.raises(ValueError, match="expected a tensor"):
            head()(*given)
    with pytest.raises(ValueError, match="expected F"):
        torch_heads.SVMHead(4)(F, torch.eye(2).double().repeat(3, 3, 1))  # labels of 6 samples
