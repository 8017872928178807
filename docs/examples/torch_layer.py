"""`lasso` as a differentiable PyTorch function, inside a model that PyTorch trains.

    python docs/examples/torch_layer.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import solvers


class Lasso(torch.autograd.Function):
    """w(F, y, lam) for every task of a batch; F (T, n, m), y (T, n), lam (T,)."""

    @staticmethod
    def forward(ctx, F, y, lam):
        w, _ = solvers.lasso(F.detach(), y.detach(), lam.detach())
        ctx.save_for_backward(F, y, lam, w)
        return w

    @staticmethod
    def backward(ctx, dw):
        F, y, lam, w = ctx.saved_tensors
        return solvers.lasso_vjp(F, y, lam, w, dw)


torch.manual_seed(0)
torch.set_num_threads(1)
F = torch.randn(2, 30, 5, dtype=torch.float64, requires_grad=True)
y = torch.randn(2, 30, dtype=torch.float64, requires_grad=True)
lam = torch.tensor([0.05, 0.1], dtype=torch.float64, requires_grad=True)
passed = torch.autograd.gradcheck(Lasso.apply, (F, y, lam), eps=1e-6, atol=1e-6)
print("gradcheck by PyTorch:", passed)

# 8 tasks on 4 hidden factors, seen through a rotation
z = torch.randn(8, 100, 4, dtype=torch.float64)
rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
x, mixing = z @ rotation, torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
w_true = torch.randn(8, 4, dtype=torch.float64) * (torch.rand(8, 4) < 0.5)
labels = torch.einsum("tnm,tm->tn", z, w_true)
optimiser = torch.optim.Adam(mixing.parameters(), lr=0.05)
for step in range(200):
    features = mixing(x)
    features = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True)
    lam = 0.1 * solvers.lasso_lambda_max(features.detach(), labels)
    w = Lasso.apply(features, labels, lam)
    loss = ((labels - (features @ w[..., None])[..., 0]) ** 2).mean() / 2
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step in (0, 199):
        share = (w != 0).double().mean().item()
        print(f"step {step + 1}: loss {loss.item():.4f}, share of weights not zero {share:.2f}")
