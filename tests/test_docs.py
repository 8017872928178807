"""The README's equation map, commands and figures exist; public functions cite their source; the
core stands alone; lines end at column 100."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import mutants
import pytest

import run
import solvers
from experiments import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "docs" / "map.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
ENTRIES = sorted(set(re.findall(r"`([^`]+)`", MAP)))
CORE = ("solvers", "sparsedis", "data", "metrics")
ROOMS = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))
PACKAGE = sorted(path.stem for path in (ROOT / "sparsetasks").glob("[a-z]*.py"))
SOURCE = r"\[(L23|F23|EW18|docs/derivations\.md|[A-Z][\w ]+ \d{4})|[A-Z]\w+ and \w+ \d{4}"
CITES = re.compile(SOURCE + r"|EW18\]|et al\. \d{4}")
PUBLIC = {
    "solvers": """soft_threshold block_soft_threshold project_simplex lasso_lambda_max lasso
        ridge_lambda_max lasso_vjp ridge ridge_vjp group_lasso group_lasso_vjp group_svm
        group_lasso_lambda_max group_svm_vjp svm_lambda_max sparse_rotation""",
    "sparsedis": """cnn normalise inner_lasso inner_ridge outer_lasso outer_ridge
        adam task_objective""",
    "data": "latents sample_tasks Tasks",
    "metrics": "mcc r_score dci ica udr block_share assumptions supports_are_sufficient",
    "rotation": "unmix",
    "regression": "gaussian_task",
    "episodes": "ShapesEpisodes omniglot ImageEpisodes",
    "episode_heads": """svm_episode ridge_episode prototypes_episode sharing_episode
        episode_objective""",
    "episode_networks": "conv4 resnet12",
    "sharing_solver": "sparse_sharing sparse_sharing_vjp sharing_entropy",
    "sharing_data": "BinaryTasks",
    "torch_heads": "LassoHead SVMHead",
    "sharing": "binary_objective",
}


def room(name):
    """A module of the core, of sparsetasks/ or of experiments/."""
    if name in ("torch_heads", "jax_heads"):
        library = {"torch": "PyTorch", "jax": "JAX"}[name.partition("_")[0]]
        pytest.importorskip(name.partition("_")[0], reason=f"{library} is not installed")
    prefix = "" if name in CORE else "sparsetasks." if name in PACKAGE else "experiments."
    return importlib.import_module(prefix + name)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_of_the_equation_map_resolves(entry):
    if not entry.startswith("run.py "):
        *_, module, name = entry.split(".")
        assert callable(getattr(room(module), name))
        return
    _, command, *rest = entry.split()
    parser, _, _ = run.parser_of(command)
    flags = [word for word in rest if word.startswith("--")]
    assert all(flag in parser._option_string_actions for flag in flags)
    if command in ("figure", "sweep"):
        parser.parse_args([rest[0]])


NAMED = [(module, name) for module, names in PUBLIC.items() for name in names.split()]


@pytest.mark.parametrize("module, name", NAMED)
def test_public_functions_cite_their_source(module, name):
    assert CITES.search(getattr(room(module), name).__doc__), f"{module}.{name}"


@pytest.mark.parametrize("module", [*CORE, *"theory regression fewshot episode_heads".split()])
def test_the_map_names_all_that_cite_an_equation(module):
    """Whatever cites an equation, proposition, lemma, theorem or problem of [L23] is in the map."""
    names = r"\[L23, (Problem|Eq|Prop|Lemma|Theorem)|^(Proposition|Lemma|Theorem|Equations) "
    for name, thing in vars(room(module)).items():
        own = getattr(thing, "__module__", "").rpartition(".")[2] == module
        if callable(thing) and own and re.search(names, thing.__doc__ or ""):
            assert f"`{module}.{name}`" in MAP, f"{module}.{name}"


def links_of(path):
    """Where a page's links and figures lead, file and anchor, as texts; within the project."""
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    return [(one or other).partition("#")[::2] for one, other in links
            if not (one or other).startswith("http")]


def anchors_of(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES)
def test_links_and_figures_exist(path):
    for file, anchor in links_of(path):
        target = (ROOT / path).parent / file if file else ROOT / path
        assert target.exists(), f"{path}: {file}"
        assert not anchor or anchor in anchors_of(target), f"{path}: {file}#{anchor}"


def test_docs_can_be_served_as_they_are():
    """No link leaves docs/, and every page is reached from index.md."""
    pages = [path for path in PAGES if path.startswith("docs/")]
    for path in pages:
        for file, _ in links_of(path):
            target = ((ROOT / path).parent / file).resolve()
            assert target.is_relative_to(ROOT / "docs"), f"{path}: {file}"
    reached = {f"docs/{file}" for file, _ in links_of("docs/index.md")}
    assert {*pages} - reached <= {"docs/index.md"}


def test_the_readme_quotes_lasso_vjp_whole():
    assert inspect.getsource(solvers.lasso_vjp) in README


QUOTED = [
    (path, *found)
    for path in PAGES
    for found in re.findall(
        r"<!-- (\w+)\.(\w+) -->\n```python\n(.*?)```", (ROOT / path).read_text(), re.S)
]


