"""What `python run.py bench` compares with: the same work done by other libraries."""
import time
import warnings

import numpy as np

import solvers


def timed(function, *args):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def torch_network(threads, layout, images=400):
    """The same network's forward and backward pass alone, by PyTorch; a function that returns its seconds."""
    import torch
    torch.set_num_threads(threads)
    sizes = [(3, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)]
    convolutions = [layer for c, o, k, pad in sizes for layer in (torch.nn.Conv2d(c, o, k, 2, pad), torch.nn.ReLU())]
    network = torch.nn.Sequential(*convolutions, torch.nn.Flatten(), torch.nn.Linear(1024, 256), torch.nn.ReLU(), torch.nn.Linear(256, 6))
    network = network.to(memory_format=layout)
    x = torch.rand(images, 3, 64, 64).to(memory_format=layout)
    return lambda: timed(lambda: network(x).square().mean().backward())


def lasso_problem(m, eps, T=1000, n=50, correlation=0.9):
    """T tasks with features correlated at 0.9, half their weights nonzero."""
    rng = np.random.default_rng(0)
    F = rng.standard_normal((T, n, m)) @ np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation).T
    y = np.vecdot(F, (rng.standard_normal((T, m)) * (rng.random((T, m)) < 0.5))[:, None, :])
    y = y + 0.1 * y.std(axis=1, keepdims=True) * rng.standard_normal(y.shape)
    return F, y, eps * solvers.lasso_lambda_max(F, y)


def scikit_lasso(F, y, lam):
    """The same by a loop over scikit-learn's Lasso at tol 1e-8."""
    from sklearn.linear_model import Lasso
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.stack([Lasso(alpha=a, fit_intercept=False, tol=1e-8, max_iter=100_000).fit(X, t).coef_ for X, t, a in zip(F, y, lam)])
