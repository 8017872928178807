"""Sparse and shared features [F23]: tasks, the data they come from, the inner problem's oracle, training and its report."""
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data
import metrics
import run
import solvers
import sparsedis


def binary_problem(T=6, n=40, m=8, seed=0):
    rng = np.random.default_rng(seed)
    F, W = rng.standard_normal((T, n, m)), rng.standard_normal((T, m)) * (rng.random((T, m)) < 0.4)
    return F, (np.einsum("tnm,tm->tn", F, W) + 0.3 * rng.standard_normal((T, n)) > 0)[..., None].astype(float)


# ------------------------------------------------------------------------------------------ the inner problem


@pytest.mark.parametrize("pooled", [True, False])
def test_binary_heads_are_stationary_from_five_starts(pooled):
    F, Y = binary_problem()
    rng, values = np.random.default_rng(1), []
    for start in [None] + [0.5 * rng.standard_normal((6, 1, 8)) for _ in range(4)]:
        phi, info = solvers.sparse_sharing(F, Y, 0.05, 0.02, pooled, start=start)
        assert info["converged"] and info["gap"] <= 1e-8
        assert 0 <= info["entropy"][-1] <= np.log(8) and info["entropy"][-1] <= info["entropy"][0]
        values.append(solvers.sharing_objective(F, Y, 0.05, 0.02, phi, pooled))
    assert np.ptp(values) < 0.05 * abs(values[0])


