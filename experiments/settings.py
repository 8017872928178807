"""settings.py -- a frozen dataclass of settings becomes flags, bounds and the name of a result.

    @dataclass(frozen=True)
    class Disentangle(RunSettings):
        rho: float = option(0.9, "correlation of the factors", 0, 0.9999)        # --rho RHO

    add_flags(parser, Disentangle)       a flag for every field, none for a positional one
    read(Disentangle, args)              the settings of a command line, within their bounds
    identify(config, data="rendered")    what determines a result, and the ten digits that name it

Every command of run.py has such a class, with its help texts. Folders and files: results.py.
"""
import ast
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import sys
import tokenize
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parents[1]
CODE = {path: path.read_text() for folder in (ROOT, ROOT / "experiments", ROOT / "sparsetasks")
        for path in folder.glob("*.py")}  # as it was when this process began
ELSEWHERE = {"in_hash": False}  # marks settings that do not change the result
OUT = "the file to write; in the folder of results when not given"


def option(default, help, low=None, high=None, choices=None, **marks):
    """A field of a settings class: its default, its help text, and what values it takes.

    marks: positional=True (no flag, and required where the default is None), in_hash=False,
    name="m" (as results name it).
    """
    meta = {"help": help, "low": low, "high": high, "choices": choices, **marks}
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every command that trains has.

    `version` is part of a result's name: it is raised when a setting or a default changes its
    meaning, so that an old result is never taken for a new one. `numbers` are the names of finite
    numbers that every result has. `experiment` is its name where that of the class will not do.
    """

    experiment: ClassVar[str] = ""
    version: ClassVar[int] = 1
    numbers: ClassVar[tuple] = ("steps", "seconds")
    seed: int = option(0, "seed of parameters, images and tasks", 0)
    device: str = option("cpu", "where to compute", choices=("cpu", "gpu"), **ELSEWHERE)
    threads: int = option(0, "CPU threads; 0: one per core", 0, 1024, **ELSEWHERE)
    results: str = option("results", "folder of the results", **ELSEWHERE)
    force: bool = option(False, "run again even if the result exists", **ELSEWHERE)


@dataclasses.dataclass(frozen=True)
class CPURunSettings(RunSettings):
    """Of experiments that compute on the CPU alone."""

    device: str = option("cpu", "the CPU alone", choices=("cpu",), **ELSEWHERE)


# ------------------------------------------------------------------------------ the command line


def flag_of(name):
    """tasks_per_set -> --tasks-per-set."""
    return "--" + name.replace("_", "-")


def refuse_without_effect(config, choice, of):
    """ValueError for a setting that is not its default and that the value of `choice` does not
    have; of: name -> the values that do."""
    found = getattr(config, choice)
    for name, values in of.items():
        if getattr(config, name) != getattr(type(config), name) and found not in values:
            raise ValueError(f"{flag_of(name)}: needs {flag_of(choice)} {' or '.join(values)}, "
                             f"found {found}")


GROUPS = {  # what --help lists together, by the names of fields; others are of the method
    "training": "steps lr flat beta1 beta2 image_sets samples tasks_per_set episodes optimiser "
                "seed warmup ramp device threads encoder hidden smoothing",
    "data": "data source rho alpha tasks outputs likelihood shift targets inputs drop test "
            "new_targets factors pool test_tasks way shot train_shot query train_query eval_images "
            "test_episodes",
    "output": "results out force scale jobs"}


def add_flags(parser, settings):
    """Add a flag, or a positional argument, for every field of a settings class, in groups."""
    fields = dataclasses.fields(settings)
    for field in fields:
        if field.metadata.get("positional"):
            add_positional(parser, field)
    for title in ("data", "method", "training", "output"):
        group = parser.add_argument_group(title)
        for field in fields:
            if group_of(field) == title and not field.metadata.get("positional"):
                add_flag(group, field)


def group_of(field):
    """The group of flags that a field belongs to; a field may tell it by group="method"."""
    if "group" in field.metadata:
        return field.metadata["group"]
    found = [title for title, names in GROUPS.items() if field.name in names.split()]
    return found[0] if found else "method"


def add_flag(group, field):
    """A flag of a group."""
    meta = field.metadata
    if field.type is bool:
        group.add_argument(flag_of(field.name), action="store_true", help=meta["help"])
    elif field.type is tuple:
        group.add_argument(
            flag_of(field.name), nargs="+", default=field.default, help=meta["help"],
            metavar=field.name.upper().removesuffix("S"))
    else:
        group.add_argument(
            flag_of(field.name), type=field.type, default=field.default, choices=meta["choices"],
            metavar=field.name.upper(), help=help_of(field), required=field.default is None)


def add_positional(parser, field):
    """A positional argument; a tuple takes one or more words, or none where that is its default."""
    meta = field.metadata
    if field.type is tuple:
        nargs = "*" if field.default == () else "+"
        parser.add_argument(
            field.name, nargs=nargs, default=field.default, help=meta["help"],
            metavar=field.name.upper().removesuffix("S"))
    else:
        parser.add_argument(
            field.name, type=field.type, choices=meta["choices"], help=help_of(field),
            metavar=field.name.upper())


def help_of(field):
    """A flag's help text with its default and its choices."""
    notes = [] if field.default in (None, "") else [f"default: {field.default}"]
    if field.metadata["choices"]:
        notes.append("one of " + ", ".join(field.metadata["choices"]))
    text = field.metadata["help"]
    return f"{text} ({'; '.join(notes)})" if notes else text


