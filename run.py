"""run.py -- the command line: a table of commands, and errors in one line.

    python run.py [disentangle] [--rho 0.9 ...]     the main job: disentangle 3D Shapes
    python run.py COMMAND --help                    every flag of a command

Each command is a settings class and a function of experiments/, which holds all the rest.
"""
import argparse
import difflib
import importlib
import sys
import warnings

from experiments import process, settings

VERSION = "0.2.0"                                                   # as in pyproject.toml

COMMANDS = {  # name: module of experiments/, settings class, function, what it does
    "disentangle": ("disentangle", "Disentangle", "command", "the main job, and the default"),
    "tasks": ("tasks", "TableTasks", "command", "your own table or images with many targets"),
    "fewshot": ("fewshot", "FewShot", "command", "few-shot learning with group-Lasso SVMs"),
    "sharing": ("sharing_features", "Sharing", "command", "sparse and shared features [F23]"),
    "render": ("render", "Render", "render", "write the rendered data set as HDF5"),
    "encode": ("apply", "Encode", "encode", "features of your own images or rows"),
    "real": ("apply", "Real", "real", "real images beside renders of the same factors"),
    "curves": ("apply", "Curves", "curves", "MCC against the step of runs"),
    "sweep": ("sweeps", "Sweep", "sweep", "the runs behind the figures"),
    "figure": ("figures", "Figure", "figure", "a figure of the paper"),
    "page": ("page", "Page", "page", "runs as a page to play with, one HTML file"),
    "maps": ("maps", "Maps", "command", "the last linear layer alone, in seconds: docs/beyond.md"),
    "transfer": ("transfer", "Transfer", "command", "new sparse tasks on learned features"),
    "nuisance": ("nuisance", "Nuisance", "command", "tasks that need some of the factors only"),
    "shared-maps": ("shared_maps", "SharedMaps", "command", "[F23] on a linear map, in a minute"),
    "penalties": ("penalties", "Penalties", "command", "eps learned by its hypergradient"),
    "subsets": ("subsets", "Subsets", "command", "an encoder through best subsets"),
    "theory": ("theory", "Theory", "command", "the formal claims, on numbers"),
    "choose-eps": ("sweeps", "ChooseEps", "choose_eps", "choose eps without ground truth, by UDR"),
    "gradcheck": ("gradcheck", "GradCheck", "gradcheck", "every derivative against differences"),
    "exercise": ("exercise", "ExerciseSettings", "exercise", "write it yourself, and be told"),
    "bench": ("bench", "Bench", "bench", "timings beside other libraries, and how they grow"),
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line, which name the flag that was meant."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_args(self, args):
        found, unknown = self.parse_known_args(args)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"no argument {unknown[0]}{nearest(unknown[0], flags)}")
        return found


def parser_of(name):
    """The parser of a command, its settings class and its function."""
    module, settings_class, function, _ = COMMANDS[name]
    module = importlib.import_module(f"experiments.{module}")
    cls = getattr(module, settings_class)
    parser = Parser(prog=f"run.py {name}", description=cls.__doc__)
    settings.add_flags(parser, cls)
    return parser, cls, getattr(module, function)


def nearest(word, words):
    """", did you mean X?" for a mistyped word, or nothing."""
    close = difflib.get_close_matches(word.partition("=")[0], words, n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def help_text():
    """What `run.py --help` prints."""
    table = "\n".join(f"  {name:<12} {row[3]}" for name, row in COMMANDS.items())
    return f"{__doc__}\ncommands:\n{table}"


def main(argv):
    """Run a command line; returns the exit status."""
    if argv and argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if argv == ["--version"]:
        print(VERSION)
        return 0
    if not argv or (argv[0].startswith("-")):
        argv = ["disentangle", *argv]
    name, *rest = argv
    if name not in COMMANDS:
        told = nearest(name, COMMANDS) or f", expected one of {', '.join(COMMANDS)}"
        print(f"run.py: no command {name}{told}", file=sys.stderr)
        return 2
    parser, settings_class, function = parser_of(name)
    args = parser.parse_args(rest)
    return carried_out(name, settings_class, function, args)


def carried_out(name, settings_class, function, args):
    """Carry a command out; the exit status, after one line where it fails."""
    try:
        config = settings.read(settings_class, args)
        return function(config) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        status, told = 2, f"run.py {name}: {error}"
    except MemoryError as error:
        status, told = 2, f"run.py {name}: out of memory, {error}{settings.suspect(config)}"
    except FloatingPointError as error:
        status, told = 1, f"run.py {name}: {error}; a checkpoint, if there is one, is kept"
    except KeyboardInterrupt:
        status, told = 130, "\ninterrupted"
        if name == "sweep" or issubclass(settings_class, settings.RunSettings):
            again = "without --force " if getattr(args, "force", False) else ""
            told += f"; the same command {again}goes on from the last checkpoint, if there is one"
    print(told, file=sys.stderr)
    return status


if __name__ == "__main__":
    process.prepare()
    warnings.simplefilter("ignore", RuntimeWarning)  # training refuses what is not finite
    sys.exit(process.status_of(main, sys.argv[1:]))