def test_without_sharing_binary_heads_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    F, Y = binary_problem()
    phi, info = solvers.sparse_sharing(F, Y, 0.03, 0.0)
    assert info["converged"] and info["n_iter"] <= 10                       # Newton's method
    for F_t, y, phi_t in zip(F, Y[..., 0], phi[:, 0]):
        theirs = LogisticRegression(l1_ratio=1, C=1 / (0.03 * len(y)), fit_intercept=False, solver="liblinear", tol=1e-10, max_iter=10_000).fit(F_t, y)
        np.testing.assert_allclose(phi_t, theirs.coef_[0], atol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_head_that_is_zero_takes_no_part(pooled):
    F, Y = binary_problem()
    Y[2] = np.random.default_rng(5).integers(2, size=Y[2].shape)            # a task of noise
    phi, info = solvers.sparse_sharing(F, Y, 0.1, 0.02, pooled)
    assert info["converged"] and not phi[2].any() and phi[0].any()
    others = solvers.sharing_entropy(np.delete(phi, 2, axis=0), pooled)
    np.testing.assert_allclose(solvers.sharing_entropy(phi, pooled), others)
    nothing, info = solvers.sparse_sharing(F, Y, 10.0, 0.02, pooled)
    assert info["converged"] and not nothing.any()


def test_a_solver_that_cannot_go_on_says_so():
    F, Y = binary_problem()
    _, info = solvers.sparse_sharing(F, Y, 0.05, 0.02, max_iter=2)
    assert not info["converged"] and info["gap"] > 1e-12


def test_one_logit_is_two_classes_with_a_reference():
    F, Y = binary_problem(T=2)
    Z = np.linspace(-40, 40, 24).reshape(2, 12, 1)
    y = (Z > 3).astype(float)
    two = np.concatenate([Z, 0 * Z], axis=2), np.concatenate([y, 1 - y], axis=2)
    np.testing.assert_allclose(solvers.data_loss(Z, y, "logistic"), solvers.data_loss(*two, "logistic"))
    np.testing.assert_allclose(solvers.residual(Z, y, "logistic")[0][..., 0], solvers.residual(*two, "logistic")[0][..., 0])


@pytest.mark.parametrize("pooled", [True, False])
def test_the_adjoint_is_the_limit_of_an_unrolled_solver(pooled):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    F, Y = binary_problem(T=4, n=30, m=5)
    alpha, beta, R = 0.08, 0.02, np.random.default_rng(3).standard_normal((4, 1, 5))
    phi, _ = solvers.sparse_sharing(F, Y, alpha, beta, pooled)
    ours = solvers.sparse_sharing_vjp(F, Y, alpha, beta, phi, R, pooled)
    one_step = solvers.sparse_sharing_vjp(F, Y, alpha, beta, phi, R, pooled, one_step=True)
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (F, alpha, beta)]
    Ft, a, b = leaves
    x, y, on = torch.tensor(phi), torch.tensor(Y), torch.tensor(phi != 0)
    for _ in range(1500):                                                   # proximal gradient, its penalty linearised: autograd goes through it all
        g = ((torch.sigmoid(Ft @ x.mT) - y) / 30).mT @ Ft / 4
        share = x.abs() if not pooled else x.abs().sum((0, 1), keepdim=True)
        q = share / share.sum(-1, keepdim=True)
        log_p = torch.where(on.any(0), q.mean((0, 1)).clamp_min(1e-300), torch.ones(())).log()
        slope = ((q * log_p).sum(-1, keepdim=True) - log_p) / ((4 if not pooled else 1) * share.sum(-1, keepdim=True))
        v = x - 5 * g
        x = torch.where(on, torch.sign(v) * (v.abs() - 5 * (a / 4 + b * slope)), 0)
    np.testing.assert_allclose(x.detach(), phi, atol=1e-10)
    for mine, theirs in zip(ours, torch.autograd.grad((x * torch.tensor(R)).sum(), leaves)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
    error = np.linalg.norm(one_step[0] - ours[0]) / np.linalg.norm(ours[0])
    assert 0.01 < error < 2                                                 # cheap, and far from exact


# ---------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("k", [1, 2, 5])
def test_binary_tasks_join_thresholds_by_and(k):
    shapes = data.Shapes3D()
    tasks = data.BinaryTasks(shapes.factors, np.full(len(shapes), 1 / len(shapes)), k, 20)
    assert len(set(tasks.tasks)) == 20
    index, Y = tasks.sample(np.random.default_rng(0), [3, 7], 5, 4)
    assert index.shape == (2, 18) and Y.shape == (2, 18, 1)
    assert (Y[:, :10].sum(axis=1) == 5).all() and (Y[:, 10:].sum(axis=1) == 4).all()        # both halves are balanced
    for t, i, y in zip((3, 7), index, Y[..., 0]):
        on, threshold, side = tasks.tasks[t]
        assert len(on) == k
        for image, label in zip(i, y):
            told = [(shapes.factors[image, f] > c) == s for f, c, s in zip(on, threshold, side)]
            assert all(told) == bool(label)


def test_no_image_is_drawn_twice_for_a_task_and_no_test_task_is_a_flipped_training_task():
    shapes = data.Shapes3D()
    _, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.BinaryTasks(shapes.factors, p, 4, 30)
    index, _ = tasks.sample(np.random.default_rng(0), range(30), 13, 20)
    assert all(len(set(i)) > 0.9 * len(i) for i in index) and np.mean([len(set(i)) == len(i) for i in index]) > 0.8
    single = data.BinaryTasks(shapes.factors, p, 1, 40).tasks
    assert len({task[:2] for task in single}) == 40


def test_impossible_tasks_are_refused():
    factors = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)
    with pytest.raises(ValueError, match="--factors"):
        data.BinaryTasks(factors, np.full(12, 1 / 12), 3, 5)
    with pytest.raises(ValueError, match="only 5 different"):
        data.BinaryTasks(factors, np.full(12, 1 / 12), 1, 50)


def test_dsprites_have_the_published_form():
    grid = data.DSprites()
    assert len(grid) == 737_280 and grid.factors.max(axis=0).tolist() == [2, 5, 39, 31, 31]
    index = np.random.default_rng(0).integers(len(grid), size=300)
    x = grid.images(index)
    assert x.shape == (300, 64, 64, 3) and set(np.unique(x)) == {0, 1} and (x[..., 0] == x[..., 2]).all()
    assert abs(data.sprites().sum() / 720 / 4096 - 0.0425) < 0.002                          # the published mean of all pixels
    assert abs(x.sum() / x.size - 0.0425) < 0.006                                           # no sprite leaves the image
    ink = [np.argwhere(image[..., 0]).mean(axis=0) for image in x]
    centre = np.array([[y, x] for y, x in ink])
    assert np.abs(centre - 16 - grid.factors[index][:, [4, 3]]).max() < 3                   # y down, x right, a pixel a step
    area = data.sprites().reshape(3, 6, 40, -1).sum(axis=3)
    assert (np.diff(area.mean(axis=2), axis=1) > 0).all() and area[:, 5].std() < 0.05 * area[:, 5].mean()
    first, last = (grid.images(np.ravel_multi_index((2, 3, turn, 9, 9), grid.levels)[None]) for turn in (0, 39))
    assert (first == last).all()                                                            # 0 and 2 pi, as in the file