def test_lines_of_code_are_quoted():
    assert len({name for _, _, name, _ in QUOTED}) >= 12


@pytest.mark.parametrize("path, module, name, block", QUOTED)
def test_quoted_lines_are_those_of_the_code(path, module, name, block):
    source = inspect.getsource(getattr(room(module), name)).splitlines()
    lines = block.splitlines()
    depth = next(len(line) - len(line.lstrip()) for line in source if line.strip() == lines[0])
    assert textwrap.indent(block, depth * " ").rstrip("\n") in "\n".join(source), block


def test_the_first_page_is_short_and_has_every_command():
    assert len(re.sub("<!--.*?-->", "", README).split()) <= 1600
    named = re.findall(r"`python run\.py \[?([\w-]+)", README)
    assert set(run.COMMANDS) <= set(named)


def test_commands_of_the_readme_are_accepted():
    for line in re.findall(r"`python run\.py ([^`]+)`", README):
        words = line.replace("[", " ").replace("]", " ").split()
        words = [word for word in words if not word.isupper()]
        if words and not words[0].startswith("-"):
            assert words[0] in run.COMMANDS, line
        command = words[0] if words and words[0] in run.COMMANDS else "disentangle"
        parser, _, _ = run.parser_of(command)
        for flag in (word for word in words if word.startswith("--")):
            assert flag in parser._option_string_actions, line


TESTS = {path.stem for path in (ROOT / "tests").glob("*.py")}
FOLDERS = ("experiments", "sparsetasks")
CODE = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))]
OURS = {*CORE, "run", *FOLDERS, *(f"{path.parent.name}.{path.stem}" for path in CODE)}
LAYERS = [  # of experiments/: a room imports rooms of the lines above its own, never below
    ["settings", "process", "episode_networks", "sharing_solver"],
    ["results", "tell", "episode_heads"],
    ["plots", "tables"],
    ["episodes", "render", "regression", "theory", "bench", "report"],
    ["disentangle", "sharing_data", "inner_problems"],
    ["fewshot", "sharing", "tasks", "page", "nuisance"],
    ["sharing_features", "apply"],
    ["maps"],
    ["transfer", "shared_maps", "penalties", "entropy", "subsets"],
    ["gradcheck"],
    ["exercise_words"],
    ["exercise_trials"],
    ["exercise"],
    ["sweeps"],
    ["rotation", "beyond"],
    ["figures"],
]


def imports_of(path):
    """The modules of ours that a file imports anywhere, also inside its functions."""
    return set(settings.imported_names(ast.parse(path.read_text()))) & (OURS | TESTS)


def test_the_mutants_looked_at_are_of_lines_that_are_there():
    for file, start, *_ in mutants.EQUIVALENT:
        lines = (ROOT / f"{file}.py").read_text().splitlines()
        assert any(line.strip().startswith(start) for line in lines), f"{file}.py: {start}"


def test_solvers_data_and_metrics_import_nothing_of_ours():
    for name in ("solvers", "data", "metrics"):
        assert not imports_of(ROOT / f"{name}.py"), name


def test_the_core_stands_alone():
    """sparsedis -> solvers, and run.py reaches experiments by settings and by name alone."""
    assert imports_of(ROOT / "sparsedis.py") == {"solvers"}
    rooms = {"experiments.process", "experiments.settings"}
    assert imports_of(ROOT / "run.py") == {"experiments", *rooms}


def test_what_pip_installs_imports_the_core_alone():
    own = {"sparsetasks", *(f"sparsetasks.{name}" for name in PACKAGE)}
    for name in PACKAGE:
        assert imports_of(ROOT / "sparsetasks" / f"{name}.py") <= {"solvers", "sparsedis"} | own


def test_nothing_but_tests_imports_tests_or_the_command_line():
    for path in [*CODE, *(ROOT / "docs" / "examples").glob("*.py")]:
        assert not imports_of(path) & (TESTS - OURS), path
        assert "run" not in imports_of(path), path


def test_experiments_import_in_one_direction():
    assert sorted(name for layer in LAYERS for name in layer) == ROOMS
    for i, layer in enumerate(LAYERS):
        above = {name for rooms in LAYERS[:i] for name in rooms}
        for name in layer:
            ours = imports_of(ROOT / "experiments" / f"{name}.py")
            rooms = {own.removeprefix("experiments.") for own in ours} & set(ROOMS) - {name}
            assert rooms <= above, f"{name} imports {rooms - above}"


def test_no_line_is_beyond_column_100():
    for folder in (".", *FOLDERS, "tests", "docs/examples"):
        for path in [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.html")]:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                assert len(line) <= 100, f"{path}:{number}"


@pytest.mark.parametrize("path", PAGES)
def test_inline_mathematics_survives_markdown(path):
    """Markdown eats a backslash before punctuation in $...$, but not in $`...`$ and in blocks."""
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(), flags=re.S)
    for inline in re.findall(r"(?<![`$\\w])\$([^$`\n]+)\$(?!`)", text):
        assert not re.search(r"\\[^a-zA-Z]", inline), inline
