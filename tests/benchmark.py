"""`python run.py bench`: our work and the same work done by other libraries, side by side."""
import time
import warnings

import numpy as np

import data
import solvers
import sparsedis


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


def seconds_of(*functions, repeats=15):
    """Median seconds of each function, their calls interleaved so that a noisy machine is noisy for all."""
    times = [[] for _ in functions]
    for k in range(repeats + 2):
        for function, taken in zip(functions, times):
            taken.append(function())
    return [float(np.median(taken[2:])) for taken in times]


def outer_step(threads, sets=8, samples=50):
    """A function that takes one whole outer step of the paper's size, K = 1, and returns its seconds."""
    shapes, encoder, now = data.Shapes3D(), sparsedis.cnn(6), [None]
    tasks = data.Tasks(*data.latents(shapes), sets=sets, samples=samples, per_set=1)
    now[0] = (*encoder.init(np.random.default_rng(0)), None, 0)
    objective = sparsedis.task_objective("inner-lasso", warmup=0.0)

    def sample(step):
        index, y = tasks.sample(np.random.default_rng(step))
        return [shapes.images(index.ravel())], y

    def step():
        now[0] = sparsedis.train(sparsedis.Training(encoder, sample, objective, steps=now[0][3] + 1), now[0])

    def run():
        with sparsedis.cpu_threads(threads):
            began = time.perf_counter()
            step()
            return time.perf_counter() - began
    return run


def bench(threads):
    """Side by side in one process, medians of interleaved repeats, the ratio to the peer first."""
    from threadpoolctl import threadpool_info
    print("BLAS: " + ", ".join(f"{i['internal_api']} {i.get('architecture', '')}" for i in threadpool_info() if i["user_api"] == "blas")
          + f"; {threads} threads")

    def row(ratio, what, ours, peer, theirs):
        print(f"{ratio:6.2f} x   {what}: {1e3 * ours:.4g} ms, {peer} {1e3 * theirs:.4g} ms", flush=True)
    try:
        import torch
        peers = ("PyTorch forward + backward", torch.contiguous_format), ("the same, channels_last", torch.channels_last)
        ours, *theirs = seconds_of(outer_step(threads), *(torch_network(threads, layout) for _, layout in peers))
        for (peer, _), seconds in zip(peers, theirs):
            row(ours / seconds, "outer step, 400 images", ours, peer, seconds)
    except ImportError:
        ours, = seconds_of(outer_step(threads))
        print(f"     -     outer step, 400 images: {1e3 * ours:.4g} ms, PyTorch is not installed")
    for m, eps, repeats in ((6, 0.3, 7), (100, 0.05, 3)):
        F, y, lam = problem = lasso_problem(m, eps)
        ours, theirs = seconds_of(lambda: timed(solvers.lasso, *problem), lambda: timed(scikit_lasso, *problem), repeats=repeats)
        G, c = solvers.gram(F), solvers.correlations(F, y)
        ours_left, theirs_left = (solvers.lasso_violation(c - solvers.matvec(G, w), lam, w).max()
                                  for w in (solvers.lasso(*problem)[0], scikit_lasso(*problem)))
        row(ours / theirs, f"lasso, T = 1000, n = 50, m = {m}, eps {eps}", ours, "scikit-learn", theirs)
        print(f"            {theirs / ours:.0f} times as fast; largest violation of optimality {ours_left:.1e}, scikit-learn's {theirs_left:.1e}")
    print(f"     -     render all geometries: {timed(data.geometry_maps.__wrapped__):.2f} s")
