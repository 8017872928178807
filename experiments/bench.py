"""bench.py -- how fast, beside other libraries in one process, and how seconds and memory grow.

    row       our seconds over the peer's (below 1: ours is faster), what is done, both in ms
    rate      GFLOP/s of matrix products, of a layer or of the machine
    growth    seconds and peak memory against tasks T, samples n, features m and images, as a figure
    timer     a function that does a piece of work and returns its seconds

A row tells medians of repeats that take turns, so that a noisy machine is noisy for both (of the
SVM's peer, which takes minutes, one). The peers are PyTorch and JAX where they are installed
(requirements-bench.txt), scikit-learn, and code as one writes it first.
"""
import csv
import functools
import importlib.util
import io
import os
import platform
import time
import tracemalloc
import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogFormatter
from sklearn.linear_model import Lasso

import data
import solvers
import sparsedis
from experiments import plots, results
from experiments.episode_networks import conv4
from experiments.settings import OUT, blas_kernels, option, out_path

# The CNN's convolutions, of stride 2: channels in and out, side of the kernel, padding.
CONVOLUTIONS = [(3, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)]


@dataclass(frozen=True)
class Bench:
    """Time our work beside the same work done by other libraries, and draw how seconds grow.

    Takes two minutes, PyTorch and JAX included. A row below 1 is where we are faster.
    """

    out: str = option("", f"growth curves, the rows as CSV beside them: {OUT}")
    results: str = option("results", "folder of the results")
    threads: int = option(os.cpu_count() or 1, "CPU threads of ours and of PyTorch", 1, 1024)


def bench(config):
    """Print all rows, those of most interest first, and draw how seconds grow."""
    path = out_path(config, "bench.png", rows=True)
    print(machine(config.threads), flush=True)
    _rows.clear()
    bench_lasso(config.threads)
    bench_networks(config.threads)
    bench_layers()
    bench_conv4(config.threads)
    bench_svm(config.threads)
    bench_composition()
    draw_growth(config.threads, path)
    write_rows(path.with_suffix(".csv"))


def machine(threads):
    """The processor, the BLAS kernels and the number of threads, in a line; in a second one, what
    keeps OpenBLAS from the processor's own kernels and so makes every product of ours slower."""
    forced = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
    warning = f"\nset by the environment: {forced}" if forced else ""
    return f"{processor()}; BLAS: {blas_kernels()}; {threads} threads{warning}"


def processor():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ------------------------------------------------------------------------------ timing


def timed(function, *args):
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def timer(function, *args):
    """A function that calls and returns the seconds."""
    return lambda: timed(function, *args)


def seconds_of(*timers, repeats=15, calls=1):
    """Median seconds of each timer, taking turns; the first two turns only warm up.

    Of a turn's calls the last counts: threads of whose turn it was before may still spin and take a
    core, as PyTorch's and OpenBLAS's do.
    """
    taken = [[] for _ in timers]
    for _ in range(repeats + 2):
        for one, seconds in zip(timers, taken, strict=True):
            seconds.append([one() for _ in range(calls)][-1])
    return [float(np.median(seconds[2:])) for seconds in taken]


# What tell has told: what is done, our ms, the peer, its ms, our share of its time.
Row = namedtuple("Row", "what ours_ms peer peer_ms ratio")
_rows = []


def tell(what, ours, peer, theirs):
    """A row of the table."""
    row = Row(what, 1e3 * ours, peer, 1e3 * theirs, ours / theirs)
    _rows.append(row)
    print(
        f"{row.ratio:6.2f} x   {what}: {row.ours_ms:.4g} ms, {peer} {row.peer_ms:.4g} ms",
        flush=True)


def tell_alone(text):
    """A row without a peer."""
    print(f"     -     {text}", flush=True)


