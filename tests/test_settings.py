"""Settings become flags, bounds, and the name of a result."""

import argparse
import dataclasses
import math
import os
from pathlib import Path

import pytest

import run
from experiments import disentangle, settings, sharing, sweeps
from experiments.settings import option


@dataclasses.dataclass(frozen=True)
class Example(settings.RunSettings):
    """An experiment of no use."""

    source: str = option(None, "a word", positional=True)
    rate: float = option(0.5, "a share", 0, 1)
    kind: str = option("a", "a kind", choices=("a", "b"))
    out: str = option(None, "a file that has to be named", **settings.ELSEWHERE)


def parse(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    settings.add_flags(parser, Example)
    return settings.read(Example, parser.parse_args(words))


def test_flags_fill_the_settings():
    config = parse("word", "--rate", "0.25", "--out", "x", "--force")
    assert (config.source, config.rate, config.kind, config.out) == ("word", 0.25, "a", "x")
    assert config.force and settings.flag_of("tasks_per_set") == "--tasks-per-set"


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
def test_numbers_outside_their_bounds_are_refused(value):
    with pytest.raises(ValueError, match="--rate: found .*, expected 0 to 1"):
        parse("word", "--out", "x", "--rate", value)


@pytest.mark.parametrize("words", [[], ["word"], ["word", "--out", "x", "--kind", "c"]])
def test_what_is_required_is_required(words, capsys):
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parse(*words)


def test_a_name_depends_on_what_determines_the_result_alone():
    config = parse("word", "--out", "x")
    _, name = settings.identify(config)
    assert len(name) == 10
    for same in ({"threads": 3}, {"device": "gpu"}, {"out": "y"}, {"results": "z"}):
        assert settings.identify(dataclasses.replace(config, **same))[1] == name
    for other in ({"seed": 1}, {"rate": 0.25}, {"source": "other"}):
        assert settings.identify(dataclasses.replace(config, **other))[1] != name
    assert settings.identify(config, data="a file")[1] != name


def test_the_digest_is_of_the_code_behind_an_experiment():
    files = settings.sources(settings.ROOT / "experiments/disentangle.py")
    names = {str(path.relative_to(settings.ROOT)) for path in files}
    assert {"sparsedis.py", "solvers.py", "experiments/settings.py"} <= names
    assert not names & {"experiments/plots.py", "experiments/tell.py"}
    own = settings.sources(settings.ROOT / "experiments/tasks.py")
    names_of_tasks = {str(path.relative_to(settings.ROOT)) for path in own}
    assert {"sparsetasks/estimator.py", "sparsedis.py"} <= names_of_tasks
    assert not names & {"run.py", "experiments/sweeps.py", "experiments/bench.py"}
    digest = settings.code_digest(disentangle.Disentangle)
    assert len(digest) == 16 and digest == settings.code_digest(disentangle.Disentangle)


CODE = """'Words.'

class C:
    '''More,
    of two lines.'''

    a = "# none"  # one

    def f(self, x):
        'And more.'
        return x + 1


# and
"""


def test_words_do_not_age_a_result():
    left = settings.without_words(CODE)
    assert left == 'class C:\n    a = "# none"\n    def f(self, x):\n        return x + 1'
    for words in (("Words", "Others"), ("# one", "# two"), ("# and", ""), ("two lines", "a line")):
        assert CODE.replace(*words) != CODE
        assert settings.without_words(CODE.replace(*words)) == left
    assert settings.without_words(CODE.replace("1", "2")) != left


def test_gpu_without_a_gpu_says_so():
    cupy = pytest.importorskip("cupy", reason="no GPU (CuPy is not installed)")
    if not cupy.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            settings.device_of("gpu")


def test_a_bound_is_told_as_a_number():
    field = next(f for f in dataclasses.fields(disentangle.Disentangle) if f.name == "steps")
    with pytest.raises(ValueError, match="--steps: found 0, expected at least 1"):
        settings.check_bounds(field, 0)
    for beyond in (math.inf, 10**11, math.nan):
        with pytest.raises(ValueError, match="--steps: found"):
            settings.check_bounds(field, beyond)


def test_several_words_are_a_tuple():
    parser, cls, _ = run.parser_of("tasks")
    config = settings.read(cls, parser.parse_args(["t.csv", "--targets", "a", "~/b"]))
    assert config.targets == ("a", os.path.expanduser("~/b"))


def test_a_file_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        settings.check_out(tmp_path / "f" / "x.png")


def test_what_changes_no_result_is_not_suspected():
    assert "--samples" in settings.suspect(disentangle.Disentangle(threads=16, samples=300))


@dataclasses.dataclass(frozen=True)
class Trial(settings.RunSettings):
    """An experiment of no use."""

    rate: float = option(0.5, "a share", 0, 1)


def test_a_raised_version_is_another_result():
    @dataclasses.dataclass(frozen=True)
    class Raised(Trial):
        experiment = "trial"  # as the other one's
        version = 2

    content, name = settings.identify(Raised())
    assert settings.experiment_of(Raised()) == settings.experiment_of(Trial())
    assert content == settings.identify(Trial())[0] and name != settings.identify(Trial())[1]


def test_every_experiment_is_in_its_own_digest():
    for module in sweeps.EXPERIMENTS.values():
        path = Path(module.__file__).resolve()
        assert path in settings.sources(path)
    assert set(settings.NO_NUMBERS) == {"plots", "process", "tell"}


def test_a_setting_is_told_by_the_name_of_its_results():
    assert settings.identify(sharing.Sharing(features=7))[0]["m"] == 7


def test_memory_is_what_the_process_may_take(monkeypatch):
    resource = pytest.importorskip("resource", reason="no limits here")
    for limit, least in ((10**6, True), (resource.RLIM_INFINITY, False), (10**15, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda what, limit=limit: (limit, limit))
        assert (settings.memory() == 10**6) == least and settings.memory() < 10**15
    monkeypatch.setattr(settings, "memory", lambda: 64e9)
    settings.check_memory(Trial(), 63.9e9)
    with pytest.raises(ValueError, match="64 GB of memory are needed"):
        settings.check_memory(Trial(), 64.1e9)
