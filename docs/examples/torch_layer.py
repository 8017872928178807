"""An MLP of PyTorch trained through Lasso fits and through ridge fits: `loss, w = head(F, y)`.

    python docs/examples/torch_layer.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import metrics
from sparsetasks.torch_heads import LassoHead, RidgeHead


def normalise(F):
    """Features of mean 0 and variance 1 over the samples of each task."""
    return (F - F.mean(1, keepdim=True)) / (F.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def train(head, steps=300, tasks=32, n=50, rho=0.8, seed=0):
    """MCC of an MLP trained by PyTorch through a head: 5 factors of correlation rho, seen through
    20 columns, and tasks that use half of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    covariance = torch.full((5, 5), rho, dtype=torch.float64) + (1 - rho) * torch.eye(5)
    z = normal(4000, 5) @ torch.linalg.cholesky(covariance).mT
    x = torch.tanh(z @ normal(5, 20)) + z @ normal(5, 20)
    torch.manual_seed(seed)
    layers = torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)
    encoder = torch.nn.Sequential(*layers).double()
    optimiser = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    for _ in range(steps):
        index = torch.randint(len(z), (tasks, n), generator=generator)
        w_true = normal(tasks, 5, 1) * (torch.rand(tasks, 5, 1, generator=generator) < 0.5)
        y = (z[index] @ w_true)[..., 0]
        loss, _ = head(normalise(encoder(x[index])), y + 0.1 * normal(tasks, n))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return metrics.mcc(z, encoder(x))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, head in {"ridge": RidgeHead(0.3), "Lasso": LassoHead(0.3)}.items():
        print(f"MCC after 300 steps through {name} fits: {train(head):.3f}")