def write_rows(path):
    """The rows told as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row._fields)
    table.writerows(_rows)
    results.write_text(path, text.getvalue())
    print(path)


# ------------------------------------------------------------------------------ networks


def bench_networks(threads):
    """The CNN beside its like, and an outer step of the paper's size beside the passes of its
    network.

    PyTorch and JAX do less in the last rows: no images composed, no inner fits, no Adam.
    """
    both = functools.partial(torch_cnn, threads)
    forward = functools.partial(torch_cnn, threads, backward=False)
    beside_torch("cnn forward + backward, 400 images", our_cnn(threads), both)
    beside_torch("cnn forward, 400 images", our_cnn(threads, backward=False), forward)
    step = "outer step, 400 images"
    beside_torch(step, outer_step(threads), both, " forward + backward")
    if importlib.util.find_spec("jax"):
        ours, theirs = seconds_of(outer_step(threads), jax_cnn(), repeats=7, calls=3)
        tell(step, ours, "JAX forward + backward, compiled", theirs)


def bench_layers():
    """The products of a block of images, for each layer of the CNN and of conv4, on one thread,
    beside this machine's best. What a pass takes beyond them is copies, ReLU, norms and pooling.
    """
    best = product_rate(2000, 2000, 2000)
    tell_alone(f"products of 2000 x 2000 matrices: {best:.0f} GFLOP/s a thread")
    shapes = {
        "cnn, layer 1": (10 * 32 * 32, 48, 32), "cnn, layer 2": (10 * 17 * 17, 128, 128),
        "cnn, layer 3": (10 * 8 * 8, 128, 64), "cnn, layer 4": (10 * 4 * 4, 256, 64),
        "conv4, layer 1": (15 * 28 * 28, 9, 64), "conv4, layer 2": (15 * 14 * 14, 576, 64),
        "conv4, layer 3": (15 * 7 * 7, 576, 64), "conv4, layer 4": (15 * 3 * 3, 576, 64)}
    for name, (rows, inner, columns) in shapes.items():
        forward, to_weights = product_rate(rows, inner, columns), product_rate(inner, rows, columns)
        tell_alone(
            f"products of a block, {name}: {forward:.0f} GFLOP/s forward, {to_weights:.0f} to dW, "
            f"{100 * forward / best:.0f} and {100 * to_weights / best:.0f} % of that")


def product_rate(a, b, c, repeats=9):
    """GFLOP/s of products (a, b) (b, c) of float32 on one thread."""
    A, B = random_images(a, b), random_images(b, c)
    seconds, = seconds_of(on_threads(1, lambda: A @ B), repeats=repeats)
    return 2 * a * b * c / seconds / 1e9


def bench_conv4(threads):
    """conv4 on 28 x 28 images beside PyTorch's."""
    ours = our_network(threads, conv4(1), random_images(100, 28, 28, 1))
    theirs = functools.partial(torch_conv4, threads)
    beside_torch("conv4 forward + backward, 100 images 28 x 28", ours, theirs)


def beside_torch(what, ours, torch_timer, does="", repeats=9):
    """A row for each way of PyTorch's, torch_timer(*way); ours alone without it."""
    ways = torch_ways()
    theirs = [torch_timer(*way) for way in ways.values()]
    ours, *theirs = seconds_of(ours, *theirs, repeats=repeats, calls=3)
    for name, seconds in zip(ways, theirs, strict=True):
        tell(what, ours, name + does, seconds)
    if not ways:
        tell_alone(f"{what}: {1e3 * ours:.4g} ms, PyTorch is not installed")


def torch_ways():
    """How PyTorch keeps images, (N, C, H, W) or (N, H, W, C) as we do, and whether it compiles."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    plain, last = torch.contiguous_format, torch.channels_last
    return {"PyTorch": (plain, False), "PyTorch, channels_last": (last, False),
            "PyTorch, compiled": (last, True)}


def outer_step(threads, sets=8, samples=50):
    """A timer of one whole outer step of the paper's size, K = 1."""
    shapes, encoder = data.Shapes3D(), sparsedis.cnn(6)
    tasks = data.Tasks(*data.latents(shapes), sets=sets, samples=samples, per_set=1)
    params, state = encoder.init(np.random.default_rng(0))
    now = sparsedis.Snapshot(params, state, None, 0)
    objective = sparsedis.task_objective("inner-lasso", warmup=0.0)

    def sample(step):
        index, y = tasks.sample(np.random.default_rng(step))
        return [shapes.images(index.ravel())], y

    def step():
        nonlocal now
        training = sparsedis.Training(encoder, sample, objective, steps=now.step + 1)
        now = sparsedis.train(training, now)

    return on_threads(threads, step)


