"""The exercises: ours pass, a student's right answers pass, and usual mistakes are told by name."""

import doctest
import importlib.util

import numpy as np
import pytest

import run
from experiments import exercise, exercise_trials, exercise_words
from experiments.exercise_trials import EXERCISES

# What a student may write: a right answer to each exercise, in another way than the code's.
RIGHT = {
    1: """
def soft_threshold(a, tau):
    size = np.abs(a)
    shrunk = np.maximum(size - tau, 0)
    return np.sign(a) * shrunk
""",
    2: """
def lasso(F, y, lam):
    n, m = F.shape
    w = np.zeros(m)
    for sweep in range(2000):
        for j in range(m):
            r = y - F @ w
            c, L = F[:, j] @ r / n, F[:, j] @ F[:, j] / n
            a = c + L * w[j]
            w[j] = np.sign(a) * max(abs(a) - lam, 0) / L
    return w

def lasso_gap(F, y, lam, w):
    q = F.T @ (y - F @ w) / len(y)
    top = np.max(np.abs(F.T @ y)) / len(y)
    on = np.abs(q - lam * np.sign(w))
    off = np.maximum(np.abs(q) - lam, 0)
    return np.max(np.where(w != 0, on, off)) / top
""",
    3: """
def lasso_vjp(F, y, lam, w, dw):
    n = len(y)
    S = np.flatnonzero(w)
    A = F[:, S].T @ F[:, S] / n
    u = np.zeros(len(w))
    u[S] = np.linalg.solve(A, dw[S])
    r = y - F @ w
    dF = (np.outer(r, u) - np.outer(F @ u, w)) / n
    dy = F @ u / n
    dlam = -np.sign(w) @ u
    return dF, dy, dlam
""",
    4: """
def batch_norm_backward(dout, x, g):
    N = len(x)
    mean = x.mean(axis=0)
    deviation = np.sqrt(x.var(axis=0) + 1e-5)
    x_hat = (x - mean) / deviation
    db = dout.sum(axis=0)
    dg = (dout * x_hat).sum(axis=0)
    d = dout * g
    dx = (d - d.mean(axis=0) - x_hat * (d * x_hat).mean(axis=0)) / deviation
    return dx, dg, db
""",
    5: """
def conv2d_backward(dout, x, W, stride, pad):
    k = len(W)
    X = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    dX, dW = np.zeros(X.shape), np.zeros(W.shape)
    for i in range(dout.shape[1]):
        for j in range(dout.shape[2]):
            here = (slice(None), slice(stride * i, stride * i + k),
                    slice(stride * j, stride * j + k))
            d = dout[:, i, j]
            dX[here] += np.einsum("no,abco->nabc", d, W)
            dW += np.einsum("nabc,no->abco", X[here], d)
    db = dout.sum(axis=(0, 1, 2))
    end, side = X.shape[1] - pad, X.shape[2] - pad
    return dX[:, pad:end, pad:side], dW, db
""",
    6: """
def norm_curvature(W, U, lam):
    out = np.zeros(W.shape)
    for j in range(W.shape[1]):
        size = np.linalg.norm(W[:, j])
        if size > 0:
            v = W[:, j] / size
            across = U[:, j] - v * (v @ U[:, j])
            out[:, j] = lam * across / size
    return out
""",
    7: """
def weights(F, Y, Lam, lam1, lam2):
    V = (Y - Lam).T @ F
    size = np.linalg.norm(V, axis=0)
    keep = np.maximum(size - lam1, 0) / np.maximum(size, 1e-30)
    return V * keep / lam2

def step(F, Y, Lam, lam1, lam2):
    G = Y - F @ weights(F, Y, Lam, lam1, lam2).T
    L = np.linalg.norm(F, 2) ** 2 / lam2
    return project_simplex(Lam - G / L)

def gap(F, Y, Lam, lam1, lam2):
    W = weights(F, Y, Lam, lam1, lam2)
    Z = F @ W.T
    hinge = np.max(1 - Y + Z, axis=1) - np.sum(Y * Z, axis=1)
    square = lam2 / 2 * np.sum(W ** 2)
    P = np.sum(hinge) + lam1 * np.sum(np.linalg.norm(W, axis=0)) + square
    D = square + np.sum(Y * Lam)
    return P + D - len(F)
""",
    8: """
def sparse_basis(W):
    m, best, least = W.shape[1], None, np.inf
    angles = np.linspace(0, np.pi, 61)
    for start in range(4):
        rng = np.random.default_rng(start)
        Q = np.linalg.qr(rng.standard_normal((m, m)))[0]
        for size in (1.0, 0.04, 0.002):
            for sweep in range(8):
                for i in range(m):
                    for j in range(i):
                        t = size * angles - size * np.pi / 2
                        a, b = W @ Q[:, i], W @ Q[:, j]
                        cost = np.abs(np.outer(a, np.cos(t)) + np.outer(b, np.sin(t))).sum(axis=0)
                        cost += np.abs(np.outer(b, np.cos(t)) - np.outer(a, np.sin(t))).sum(axis=0)
                        t = t[np.argmin(cost)]
                        Q[:, [i, j]] = np.stack([np.cos(t) * Q[:, i] + np.sin(t) * Q[:, j],
                                                 np.cos(t) * Q[:, j] - np.sin(t) * Q[:, i]], axis=1)
        total = np.abs(W @ Q).sum()
        if total < least:
            best, least = Q, total
    return best
""",
}