def read(settings, args):
    """The settings of a parsed command line; ValueError names a flag that is out of bounds."""
    fields = dataclasses.fields(settings)
    values = {field.name: at_home(getattr(args, field.name)) for field in fields}
    for field in fields:
        check_bounds(field, values[field.name])
        if field.name == "out" and values["out"]:
            check_out(Path(values["out"]))
    return settings(**values)


def at_home(value):
    """A text that begins with ~ as the path that it means: shells leave --results=~/x alone. Of
    several words a tuple."""
    if isinstance(value, list):
        return tuple(map(at_home, value))
    is_path = isinstance(value, str) and value.startswith("~")
    return os.path.expanduser(value) if is_path else value


def check_out(path):
    """Refuse a file that cannot be written, before the work."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out {path}: cannot be written")


MOST = 2 ** 32  # of a number without an upper bound of its own


def check_bounds(field, value):
    """Refuse a number outside the bounds of its field, and NaN."""
    low, high = field.metadata["low"], field.metadata["high"]
    if low is None or value is None:
        return
    if not low <= value <= (high or MOST):
        expected = f"at least {low}" if high is None and value < low else f"{low} to {high or MOST}"
        raise ValueError(f"{flag_of(field.name)}: found {value}, expected {expected}")


def out_path(config, name, rows=False):
    """Where a command writes: --out, or a file of this name in the folder of results; rows: refuse
    the name that the rows beside a picture have."""
    if rows and config.out.endswith(".csv"):
        raise ValueError(f"--out {config.out}: expected a name of a picture; rows as CSV are "
                         "written beside it")
    if config.out:
        return Path(config.out)
    Path(config.results).mkdir(parents=True, exist_ok=True)
    return Path(config.results) / name


# ------------------------------------------------------------------------------ memory


def check_memory(config, needed):
    """Refuse settings that need more bytes than this machine has, by the name of the flag that is
    most above its default."""
    have = memory()
    if needed > have:
        raise ValueError(
            f"about {needed / 1e9:,.0f} GB of memory are needed, of which this machine has "
            f"{have / 1e9:.0f}{suspect(config)}")


def memory():
    """Bytes of memory that this process may take."""
    if not hasattr(os, "sysconf"):
        return math.inf
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages if limit == resource.RLIM_INFINITY else min(limit, pages)


def suspect(config):
    """What may be too large: the flag of the number that is most above its default, if one is."""
    above = {field.name: getattr(config, field.name) / max(field.default, 1)
             for field in dataclasses.fields(config)
             if field.type is int and field.metadata.get("in_hash", True) and field.name != "seed"}
    name = max(above, key=above.get, default=None)
    if name is None or above[name] <= 1:
        return ""
    return f"; {flag_of(name)} {getattr(config, name)} may be too much"


# ------------------------------------------------------------------------------ naming a result


def experiment_of(config):
    """The name of the experiment that a settings object belongs to: its class, in small letters."""
    return type(config).experiment or type(config).__name__.lower()


def identify(config, **more):
    """What determines a result, as a dict, and a short name for it."""
    fields = [f for f in dataclasses.fields(config) if f.metadata.get("in_hash", True)]
    content = {f.metadata.get("name", f.name): getattr(config, f.name) for f in fields} | more
    named = {"experiment": experiment_of(config), "version": config.version, **content}
    text = json.dumps(named, sort_keys=True)
    return content, hashlib.sha256(text.encode()).hexdigest()[:10]


NO_NUMBERS = ("plots", "process", "tell")  # of experiments/


def sources(path):
    """The files of ours that a file imports, directly or not, itself included; but for those that
    change no number."""
    found, left = set(), [path]
    while left:
        path = left.pop()
        if path in found or (path.parent.name == "experiments" and path.stem in NO_NUMBERS):
            continue
        found.add(path)
        names = imported_names(ast.parse(text_of(path)))
        places = [ROOT / name.replace(".", "/") for name in names]
        files = [place.with_suffix(".py") for place in places]
        files += [place / "__init__.py" for place in places]
        left.extend(file for file in files if file.exists())
    return sorted(found)


def text_of(path):
    """A file of ours as this process imported it; another one as it is."""
    return CODE[path] if path in CODE else path.read_text()


def imported_names(tree):
    """The names of all modules that a parsed file imports, PACKAGE.MODULE; also of other things."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def code_digest(settings, file=None):
    """A digest of the code of an experiment, that of its settings class or a file, and of all that
    it imports and that can change a number, so that a result made by other code can be told."""
    path = Path(file or sys.modules[settings.__module__].__file__).resolve()
    code = "\n".join(without_words(text_of(source)) for source in sources(path))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def without_words(text):
    """Python code without comments, docstrings and empty lines."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            doc = node.body[0]
            lines[doc.lineno - 1:doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


# ------------------------------------------------------------------------------ the device


def blas_kernels():
    """The BLAS libraries of this process and their kernels, on which the last bits depend."""
    found = [info for info in threadpool_info() if info["user_api"] == "blas"]
    names = {f"{info['internal_api']} {info.get('architecture', '')}".strip() for info in found}
    return ", ".join(sorted(names))


def libraries():
    """The libraries that numbers depend on, with their versions."""
    return {name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")}


def device_of(name):
    """The array library and the device of --device; ValueError where there is no GPU."""
    if name == "cpu":
        import array_api_compat.numpy as xp

        return xp, "cpu"
    try:
        import cupy
    except ImportError:
        raise ValueError(
            "--device gpu: CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x)"
        ) from None
    if not cupy.is_available():
        raise ValueError("--device gpu: CuPy finds no GPU on this machine")
    import array_api_compat.cupy as xp

    return xp, cupy.cuda.Device()