def official(path, rows, spoil=lambda a: a):
    grid = data.DSprites()
    factors = np.concatenate([np.zeros((len(rows), 1), np.int64), grid.factors[rows].astype(np.int64)], axis=1)
    images = grid.images(rows)[..., 0].astype(np.uint8)
    arrays = spoil({"imgs": images, "latents_values": factors.astype(float), "latents_classes": factors})
    np.savez_compressed(path, **arrays)


def test_the_official_dsprites_file_reads_as_rendered(tmp_path):
    rows = np.sort(np.random.default_rng(0).choice(737_280, 700, replace=False))
    official(tmp_path / "d.npz", rows)
    grid, rendered = data.DSprites(tmp_path / "d.npz"), data.DSprites()
    assert (grid.factors == rendered.factors[rows]).all() and len(grid) == 700
    some = np.array([5, 600, 5, 0])
    assert (grid.images(some) == rendered.images(rows[some])).all()


@pytest.mark.parametrize("spoil", [lambda a: {k: v for k, v in a.items() if k != "imgs"}, lambda a: a | {"imgs": a["imgs"].astype(float)},
                                   lambda a: a | {"latents_classes": a["latents_classes"] + 40}, lambda a: a | {"imgs": a["imgs"][:3]},
                                   lambda a: a | {"imgs": np.asfortranarray(a["imgs"])}])
