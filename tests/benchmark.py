"""`python run.py bench`: our work and the same work done by other libraries, side by side."""
import time
import warnings

import numpy as np

import data
import metrics
import solvers
import sparsedis


def timed(function, *args):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def torch_network(threads, layout, images=400, backward=True):
    """The same network's forward and backward pass alone, by PyTorch; a function that returns its seconds."""
    import torch
    torch.set_num_threads(threads)
    sizes = [(3, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)]
    convolutions = [layer for c, o, k, pad in sizes for layer in (torch.nn.Conv2d(c, o, k, 2, pad), torch.nn.ReLU())]
    network = torch.nn.Sequential(*convolutions, torch.nn.Flatten(), torch.nn.Linear(1024, 256), torch.nn.ReLU(), torch.nn.Linear(256, 6))
    network = network.to(memory_format=layout)
    x = torch.rand(images, 3, 64, 64).to(memory_format=layout)
    if not backward:
        return lambda: timed(torch.inference_mode()(network), x)
    return lambda: timed(lambda: network(x).square().mean().backward())


def jax_network(images=400):
    """The same by JAX, compiled; it chooses its threads itself."""
    import jax
    rng, sizes = np.random.default_rng(0), [(3, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)]
    params = [jax.numpy.asarray(0.1 * rng.standard_normal((k, k, c, o)), jax.numpy.float32) for c, o, k, _ in sizes]
    params += [jax.numpy.asarray(0.1 * rng.standard_normal(shape), jax.numpy.float32) for shape in ((1024, 256), (256, 6))]
    x = jax.numpy.asarray(rng.random((images, 64, 64, 3)), jax.numpy.float32)

    def loss(params):
        h = x
        for W, (_, _, _, pad) in zip(params, sizes):
            h = jax.nn.relu(jax.lax.conv_general_dilated(h, W, (2, 2), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")))
        return ((jax.nn.relu(h.reshape(images, -1) @ params[4]) @ params[5]) ** 2).mean()
    gradient = jax.jit(jax.grad(loss))
    return lambda: timed(lambda: jax.block_until_ready(gradient(params)))


def our_network(threads, images=400, backward=True):
    """cnn(6) alone, forward or forward and backward."""
    encoder, x = sparsedis.cnn(6), np.random.default_rng(0).random((images, 64, 64, 3)).astype(np.float32)
    params, state = encoder.init(np.random.default_rng(0))

    def step():
        F, cache, _ = encoder.forward(params, state, x)
        if backward:
            encoder.backward(cache, 2 * F / F.size)

    def run():
        with sparsedis.cpu_threads(threads):
            return timed(step)
    return run


def compose_at_once(index):
    """400 images by one product for all, instead of 16 at a time in a core's cache."""
    f = data.Shapes3D().factors[index].astype(int)
    C = np.stack([np.broadcast_to(data.SKY, (len(f), 3)), *data.PALETTE[f[:, :3]].transpose(1, 0, 2), np.broadcast_to(data.WHITE, (len(f), 3))], axis=1)
    light = data.geometry_maps()[np.ravel_multi_index(tuple(f[:, 3:].T), data.LEVELS[3:])] @ C.astype(np.float32)
    return (np.clip(np.round(light), 0, 255) / 255).reshape(-1, 64, 64, 3)


def vjp_loop(F, y, lam, w, dw):
    """lasso_vjp by a loop over tasks, as one writes it first."""
    dF = np.zeros(F.shape)
    for t, (X, S) in enumerate(zip(F, w != 0)):
        u = np.zeros(w.shape[1])
        u[S] = np.linalg.solve(X[:, S].T @ X[:, S] / len(X), dw[t, S])
        dF[t] = (np.outer(y[t] - X @ w[t], u) - np.outer(X @ u, w[t])) / len(X)
    return dF


def growth(threads, path):
    """How seconds grow: with tasks, samples, features, images and threads; one figure, exponents fitted to the upper half of each curve."""
    def lasso_seconds(T, n, m):
        problem = lasso_problem(m, 0.2, T, n)
        w, _ = solvers.lasso(*problem)
        return seconds_of(lambda: timed(solvers.lasso, *problem), lambda: timed(solvers.lasso_vjp, *problem, w, w), repeats=3)

    def svm_seconds(m, n):
        F, Y, lam1, lam2 = svm_problem(m, n=n)
        return seconds_of(lambda: timed(solvers.group_svm, F, Y, lam1, lam2), repeats=1)

    def image_seconds(images, threads):
        return seconds_of(our_network(threads, images), repeats=5)
    panels = [("tasks T", (30, 100, 300, 1000, 3000), lambda T: lasso_seconds(T, 50, 10), ("lasso", "its vjp")),
              ("samples n (Lasso)", (30, 100, 300, 1000), lambda n: lasso_seconds(100, n, 10), ("lasso", "its vjp")),
              ("features m (Lasso)", (6, 12, 25, 50, 100), lambda m: lasso_seconds(100, 200, m), ("lasso", "its vjp")),
              ("features m (SVM)", (100, 400, 1600, 6400), lambda m: svm_seconds(m, 25), ("group SVM, n = 25",)),
              ("samples n (SVM)", (10, 25, 50, 75), lambda n: svm_seconds(400, n), ("group SVM, m = 400",)),
              ("images", (50, 100, 200, 400, 800), lambda images: image_seconds(images, threads), ("cnn, forward + backward",)),
              ("threads", tuple(range(1, threads + 1)), lambda k: image_seconds(400, k), ("cnn, 400 images",))]
    fig, axes = metrics.figure(2, 4, (15, 6.4))
    for ax, (name, sizes, measure, labels) in zip(axes.ravel(), panels):
        seconds = np.array([measure(size) for size in sizes])
        for k, label in enumerate(labels):
            half = max(2, len(sizes) // 2 + 1)
            slope = np.polyfit(np.log(sizes[-half:]), np.log(seconds[-half:, k]), 1)[0] if len(sizes) > 1 else np.nan
            print(f"     -     {label} against {name}: " + ", ".join(f"{size} {1e3 * s:.3g}" for size, s in zip(sizes, seconds[:, k])) + f" ms; exponent {slope:.2f}",
                  flush=True)
            ax.loglog(sizes, 1e3 * seconds[:, k], "o-", label=f"{label}: exponent {slope:.2f}")
        ax.set(xlabel=name, ylabel="ms")
        ax.set_xticks(sizes, sizes)
        ax.set_xticks([], minor=True)
        ax.legend(fontsize=8)
    axes.ravel()[-1].axis("off")
    metrics.save_figure(fig, path)
    print(path)


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


def torch_conv4(threads, layout, images=100):
    """conv4's forward and backward pass on 28 x 28 images by PyTorch; a function that returns its seconds."""
    import torch
    torch.set_num_threads(threads)
    blocks = [layer for c in (1, 64, 64, 64) for layer in (torch.nn.Conv2d(c, 64, 3, padding=1, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
                                                           torch.nn.MaxPool2d(2))]
    network, x = torch.nn.Sequential(*blocks).to(memory_format=layout), torch.rand(images, 1, 28, 28).to(memory_format=layout)
    return lambda: timed(lambda: network(x).square().mean().backward())


def our_conv4(threads, images=100):
    encoder, x = sparsedis.conv4(1), np.random.default_rng(0).random((images, 28, 28, 1)).astype(np.float32)
    params, state = encoder.init(np.random.default_rng(0))

    def step():
        F, cache, _ = encoder.forward(params, state, x)
        encoder.backward(cache, 2 * F / F.size)

    def run():
        with sparsedis.cpu_threads(threads):
            return timed(step)
    return run


def svm_problem(m, T=8, n=25, k=5, off=0.3):
    """Episodes whose features are those of a ReLU network; lam1 so that a share `off` of the features is off."""
    rng = np.random.default_rng(0)
    Y = np.eye(k)[rng.permuted(np.tile(np.arange(n) % k, (T, 1)), axis=1)]
    F = np.maximum(rng.standard_normal((T, n, m)) + 0.5 * Y @ rng.standard_normal((T, k, m)), 0)
    low, high, lam2 = 1e-5, 0.3, m / 100
    for _ in range(10):
        share = (low * high) ** 0.5
        W, _, _ = solvers.group_svm(F[:1], Y[:1], share * solvers.svm_lambda_max(F[:1], Y[:1]), lam2)
        low, high = (share, high) if (W == 0).all(axis=1).mean() < off else (low, share)
    return F, Y, share * solvers.svm_lambda_max(F, Y), lam2


def projected_gradient(F, Y, lam1, lam2, steps):
    """W and Lam after so many projected gradient steps of length 1/L on the dual: the published code takes five and stops."""
    L = np.linalg.norm(F, ord=2, axis=(1, 2)) ** 2 / lam2
    Lam = np.full(Y.shape, 1 / Y.shape[2])
    for _ in range(steps):
        _, _, G = solvers.svm_primal(F, Y, Lam, lam1, lam2)
        Lam = solvers.project_simplex(Lam - G / L[:, None, None])
    return solvers.svm_primal(F, Y, Lam, lam1, lam2)[1], Lam


def shortcut(F, Y, lam1, lam2, steps=(5, 50, 500, 5000)):
    """Rows (steps, error of W, error of dF): stopping early and differentiating there, relative to the exact solution's W and dF.

    The outer loss is a fixed random linear function of W; the implicit system itself is solved exactly in all rows.
    """
    lam2 = lam2 + 0 * lam1
    dW = np.random.default_rng(1).standard_normal((F.shape[0], Y.shape[2], F.shape[2]))
    W, Lam, _ = solvers.group_svm(F, Y, lam1, lam2)
    dF = solvers.group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW)[0]
    for count in steps:
        w, lam = projected_gradient(F, Y, lam1, lam2, count)
        yield count, *(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in
                       ((w, W), (solvers.group_svm_vjp(F, Y, lam1, lam2, w, lam, dW)[0], dF)))


def bench_few_shot(threads, row):
    """conv4, the group SVM against block coordinate descent, and the error of the published shortcut."""
    try:
        import torch
        peers = ("PyTorch", torch.contiguous_format), ("PyTorch, channels_last", torch.channels_last)
        ours, *theirs = seconds_of(our_conv4(threads), *(torch_conv4(threads, layout) for _, layout in peers), repeats=25)
        for (peer, _), seconds in zip(peers, theirs):
            row(ours / seconds, "conv4 forward + backward, 100 images 28 x 28", ours, peer, seconds)
    except ImportError:
        print("     -     conv4: PyTorch is not installed")
    for m in (1600, 16_000):
        F, Y, lam1, lam2 = svm_problem(m)
        ours, = seconds_of(lambda: timed(solvers.group_svm, F, Y, lam1, lam2), repeats=3)
        W, _, info = solvers.group_svm(F, Y, lam1, lam2)
        epochs = 3 if m > 1600 else 30
        began = time.perf_counter()
        pbcd = solvers.group_svm(F, Y, lam1, lam2, method="pbcd", max_iter=epochs)[2]
        row(ours / (time.perf_counter() - began), f"group SVM, 8 tasks, n = 25, k = 5, m = {m}, {100 * (W == 0).all(axis=1).mean():.0f} % off", ours,
            f"{epochs} epochs of block coordinate descent", time.perf_counter() - began)
        print(f"            relative duality gap {info['gap'].max():.1e}, theirs {pbcd['gap'].max():.1e}")
    for steps, error_W, error_dF in shortcut(*svm_problem(1600)):
        print(f"     -     {steps} projected gradient steps instead of a solve (m = 1600): error of W {error_W:.2g}, of dF {error_dF:.2g}")


def bench(threads, out):
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
        for backward, what in ((False, "cnn forward, 400 images"), (True, "cnn forward + backward, 400 images")):
            ours, *theirs = seconds_of(our_network(threads, backward=backward), *(torch_network(threads, layout, backward=backward) for _, layout in peers))
            for (_, layout), seconds in zip(peers, theirs):
                row(ours / seconds, what, ours, f"PyTorch{', channels_last' if layout == torch.channels_last else ''}", seconds)
    except ImportError:
        ours, = seconds_of(outer_step(threads))
        print(f"     -     outer step, 400 images: {1e3 * ours:.4g} ms, PyTorch is not installed")
    try:
        ours, theirs = seconds_of(outer_step(threads), jax_network())
        row(ours / theirs, "outer step, 400 images", ours, "JAX forward + backward, compiled", theirs)
    except ImportError:
        print("     -     outer step: JAX is not installed")
    shapes, index = data.Shapes3D(), np.random.default_rng(0).integers(data.N_IMAGES, size=400)
    ours, theirs = seconds_of(lambda: timed(shapes.images, index), lambda: timed(compose_at_once, index))
    row(ours / theirs, "composition of 400 images", ours, "one product for all of them", theirs)
    for m, eps, repeats in ((6, 0.3, 7), (100, 0.05, 3)):
        F, y, lam = problem = lasso_problem(m, eps)
        ours, theirs = seconds_of(lambda: timed(solvers.lasso, *problem), lambda: timed(scikit_lasso, *problem), repeats=repeats)
        G, c = solvers.gram(F), solvers.correlations(F, y)
        ours_left, theirs_left = (solvers.lasso_violation(c - solvers.matvec(G, w), lam, w).max()
                                  for w in (solvers.lasso(*problem)[0], scikit_lasso(*problem)))
        row(ours / theirs, f"lasso, T = 1000, n = 50, m = {m}, eps {eps}", ours, "scikit-learn", theirs)
        w, _ = solvers.lasso(*problem)
        vjp, loop = seconds_of(lambda: timed(solvers.lasso_vjp, *problem, w, w), lambda: timed(vjp_loop, *problem, w, w), repeats=repeats)
        row(vjp / loop, f"lasso_vjp, the same, m = {m}", vjp, "a loop over tasks", loop)
        print(f"            lasso: {theirs / ours:.0f} times as fast; largest violation of optimality {ours_left:.1e}, scikit-learn's {theirs_left:.1e}")
    bench_few_shot(threads, row)
    print(f"     -     render all geometries: {timed(data.geometry_maps.__wrapped__):.2f} s")
    growth(threads, out)
