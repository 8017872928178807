"""What the tests share: array libraries, real data, and a tiny run of the main job."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # noqa: F401
from matplotlib import pyplot
from threadpoolctl import threadpool_limits

import metrics
import run
from experiments import plots, sweeps

ROOT = Path(__file__).parent.parent
TINY = "--steps 6 --image-sets 2 --samples 21 --tasks-per-set 2 --eval-images 120".split()

# Of the libraries loaded above: matrices are small, and more threads would only wait.
threadpool_limits(1, user_api="blas")


def library(name):
    """The namespace and device of an array library, or a skip that says why."""
    if name == "numpy":
        import array_api_compat.numpy as xp

        return xp, None
    if name == "strict":
        import array_api_strict as xp

        return xp, xp.Device("device1")
    if name == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
        import array_api_compat.torch as xp

        return xp, None
    cupy = pytest.importorskip("cupy", reason="no GPU (CuPy is not installed)")
    if not cupy.is_available():
        pytest.skip("no GPU")
    import array_api_compat.cupy as xp

    return xp, None


@pytest.fixture(params=["numpy", "strict", "torch", "cupy"])
def backend(request):
    return library(request.param)


def to_numpy(a):
    """Back from any library; array_api_strict hands its arrays out only on its CPU device."""
    if "strict" in type(a).__module__ and hasattr(a, "to_device"):
        return np.from_dlpack(a.to_device(type(a.device)("CPU_DEVICE")))
    return metrics.to_numpy(a)


@pytest.fixture
def real_data():
    """The path of a file of shared data; skips, naming it, where it is absent."""
    near = [ROOT / "shared/data", ROOT.parent / "shared/data", Path("../shared/data")]
    if "SPARSEDIS_DATA" in os.environ:
        near.insert(0, Path(os.environ["SPARSEDIS_DATA"]))

    def find(name):
        for folder in near:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{name} is not in $SPARSEDIS_DATA, ./shared/data or ../shared/data")

    return find


# What follows handles run.py as a user does, and the folder of a run of disentangle.


def command(*args, cwd, expect=0):
    """Run run.py in a process of its own, in a folder; returns stdout, stderr."""
    words = [sys.executable, str(ROOT / "run.py"), *map(str, args)]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def result_of(folder):
    """The content of the only result below a folder, but for the seconds, and its own folder."""
    (path,) = Path(folder).glob("results/disentangle/*/result.json")
    content = json.loads(path.read_text())
    content.pop("seconds")
    return content, path.parent


def arrays_of(path):
    """The arrays of an npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def same_bits(path, other):
    """Whether two npz files hold the same arrays."""
    a, b = arrays_of(path), arrays_of(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def stub_drawing(*args):
    """Writes what begins like a PNG to the path among the arguments."""
    (path,) = (a for a in args if isinstance(a, Path))
    path.write_bytes(b"\x89PNG")


PICTURES = {name: getattr(plots, name)
            for name in ("draw_training", "draw_correlation", "draw_responses")}


@pytest.fixture(scope="session", autouse=True)
def stubbed_pictures():
    """The three pictures of a training take more than all else of a tiny one: they are drawn for
    `finished`, and for tests that ask for `pictures`, and stubbed elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(plots, name, stub_drawing)
        yield


@pytest.fixture
def pictures(monkeypatch):
    """The pictures of a training are drawn."""
    for name, draw in PICTURES.items():
        monkeypatch.setattr(plots, name, draw)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, stubbed_pictures):
    """A finished run of TINY, its pictures drawn: the folder it was started in, what it printed."""
    folder, out = tmp_path_factory.mktemp("finished"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        for name, draw in PICTURES.items():
            patch.setattr(plots, name, draw)
        assert run.main([*TINY, "--threads", "1"]) == 0
    return folder, out.getvalue()


@pytest.fixture
def tiny_sweeps(monkeypatch, tmp_path):
    """The sweeps of quick scale, shrunk to a second a run, in a folder of their own."""
    tiny = {"steps": 1, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
    monkeypatch.setitem(sweeps.SCALES, "quick", tiny)
    for name, scales in sweeps.SWEEPS.items():
        few = [part._replace(eps=part.eps[-2:-1], seeds=1) for part in scales["quick"]]
        monkeypatch.setitem(sweeps.SWEEPS, name, {**scales, "quick": few})
    main = [sweeps.Part([{"rho": 0.0}, {"rho": 0.9}], sweeps.INNER, (0.3,), 1)]
    monkeypatch.setitem(sweeps.SWEEPS, "main", {"quick": main})
    shown = [part._replace(eps=(0.3,)) for part in sweeps.RESPONSES]
    monkeypatch.setitem(sweeps.SWEEPS, "responses", {"quick": shown})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def panels(monkeypatch):
    """The axes of every figure that is saved."""
    seen = []
    monkeypatch.setattr(plots, "save", lambda fig, path: seen.append(fig.axes))
    yield seen
    pyplot.close("all")


def line_of(container):
    """x, mean and half length of the bars of an errorbar (of a line or of bars)."""
    line, _, (bars,) = container.lines
    halves = [(b[1] - a[1]) / 2 for a, b in bars.get_segments()]
    return (
        np.array(line.get_xdata(), float),
        np.array(line.get_ydata(), float),
        np.array(halves, float),
    )