def on_threads(threads, function, *args):
    """A timer that calls within sparsedis.cpu_threads."""
    def run():
        with sparsedis.cpu_threads(threads):
            return timed(function, *args)

    return run


def our_network(threads, encoder, x, backward=True):
    """A timer of an encoder's forward pass on images, or of both passes."""
    params, state = encoder.init(np.random.default_rng(0))

    def step():
        F, cache, _ = encoder.forward(params, state, x, train=backward)
        if backward:
            encoder.backward(cache, 2 * F / F.size)

    return on_threads(threads, step)


def random_images(*shape):
    """Images of noise, float32."""
    return np.random.default_rng(0).random(shape).astype(np.float32)


def our_cnn(threads, images=400, backward=True):
    """A timer of cnn(6)."""
    return our_network(threads, sparsedis.cnn(6), random_images(images, 64, 64, 3), backward)


def torch_network(threads, layout, compiled, layers, x, backward=True):
    """A timer of a PyTorch network's forward pass on images x, or of both passes."""
    import torch

    torch.set_num_threads(threads)
    network = torch.nn.Sequential(*layers).to(memory_format=layout)
    network = torch.compile(network) if compiled else network
    x = x.to(memory_format=layout)
    if not backward:
        return timer(torch.inference_mode()(network), x)
    return timer(lambda: network(x).square().mean().backward())


def torch_cnn(threads, layout, compiled, backward=True, images=400):
    """A timer of the CNN by PyTorch."""
    from torch import nn, rand

    layers = []
    for c, o, k, pad in CONVOLUTIONS:
        layers += [nn.Conv2d(c, o, k, 2, pad), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 6)]
    x = rand(images, 3, 64, 64)
    return torch_network(threads, layout, compiled, layers, x, backward)


def torch_conv4(threads, layout, compiled, images=100):
    """A timer of conv4 by PyTorch."""
    from torch import nn, rand

    layers = []
    for c in (1, 64, 64, 64):
        convolution = nn.Conv2d(c, 64, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return torch_network(threads, layout, compiled, layers, rand(images, 1, 28, 28))


def jax_cnn(images=400):
    """A timer of both passes of the CNN by JAX, compiled; it chooses its threads itself."""
    import jax

    rng = np.random.default_rng(0)
    shapes = [(k, k, c, o) for c, o, k, _ in CONVOLUTIONS] + [(1024, 256), (256, 6)]
    draws = [0.1 * rng.standard_normal(shape) for shape in shapes]
    params = [jax.numpy.asarray(draw, jax.numpy.float32) for draw in draws]
    x = jax.numpy.asarray(random_images(images, 64, 64, 3))

    def loss(params):
        h = x
        for W, (_, _, _, pad) in zip(params, CONVOLUTIONS, strict=False):
            h = jax.lax.conv_general_dilated(
                h, W, (2, 2), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            h = jax.nn.relu(h)
        h = jax.nn.relu(h.reshape(images, -1) @ params[4])
        return ((h @ params[5]) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))
    return timer(lambda: jax.block_until_ready(gradient(params)))


# ------------------------------------------------------------------------------ composition


def bench_composition():
    """400 images of 3D Shapes, 16 at a time in a core's cache, beside one product for all."""
    shapes, index = data.Shapes3D(), np.random.default_rng(0).integers(data.N_IMAGES, size=400)
    ours, theirs = seconds_of(timer(shapes.images, index), timer(compose_at_once, shapes, index))
    tell("composition of 400 images", ours, "one product for all of them", theirs)


def compose_at_once(shapes, index):
    """The same images by one product of all light maps with all colours."""
    factors = shapes.factors[index].astype(int)
    colours = np.empty((len(index), 5, 3), np.float32)
    colours[:, data.SKY_MAP] = data.SKY
    colours[:, data.FLOOR_MAP:data.OBJECT_MAP + 1] = data.PALETTE[factors[:, :3]]
    colours[:, data.WHITE_MAP] = data.WHITE
    geometry = np.ravel_multi_index(tuple(factors[:, 3:].T), data.LEVELS[3:])
    light = data.geometry_maps()[geometry] @ colours
    return (np.clip(np.round(light), 0, 255) / 255).reshape(-1, 64, 64, 3)


# ------------------------------------------------------------------------------ Lasso


def lasso_problem(m, eps, T=1000, n=50, correlation=0.9):
    """F, y, lam of T tasks with correlated features, half their weights nonzero."""
    rng = np.random.default_rng(0)
    mix = np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation)
    F = rng.standard_normal((T, n, m)) @ mix.T
    w = rng.standard_normal((T, 1, m)) * (rng.random((T, 1, m)) < 0.5)
    y = np.vecdot(F, w)
    y = y + 0.1 * y.std(axis=1, keepdims=True) * rng.standard_normal(y.shape)
    return F, y, eps * solvers.lasso_lambda_max(F, y)