def test_a_damaged_dsprites_file_is_refused_in_one_line(spoil, tmp_path):
    official(tmp_path / "d.npz", np.arange(5), spoil)
    with pytest.raises(ValueError, match="d.npz"):
        data.DSprites(tmp_path / "d.npz")
    (tmp_path / "e.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="e.npz"):
        data.DSprites(tmp_path / "e.npz")
    assert not list(tmp_path.glob("*.new")) and zipfile.is_zipfile(tmp_path / "d.npz")


# --------------------------------------------------------------------------------------- precomputed features


def spurious(path, kind, N=3000, d=20, seed=0):
    """Labels that one direction of x tells with 89 %, and a second one, of less noise, wherever the spurious attribute agrees with the label:
    for 95 % of the training rows and half of the test rows, or for 95, 60 and 10 % in three domains."""
    rng = np.random.default_rng(seed)
    y, domain, test = rng.integers(2, size=N), rng.integers(3, size=N), np.arange(N) < N // 3
    agree = np.where(test, 0.5, 0.95) if kind == "group" else np.array([0.95, 0.6, 0.1])[domain]
    a = np.where(rng.random(N) < agree, y, 1 - y)
    x = rng.standard_normal((N, d))
    x[:, 0], x[:, 1] = 2 * y - 1 + 0.8 * rng.standard_normal(N), 1.5 * (2 * a - 1) + 0.4 * rng.standard_normal(N)
    x = x @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    np.savez(path, x=x, y=y, **({"group": 2 * y + a, "split": np.where(test, "test", "train")} if kind == "group" else {"domain": domain}))


def test_tasks_whose_queries_are_even_over_groups_beat_erm_on_the_worst_group(tmp_path, capsys):
    spurious(tmp_path / "x.npz", "group")
    args = ["sharing", "--features", str(tmp_path / "x.npz"), "--steps", "60", "--m", "8", "--threads", "1", "--results", str(tmp_path / "r")]
    assert run.main(args) == 0
    out = capsys.readouterr().out
    result = json.loads(next((tmp_path / "r").rglob("result.json")).read_text())
    assert result["sharing_worst_group"] > result["erm_worst_group"] + 0.1                  # the best possible is near 0.89
    assert result["sharing_worst_group"] > result["erm_refit_worst_group"] + 0.05           # with the same head: the encoder is better
    assert result["sharing_worst_group"] > 0.7 and result["sharing_few_shot"] > result["erm_few_shot"] and "worst group" in out
    assert run.main(args) == 0 and "already there" in capsys.readouterr().out


def test_every_domain_is_left_out_in_turn(tmp_path, capsys):
    spurious(tmp_path / "x.npz", "domain", N=600)
    assert run.main(["sharing", "--features", str(tmp_path / "x.npz"), "--steps", "5", "--m", "4", "--threads", "1", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"domain {i} left out" in out for i in range(3)) and sum(line.startswith("  erm-even") for line in out.splitlines()) == 4


def test_feature_tasks_cross_domains_and_spread_over_groups():
    rng = np.random.default_rng(0)
    y, place = rng.integers(3, size=900), rng.integers(4, size=900)
    rows = np.flatnonzero(place != 3)
    tasks = data.FeatureTasks(y, place, "domain", rows)
    index, Y = tasks.sample(rng, 6, 5, 7)
    assert Y.shape == (6, 24, 1) and (place[index] != 3).all()
    for i, t in zip(index, Y[..., 0]):
        home = set(place[i[:10]])
        assert len(home) == 1 and home.isdisjoint(place[i[10:]]) and set(i[:10]).isdisjoint(i[10:])
        assert len(set(y[i[t == 1]])) == 1 and len(set(y[i[t == 0]])) == 1 and set(y[i[t == 1]]) != set(y[i[t == 0]])
    lone = np.where((y == 2) & (place != 1), -1, y)                         # class 2 only in domain 1: no other domain for its queries
    tasks = data.FeatureTasks(lone, place, "domain", np.flatnonzero((place != 3) & (lone >= 0)))
    for i, t in zip(*(a for a in tasks.sample(rng, 60, 5, 7))):
        classes = lone[i]
        assert set(i[:10]).isdisjoint(i[10:]) and (2 not in classes or set(place[i[:10]]) == {1})
    group = np.where(rng.random(900) < 0.95, 0, 1)
    tasks = data.FeatureTasks(y % 2, group, "group", np.arange(900))
    index, _ = tasks.sample(rng, 40, 5, 20)
    assert abs(group[index[:, 10:]].mean() - 0.5) < 0.05 and group[index[:, :10]].mean() < 0.15
    assert abs(group[tasks.rows(rng, 4000, True)].mean() - 0.5) < 0.05 and group[tasks.rows(rng, 4000, False)].mean() < 0.1


@pytest.mark.parametrize("spoil, said", [
    ({"x": None}, "x.npz"), ({"domain": None}, "x.npz"), ({"split": np.full(9, "test")}, "no split"), ({"group": np.zeros(9)}, "no group"), ({"x": np.full((9, 2), np.nan)}, "finite"), ({"y": np.zeros(8, int)}, "x.npz"),
    ({"y": np.zeros(9, int)}, "two classes"), ({"domain": np.zeros(9, int)}, "two domains"), ({"x": np.zeros((9, 2), int)}, "finite")])
def test_damaged_features_are_refused_in_one_line(spoil, said, tmp_path, capsys):
    good = {"x": np.random.default_rng(0).standard_normal((9, 2)), "y": np.arange(9) % 2, "domain": np.arange(9) % 3}
    np.savez(tmp_path / "x.npz", **{k: v for k, v in {**good, **spoil}.items() if v is not None})
    assert run.main(["sharing", "--features", str(tmp_path / "x.npz"), "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_several_classes_and_labels_of_text(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=400)
    x = np.eye(4)[y] * 3 + rng.standard_normal((400, 4))
    np.savez(tmp_path / "x.npz", x=x, y=np.array(["cat", "cow", "dog", "elk"])[y], domain=np.array(["art", "photo"])[rng.integers(2, size=400)])
    assert run.main(["sharing", "--features", str(tmp_path / "x.npz"), "--steps", "40", "--m", "4", "--threads", "1", "--results", str(tmp_path)]) == 0
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert result["sharing_accuracy"] > 0.8 and result["erm_accuracy"] > 0.8


# --------------------------------------------------------------------------------------------- the experiment


TINY = ["--steps", "3", "--eval-images", "200", "--threads", "1", "--tasks", "2", "--shot", "4", "--query", "3", "--pool", "6", "--test-tasks", "4"]


@pytest.mark.parametrize("method", ["sharing", "lasso", "erm"])
def test_a_tiny_run_of_every_method(method, tmp_path, capsys):
    args = ["sharing", "--method", method, *TINY, "--results", str(tmp_path)]
    assert run.main(args) == 0
    out = capsys.readouterr().out
    assert "unseen tasks: accuracy" in out and "the other data set: MCC" in out and ("no sign of failure" in out or "warning:" in out)
    folder = next(tmp_path.rglob("result.json")).parent
    assert {"importances.png", "responses.png", "correlation.png", "training.png"} <= {file.name for file in folder.iterdir()}
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["entropy"] <= np.log(10) and 0 <= result["zeros"] <= 1 and 0.3 <= result["accuracy"] <= 1


def test_dsprites_trains_and_the_hypergradient_can_be_cheap(tmp_path):
    assert run.main(["sharing", "--source", "dsprites", "--one-step", *TINY, "--results", str(tmp_path)]) == 0
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert "mcc_orientation" in result and "transfer_dci_d" in result


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    args = ["sharing", *TINY, "--method", "erm", "--steps", "6"]
    assert run.main([*args, "--results", str(tmp_path / "a")]) == 0
    plain, calls = sparsedis.adam, []

    def stop(*a):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*a)
    monkeypatch.setitem(sparsedis.OPTIMISERS, "adam", (stop, sparsedis.cosine))
    assert run.main([*args, "--results", str(tmp_path / "b")]) == 130
    monkeypatch.undo()
    assert run.main([*args, "--results", str(tmp_path / "b")]) == 0
    a, b = (np.load(next((tmp_path / side).rglob("checkpoint.npz"))) for side in "ab")
    assert all((a[name] == b[name]).all() for name in a.files) and "params/head.W" in a.files


def test_failures_are_named():
    good = {"features_per_head": 2.0, "unused": 0.1, "accuracy_seen": 0.9, "accuracy": 0.9}
    assert metrics.signatures(good, 10) == []
    for key, value, said in (("features_per_head", 9.0, "all alike"), ("unused", 0.6, "unused"), ("accuracy_seen", 0.6, "trained on"), ("accuracy", 0.6, "unseen")):
        text, = metrics.signatures({**good, key: value}, 10)
        assert said in text


def test_the_sweep_makes_its_table_and_figures(tmp_path, monkeypatch, capsys):
    tiny = dict(eval_images=200, tasks=2, shot=4, query=3, pool=6, test_tasks=4)
    monkeypatch.setattr(run, "SHARING_SWEEP", [{**cell, **tiny} for cell in ({}, {"method": "lasso", "rho": 0.9}, {})])
    plain = run.Sharing
    monkeypatch.setattr(run, "Sharing", lambda **kw: plain(**{**kw, "steps": 2}))
    configs = run.sweep_configs("sharing", "quick", str(tmp_path))
    assert len(configs) == 2                                                # equal ones run once
    for config in configs:
        run.sharing(config)
    ours, lasso = run.read_table(configs)
    rows = [ours, lasso] + [{**ours, "alpha": a, "beta": b, "entropy": 1 + b, "dci_d": 0.5 - b + a / 10} for a in (0.03, 0.2) for b in (0.0, 0.1)]
    metrics.write_table(rows, tmp_path / "t.csv", {"steps", "eval_images"})
    head = Path(tmp_path / "t.csv").read_text().splitlines()[0].split(",")
    assert {"alpha", "beta", "method", "dci_d", "accuracy", "transfer_mcc"} <= set(head) and "eval_images" not in head
    metrics.draw_sharing(rows, tmp_path / "s.png")
    metrics.print_methods(rows, tmp_path / "m.png")
    out = capsys.readouterr().out
    assert "correlation -" in out and "94.7" in out and "lasso" in out and (tmp_path / "s.png").exists()


@pytest.mark.parametrize("args, said", [(["--factors", "7"], "--factors"), (["--alpha", "0"], "--alpha"), (["--beta", "-1"], "--beta"), (["--m", "1"], "--m"),
                                        (["--source", "dsprites", "--factors", "6"], "--factors"), (["--pool", "500", "--factors", "1"], "--pool"),
                                        (["--features", "nowhere.npz"], "nowhere.npz"),
                                        (["--features", "nowhere.npz", "--method", "lasso"], "--method"), (["--factors", "1"], "--pool"), (["--method", "magic"], "--method")])
def test_wrong_arguments_are_one_line_and_status_2(args, said, tmp_path, capsys):
    try:
        status = run.main(["sharing", *args, "--results", str(tmp_path / "r")])
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "r").exists()