VARIMAX = """W = W / np.linalg.norm(W)
    Q = np.eye(m)
    for step in range(500):
        V = W @ Q
        U, _, Vt = np.linalg.svd(W.T @ (V**3 - V * (V**2).mean(axis=0)))
        Q = U @ Vt
    return Q"""

JACOBI = """        r = y - F @ w
        for j in range(m):"""

# Slips: exercise, what was written in the right answer, what is written instead, what is told.
MISTAKES = [
    (1, "np.sign(a) * shrunk", "shrunk", "where is the sign of a?"),
    (1, "np.maximum(size - tau, 0)", "(size - tau)", "goes past 0"),
    (1, "np.maximum(size - tau, 0)", "size * (size > tau)", "hard threshold"),
    (1, "np.sign(a) * shrunk", "a / (1 + tau)", "ridge's"),
    (1, "size - tau, 0)", "size - 2 * tau, 0)", "shrinks by 2 tau"),
    (1, "np.sign(a)", "a / size", "not finite"),
    (2, "F[:, j] @ r / n, F[:, j] @ F[:, j] / n", "F[:, j] @ r, F[:, j] @ F[:, j]",
     "is the solution of lam/n"),
    (2, " / L\n", "\n", "G_jj"),
    (2, "range(2000)", "range(3)", "enough sweeps"),
    (2, "r = y - F @ w", "r = y if j else y - F @ w", "is no solution"),
    (2, "max(abs(a) - lam, 0)", "abs(a)", "without penalty"),
    (2, "F.T @ (y - F @ w) / len(y)\n    top = np.max(np.abs(F.T @ y)) / len(y)",
     "F.T @ (y - F @ w)\n    top = np.max(np.abs(F.T @ y))", "and of lambda_max"),
    (2, "    n, m = F.shape", "    assert lam\n    n, m = F.shape", "Something is wrong"),
    (2, "np.where(w != 0, on, off)", "on * (w != 0)", "w = 0 would be called right"),
    (2, "np.where(w != 0, on, off)", "off", "asks too little of features"),
    (2, "off)) / top", "off))", "not divided by lambda_max"),
    (2, "np.abs(q - lam * np.sign(w))", "np.abs(np.abs(q) - lam)", "lasso_gap: signs turned"),
    (2, "np.abs(q - lam * np.sign(w))", "np.abs(q - lam)", "lasso_gap: the solution"),
    (1, "return np.sign(a) * shrunk", "return 0 * a", "is 0, and should not be"),
    (2, "np.max(np.where(w != 0, on, off))", "np.where(w != 0, on, off)[-1]", "a weight moved"),
    (2, "np.maximum(np.abs(q) - lam, 0)", "np.abs(q) - lam", "Something is wrong"),
    (2, "np.maximum(np.abs(q) - lam, 0)", "np.maximum(q - lam, 0)", "Something is wrong"),
    (2, "np.max(np.abs(F.T @ y))", "np.max(F.T @ y)", "Something is wrong"),
    (2, "        for j in range(m):\n            r = y - F @ w", JACOBI,
     "where features are correlated"),
    (3, "-np.sign(w) @ u", "-lam * np.sign(w) @ u", "has a factor lam"),
    (3, "-np.sign(w) @ u", "np.sign(w) @ u", "dlam: has the wrong sign"),
    (3, "(np.outer(r, u) - np.outer(F @ u, w)) / n", "np.outer(r, u) / n",
     "the part of F' alone"),
    (3, "np.outer(r, u) - np", "np.outer(r, u) + np", "the second is subtracted"),
    (3, "S = np.flatnonzero(w)", "S = np.arange(len(w))", "off the support it is 0"),
    (3, "np.linalg.solve(A, dw[S])", "dw[S]", "A u = dw is still to be solved"),
    (3, "F[:, S].T @ F[:, S] / n", "F[:, S].T @ F[:, S]", "A lacks its 1/n"),
    (3, "np.outer(r, u) - np.outer(F @ u, w)", "(np.outer(r, u) - np.outer(F @ u, w)).T",
     "transposed?"),
    (3, "dy = F @ u / n", "dy = F @ u", "dy: lacks the 1/n"),
    (3, "r = y - F @ w", "r = F @ w - y", "there it is y - F w"),
    (3, "np.linalg.solve(A, dw[S])", "np.linalg.solve(F.T @ F / n, dw)[S]",
     "cut the system first"),
    (3, "u[S] = np.linalg.solve(A, dw[S])", "u = np.linalg.solve(F.T @ F / n, dw * (w != 0))",
     "dw cut to the support: cut both"),
    (3, "np.linalg.solve(A, dw[S])", "dw[S] / np.diag(A)", "A is its diagonal alone"),
    (3, "-np.sign(w) @ u", "-u.sum()", "lacks sign(w)"),
    (2, "np.where(w != 0, on, off)", "on", "there |q_j| <= lam is enough"),
    (2, "q - lam * np.sign(w)", "q + lam * np.sign(w)", "has the sign wrong at used features"),
    (2, "return w", "return 0 * w", "is 0, and should not be"),
    (2, "np.where(w != 0, on, off)", "np.where(q * w < 0, on, off)", "asks too little"),
    (6, "U[:, j] - v * (v @ U[:, j])", "U[:, j] + v * (v @ U[:, j])", "it is subtracted"),
    (4, "d - d.mean(axis=0) - x_hat * (d * x_hat).mean(axis=0)", "d", "constant"),
    (4, "d - d.mean(axis=0) - x_hat", "d - x_hat", "and not the mean"),
    (4, " - x_hat * (d * x_hat).mean(axis=0)", "", "and not the deviation"),
    (4, "d = dout * g", "d = dout", "lacks the factor g"),
    (4, "x.mean(axis=0)", "x.mean()", "only where x has a mean"),
    (4, " - x_hat * (d", " + x_hat * (d", "it is subtracted"),
    (4, "dg = (dout", "dg = (dout * g", "has a factor g"),
    (4, " + 1e-5", "", "lacks the 1e-5 under the root"),
    (4, "x.var(axis=0)", "x.var(axis=0, ddof=1)", "divides by N - 1"),
    (4, "d - d.mean(axis=0) - x_hat * (d * x_hat).mean(axis=0)",
     "d - d.sum(axis=0) - x_hat * (d * x_hat).sum(axis=0)", "has sums over samples"),
    (4, "N = len(x)\n    mean = x.mean(axis=0)", "mean = x.sum(axis=0) / 8", "Something is wrong"),
    (4, "dout * x_hat).sum", "dout * x).sum", "g multiplies x_hat"),
    (4, "db = dout.sum(axis=0)", "db = dout.mean(axis=0)", "1/N of what it should be"),
    (4, "deviation = np.sqrt(x.var(axis=0) + 1e-5)", "deviation = x.var(axis=0) + 1e-5",
     "variance in the place of the deviation"),
    (5, "dX[here] +=", "dX[here] =", "overwritten where windows overlap"),
    (5, "dX[:, pad:end, pad:side]", "dX", "has shape"),
    (5, "range(dout.shape[2])", "range(dout.shape[1])", "Something is wrong"),
    (5, "abco->nabc\", d, W)", "abco->nabc\", d, W[::-1, ::-1])", "turned by 180 degrees"),
    (5, "stride * i, stride * i + k", "i, i + k", "begins at row stride * i"),
    (5, "dout.sum(axis=(0, 1, 2))", "dout.mean(axis=(0, 1, 2))", "mean over images and pixels"),
    (5, "\"nabc,no->abco\", X", "\"nbac,no->abco\", X", "rows and columns exchanged"),
    (5, "dW += np", "dW = np", "is off by"),
    (6, "across = U[:, j] - v * (v @ U[:, j])", "across = U[:, j]", "same direction"),
    (6, "lam * across / size", "lam * across", "lacks 1/||W_j||"),
    (6, "lam * across / size", "lam * across / size ** 2", "is divided by ||W_j||^2"),
    (6, "across = U[:, j] - v * (v @ U[:, j])", "across = v * (v @ U[:, j])",
     "what turns it is the part across"),
    (6, "if size > 0:", "if True:", "divided by 0"),
    (6, "v = W[:, j] / size", "v = W[:, j]", "has not norm 1"),
    (6, "lam * across", "across", "is 1/lam of what it should be"),
    (7, "(Y - Lam).T", "(Lam - Y).T", "the label pulls"),
    (7, "keep / lam2", "keep", "not divided by lam2"),
    (7, "Lam - G / L", "Lam + G / L", "goes up D"),
    (7, "project_simplex(Lam - G / L)", "np.maximum(Lam - G / L, 0)", "rows sum to"),
    (7, "D = square", "D = 2 * square", "the paper's (10)"),
    (7, "1 - Y + Z", "Z", "without its margin"),
    (7, "+ square\n", "+ 2 * square\n", "or P's"),
    (7, "np.max(1 - Y + Z", "np.max(1 - Y + Z - 9 * Y", "leaves the own class out"),
    (7, "project_simplex(Lam - G / L)",
     "project_simplex(np.where(Lam > 0, Lam - G / L, -1e9))", "does not lower D"),
    (7, "keep / lam2", "keep / 3.0", "weights: lam2 = 0.1"),
    (7, "np.maximum(size, 1e-30)", "size", "Lam = Y, V = 0"),
    (7, "np.maximum(size - lam1, 0)", "(size - lam1)", "cut it there"),
    (7, "V * keep", "0 * V", "is 0, and should not be"),
    (7, "L = np", "L = 0.02 * np", "at most 1/L is safe"),
    (7, "** 2 / lam2\n", "** 2\n", "L = ||F||^2/lam2"),
    (7, "return project_simplex(Lam - G / L)", "return Lam", "too short"),
    (7, "L = np", "L = 1e6 * np", "too short"),
    (7, "return project_simplex(Lam - G / L)",
     "A = np.maximum(Lam - G / L, 1e-12); return A / A.sum(axis=1, keepdims=True)",
     "nearest point"),
    (8, "return best", "return np.eye(m)", "is the identity"),
    (8, "return best", "return np.linalg.svd(W)[2].T", "principal components"),
    (8, "return best", "return best.T", "transpose"),
    (8, "return best", "return 2 * best", "not orthogonal"),
    (8, "np.argmin(cost)", "np.argmax(cost)", "makes loadings dense"),
    (8, "range(8)", "range(0)", "try more starts"),
    (8, "return best", VARIMAX, "degrees of every direction"),
]