def bench_lasso(threads):
    """lasso beside a loop over scikit-learn's, which at m = 6 is mostly the price of its calls, and
    beside FISTA on all tasks at once; lasso_vjp beside a loop over tasks."""
    both = {"scikit-learn": scikit_lasso, "batched FISTA": batched_fista}
    one = {"scikit-learn": scikit_lasso}                            # FISTA would take minutes
    for m, eps, repeats, peers in ((6, 0.3, 7, both), (100, 0.05, 1, one)):
        problem = lasso_problem(m, eps)
        timers = [timer(solve, *problem) for solve in peers.values()]
        ours, *theirs = seconds_of(
            on_threads(threads, solvers.lasso, *problem), *timers, repeats=repeats)
        for name, seconds in zip(peers, theirs, strict=True):
            tell(f"lasso, T = 1000, n = 50, m = {m}, eps {eps}", ours, name, seconds)
        w, _ = solvers.lasso(*problem)
        told = [f"{name}'s {violation(*problem, solve(*problem)):.1e}"
                for name, solve in peers.items()]
        print(f"            largest violation of optimality: {violation(*problem, w):.1e}, "
              f"{', '.join(told)}")
        vjp = on_threads(threads, solvers.lasso_vjp, *problem, w, w)
        ours, theirs = seconds_of(vjp, timer(vjp_loop, *problem, w, w), repeats=9, calls=3)
        tell(f"lasso_vjp, the same, m = {m}", ours, "a loop over tasks", theirs)


def scikit_lasso(F, y, lam):
    """The same by a loop over scikit-learn's Lasso at tol 1e-8."""
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for X, labels, alpha in zip(F, y, lam, strict=True):
            fit = Lasso(alpha=alpha, fit_intercept=False, tol=1e-8, max_iter=100_000)
            fits.append(fit.fit(X, labels).coef_)
    return np.stack(fits)


def batched_fista(F, y, lam, tol=1e-8):
    """The same by accelerated proximal gradient steps of all tasks at once.

    [Beck and Teboulle 2009]
    """
    G, c = solvers.gram(F), solvers.correlations(F, y)
    step = 1 / np.linalg.eigvalsh(G)[:, -1:]
    w, v, t = np.zeros_like(c), np.zeros_like(c), 1.0
    for n_iter in range(100_000):
        new = solvers.soft_threshold(v + step * (c - solvers.matvec(G, v)), step * lam[:, None])
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        w, v = new, new + (before - 1) / t * (new - w)
        if n_iter % 20 == 0 and violation(F, y, lam, w) <= tol:
            break
    return w


def violation(F, y, lam, w):
    """The largest violation of the Lasso's optimality conditions."""
    q = solvers.correlations(F, y - solvers.matvec(F, w))
    return solvers.lasso_violation(q, lam, w).max()


def vjp_loop(F, y, lam, w, dw):
    """lasso_vjp's dF by a loop over tasks, as one writes it first."""
    dF = np.zeros(F.shape)
    for t, X in enumerate(F):
        S, u = w[t] != 0, np.zeros(F.shape[2])
        u[S] = np.linalg.solve(X[:, S].T @ X[:, S] / len(X), dw[t, S])
        dF[t] = (np.outer(y[t] - X @ w[t], u) - np.outer(X @ u, w[t])) / len(X)
    return dF


# ------------------------------------------------------------------------------ SVM


def svm_problem(m, n=25, T=8, k=5, off=0.3):
    """F, Y, lam1, lam2 of episodes on features of a ReLU network.

    lam1 is found by bisection, so that a share `off` of the first episode's features is off.
    """
    rng = np.random.default_rng(0)
    Y = np.eye(k)[rng.permuted(np.tile(np.arange(n) % k, (T, 1)), axis=1)]
    F = rng.standard_normal((T, n, m)) + 0.5 * Y @ rng.standard_normal((T, k, m))
    F, lam2 = np.maximum(F, 0), m / 100
    top = solvers.svm_lambda_max(F, Y)
    low, high = 1e-5, 0.3
    for _ in range(10):
        share = (low * high) ** 0.5
        W, _, _ = solvers.group_svm(F[:1], Y[:1], share * top[:1], lam2)
        fewer = (W == 0).all(axis=1).mean() < off                   # too few are off
        low, high = (share, high) if fewer else (low, share)
    return F, Y, share * top, lam2


def bench_svm(threads):
    """group_svm beside block coordinate descent, and how wrong the published shortcut is."""
    for m, n, epochs in ((1600, 25, 30), (16_000, 25, 3), (400, 75, 10)):
        problem = svm_problem(m, n)
        ours, = seconds_of(on_threads(threads, solvers.group_svm, *problem), repeats=3)
        W, _, info = solvers.group_svm(*problem)
        pbcd = functools.partial(solvers.group_svm, *problem, method="pbcd", max_iter=epochs)
        theirs = on_threads(threads, pbcd)()                        # once, for it takes long
        _, _, other = pbcd()
        off = 100 * (W == 0).all(axis=1).mean()
        what = f"group SVM, 8 tasks, n = {n}, k = 5, m = {m}, {off:.0f} % off"
        tell(what, ours, f"{epochs} epochs of block coordinate descent", theirs)
        gap, their_gap = info["gap"].max(), other["gap"].max()
        print(f"            relative duality gap {gap:.1e}, theirs {their_gap:.1e}")
    for steps, error_W, error_dF in shortcut(*svm_problem(1600)):
        tell_alone(
            f"{steps} projected gradient steps instead of a solve (m = 1600): error of W "
            f"{error_W:.2g}, of dF {error_dF:.2g}")


def shortcut(F, Y, lam1, lam2, counts=(5, 50, 500, 5000)):
    """Rows (steps, error of W, error of dF) of stopping early and differentiating there.

    Errors are relative to the exact W and dF. The outer loss is a random linear function of W, and
    the implicit system itself is solved exactly in all rows.
    """
    lam2 = lam2 + 0 * lam1
    W, Lam, _ = solvers.group_svm(F, Y, lam1, lam2)
    dW = np.random.default_rng(1).standard_normal(W.shape)
    dF, _, _ = solvers.group_svm_vjp(F, Y, lam1, lam2, W, Lam, dW)
    for steps in counts:
        W_early, Lam_early = projected_gradient(F, Y, lam1, lam2, steps)
        dF_early, _, _ = solvers.group_svm_vjp(F, Y, lam1, lam2, W_early, Lam_early, dW)
        yield steps, relative_error(W_early, W), relative_error(dF_early, dF)


def relative_error(a, exact):
    """|a - exact| / |exact|."""
    return float(np.linalg.norm(a - exact) / np.linalg.norm(exact))


def projected_gradient(F, Y, lam1, lam2, steps):
    """W and Lam after so many steps of length 1/L on the dual: the published code takes five."""
    L = np.linalg.norm(F, ord=2, axis=(1, 2)) ** 2 / lam2
    Lam, svm = np.full(Y.shape, 1 / Y.shape[2]), solvers.svm_problem(F, Y, lam1, lam2)
    for _ in range(steps):
        _, _, dD = solvers.svm_primal(svm, Lam)
        Lam = solvers.project_simplex(Lam - dD / L[:, None, None])
    _, W, _ = solvers.svm_primal(svm, Lam)
    return W, Lam