def checked(number, source, tmp_path, capsys):
    """What the command says of a file, and its status."""
    path = tmp_path / "mine.py"
    path.write_text(f"import numpy as np\nfrom solvers import project_simplex\n{source}")
    status = run.main(["exercise", str(number), str(path)])
    return status, " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("number", EXERCISES)
def test_ours_is_right(number):
    own = EXERCISES[number]
    for title, trial in own.trials(own.ours):
        assert exercise.outcome(trial) == (None, True), title


@pytest.mark.parametrize("number", EXERCISES)
def test_a_right_answer_is_right(number, tmp_path, capsys):
    status, told = checked(number, RIGHT[number], tmp_path, capsys)
    assert status == 0 and "All is right" in told, told


@pytest.mark.parametrize("number, was, becomes, words", MISTAKES)
def test_a_mistake_is_told(number, was, becomes, words, tmp_path, capsys):
    assert was in RIGHT[number]
    status, told = checked(number, RIGHT[number].replace(was, becomes, 1), tmp_path, capsys)
    assert status == 1 and words in told, told


def test_five_mistakes_of_each_are_tried():
    assert all(sum(number == own for own, *_ in MISTAKES) >= 5 for number in EXERCISES)


@pytest.mark.parametrize("number", EXERCISES)
def test_the_starter_tells_ours_by_a_worked_number(number):
    own = EXERCISES[number]
    path = exercise.starter_of(number)
    spec = importlib.util.spec_from_file_location("starter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in own.ours:
        with pytest.raises(NotImplementedError):
            getattr(module, name)(*[None] * getattr(module, name).__code__.co_argcount)
    names = {"np": np, **own.ours}
    found = doctest.DocTestFinder().find(module, "starter", globs=names)
    results = [doctest.DocTestRunner(verbose=False).run(test) for test in found]
    assert sum(own.attempted for own in results) >= 1
    assert not sum(own.failed for own in results)
    assert {path.name for path in exercise.STARTERS.iterdir() if path.suffix == ".py"} == {
        exercise.starter_of(number).name for number in EXERCISES}


@pytest.mark.parametrize("title, used", [*zip(exercise_trials.SUPPORTS, (5, 3, 1, 0))])
def test_the_supports_are_as_the_titles_of_exercise_3_say(title, used):
    seen = []

    def vjp(F, y, lam, w, dw):
        seen.append(np.count_nonzero(w))
        return 0 * F, 0 * y, 0.0

    exercise_words.gradients_of(
        exercise_trials.lasso_vjp_case(*exercise_trials.SUPPORTS[title], vjp))
    assert seen == [used]


def test_what_breaks_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    for source, words in (
        ("def soft_threshold(a, tau):\n    return b", "name 'b' is not defined (line 4)"),
        ("def soft_threshold(a, tau):\n    return None", "is NoneType, expected an array"),
        ("def soft_threshold(a, tau):\n    a -= tau\n    return a", "changes one of its arguments"),
        ("def soft_threshold(a, tau):\n    return a.sum()", "has shape ()"),
        ("def soft_threshold(a, tau):\n    raise SystemExit(0)", "SystemExit: 0 (line 4)"),
    ):
        status, told = checked(1, source, tmp_path, capsys)
        assert status == 1 and words in told and "Traceback" not in told, told
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def soft_threshold(a, tau):\n    return int('x')")
    assert run.main(["exercise", "1", "mine.py"]) == 1  # a relative path
    assert "ValueError" in (told := capsys.readouterr().out) and "(line 2)" in told
    _, told = checked(3, "def lasso_vjp(F, y, lam, w, dw):\n    return dw", tmp_path, capsys)
    assert "gives 1 result, expected 3: dF, dy, dlam" in told
    _, told = checked(3, "def lasso_vjp(F, y):\n    return y", tmp_path, capsys)
    assert "TypeError" in told and "(line" not in told  # it is in none of the file


def test_what_is_written_is_told_beside_what_is_not(tmp_path, capsys):
    alone = RIGHT[2][:RIGHT[2].index("def lasso_gap")]
    unwritten = alone + "def lasso_gap(F, y, lam, w):\n    raise NotImplementedError\n"
    status, told = checked(2, unwritten, tmp_path, capsys)
    assert status == 1 and told.endswith("What is written is right; the rest is to be written.")
    wrong = unwritten.replace("range(2000)", "range(3)")
    status, told = checked(2, wrong, tmp_path, capsys)
    assert status == 1 and "Wrong only" in told and "sweeps" in told


def test_ten_degrees_are_too_many_in_noise_too():
    _, _, true = exercise_trials.mixed_weights(5, 300, 0.05)
    a, turn = np.radians(10), np.eye(5)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    for Q, words in ((true, None), (true @ turn, "degrees")):
        told = exercise_trials.sparse_fault(lambda W, Q=Q: Q, 5, 300, 0.05)
        assert told is None if words is None else words in told


def test_other_right_answers_are_right(tmp_path, capsys):
    guarded = RIGHT[6].replace("if size > 0", "if size > 1e-9")
    guarded = guarded.replace("/ size\n", "/ (size + 1e-12)\n")
    assert guarded.count("1e-12") == 2
    single = RIGHT[2].replace("return w", "return np.float32(w)")
    single = single.replace("q = F.T", "F, y, w = map(np.float32, (F, y, w)); q = F.T")
    for number, source in ((6, guarded), (2, single)):
        status, told = checked(number, source, tmp_path, capsys)
        assert status == 0, told


def test_a_file_may_print_and_hold_what_it_likes(tmp_path, capsys):
    path = tmp_path / "mine.py"
    first = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    more = "import numpy as np\n@dataclass\nclass A:\n    a: float\n\nprint('loaded')\n"
    path.write_text(first + more + RIGHT[1].replace("size =", "print(tau); size ="))
    assert run.main(["exercise", "1", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("loaded\n1.0\n") and "loaded" not in out


def test_files_that_hold_no_function_are_refused(tmp_path, capsys):
    path = tmp_path / "mine.py"
    for text, words in (("def f(:", "SyntaxError"), ("x = 1", "found no function"),
                        ("1 / 0", "ZeroDivisionError")):
        path.write_text(text)
        assert run.main(["exercise", "1", str(path)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    for wrong in (["9"], ["one"], ["1", "a.py", "b.py"], ["1", str(tmp_path / "mine")]):
        assert run.main(["exercise", *wrong]) == 2
    error = capsys.readouterr().err
    assert "from 1 to 8" in error and "expected a file of Python, .py" in error
    assert not (tmp_path / "mine").exists()
    assert run.main(["exercise", "1", str(tmp_path / "no" / "mine.py")]) == 2


def test_the_list_an_explanation_and_a_starter(tmp_path, capsys):
    assert run.main(["exercise"]) == 0
    told = capsys.readouterr().out
    assert all(own.name in told for own in EXERCISES.values())
    assert run.main(["exercise", "3"]) == 0
    told = capsys.readouterr().out
    assert "solvers.lasso_vjp" in told and "def lasso_vjp(F, y, lam, w, dw):" in told
    path = tmp_path / "mine.py"
    assert run.main(["exercise", "3", str(path)]) == 0 and "written" in capsys.readouterr().out
    assert run.main(["exercise", "3", str(path)]) == 1
    told = capsys.readouterr().out
    assert told.count("is not written yet") == 4 and told.endswith("Nothing is written yet.\n")


def test_differences_have_the_last_word(monkeypatch):
    own = EXERCISES[3]
    monkeypatch.setattr(exercise_words.gradcheck, "passes", lambda found: False)
    told = [exercise.outcome(trial)[0] for _, trial in own.trials(own.ours)]
    differs = "differs from central differences"
    assert told == [differs, differs, differs, None]  # where all is 0 there are none


def test_words_for_arrays():
    wanted = np.array([1.0, 2.0, 3.0])
    for found, words in (
        (wanted, None),
        (-wanted, "has the wrong sign"),
        (-6 * wanted, "is m times too large, and has the wrong sign"),
        (wanted / 2, "1/2 of what it should be"),
        (3.7 * wanted, "is 3.7 times too large"),
        (0 * wanted, "is 0, and should not be"),
        ([1, 2, 4], "67% of its numbers are right"),
    ):
        told = exercise_words.fault(found, wanted, sizes={"m": 6})
        assert told is None if words is None else words in told
    assert exercise_words.fault(0.3, 0.7) == "is off by 0.57 of its length"
    assert exercise_words.fault(-0.7, 0.7) == "has the wrong sign"
    assert exercise_words.fault(wanted, 0 * wanted) == "should be 0"
    assert exercise_words.fault(0.2, 1e-15) == "is 0.2, and should be 0"  # of rounding no share
    assert exercise_words.fault(wanted / 2.5, wanted) == "is 0.4 of what it should be"
    assert exercise_words.fault([0.3], np.array([0.7])) == "is off by 0.57 of its length"
    for found in ("one", None, [1, 2], [1, 2, np.nan]):
        with pytest.raises(exercise_words.Wrong):
            exercise_words.fault(found, wanted)