# ------------------------------------------------------------------------------ growth


# A panel: what grows, its sizes, work(size) -> label and function, for each curve.
Growth = namedtuple("Growth", "name sizes work")


def panels(threads):
    """What is drawn of how seconds and memory grow."""
    yield Growth("tasks T", (30, 100, 300, 1000, 3000), lambda T: lasso_work(T, 50, 10))
    yield Growth("samples n", (30, 100, 300, 1000), lambda n: lasso_work(100, n, 10))
    yield Growth("features m", (12, 25, 50, 100, 200), lambda m: lasso_work(100, 200, m))
    yield Growth("features m", (100, 400, 1600, 6400), lambda m: svm_work(m, 25))
    yield Growth("samples n", (10, 25, 50, 75), lambda n: svm_work(400, n))
    yield Growth("images", (50, 100, 200, 400, 800), lambda N: cnn_work(threads, N))


def lasso_work(T, n, m):
    """A batch of Lassos, and its adjoint."""
    problem = lasso_problem(m, 0.2, T, n)
    w, _ = solvers.lasso(*problem)
    return {"lasso": functools.partial(solvers.lasso, *problem),
            "its vjp": functools.partial(solvers.lasso_vjp, *problem, w, w)}


def svm_work(m, n):
    """A batch of SVMs."""
    return {"group_svm": functools.partial(solvers.group_svm, *svm_problem(m, n))}


def cnn_work(threads, images):
    """Both passes of the CNN."""
    return {"cnn, forward + backward": our_cnn(threads, images)}


def peak_bytes(function):
    """The most bytes that a call holds beyond those before it, as NumPy tells tracemalloc."""
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def draw_growth(threads, path):
    """Seconds (above) and peak memory (below) of each of panels, axes logarithmic; an exponent
    where the curve is straight."""
    grown = list(panels(threads))
    fig, axes = plots.subplots(2, len(grown), (3.1 * len(grown), 6))
    for (above, below), panel in zip(axes.T, grown, strict=True):
        works = [panel.work(size) for size in panel.sizes]
        for label in works[0]:
            timers = [on_threads(threads, work[label]) for work in works]
            seconds = [seconds_of(one, repeats=3)[0] for one in timers]
            peaks = [peak_bytes(work[label]) for work in works]
            text = f"{label}: {straight(panel.sizes, seconds)}"
            above.loglog(panel.sizes, 1e3 * np.array(seconds), "o-", label=text)
            below.loglog(panel.sizes, np.array(peaks) / 1e6, "o-")
            points = zip(panel.sizes, seconds, peaks, strict=True)
            row = ", ".join(f"{n}: {1e3 * s:.3g} ms {b / 1e6:.3g} MB" for n, s, b in points)
            tell_alone(f"{label} against {panel.name}: {row}")
        for ax in (above, below):
            ax.set_xticks(panel.sizes, panel.sizes, fontsize=8)
            ax.set_xticks([], minor=True)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))     # plain
            ax.tick_params(axis="y", which="both", labelsize=8)
        above.legend(fontsize=7)
        below.set_xlabel(panel.name)
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("peak memory, MB")
    plots.save(fig, path)
    print(path)


def straight(sizes, seconds):
    """The exponent of the upper half of a curve, where it is straight there, in words."""
    slopes = np.diff(np.log(seconds)) / np.diff(np.log(sizes))
    upper = slopes[len(slopes) // 2:]
    if np.ptp(upper) > 0.3:
        return f"exponent {upper.min():.1f} to {upper.max():.1f}"
    return f"exponent {exponent(sizes, np.array(seconds)):.1f}"


def exponent(sizes, seconds):
    """p of seconds ~ size^p, fitted to the upper half of the sizes; NaN for one size."""
    if len(sizes) < 2:
        return np.nan
    half = max(2, len(sizes) // 2 + 1)
    return np.polyfit(np.log(sizes[-half:]), np.log(seconds[-half:]), 1)[0]
