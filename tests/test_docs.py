"""The README's equation map, commands and figures exist; public functions cite their source; files stay within their size."""
import importlib
import re
from pathlib import Path

import pytest

import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = README.split("## Equation map")[1].split("\n## ")[0]
ENTRIES = sorted(set(re.findall(r"`([^`]+)`", MAP)))
CITES = re.compile(r"\[(L23|F23|EW18|docs/derivations\.md|[A-Z][\w ]+ \d{4})|[A-Z]\w+ and \w+ \d{4}|EW18\)|et al\. \d{4}")
PUBLIC = {"solvers": """soft_threshold block_soft_threshold project_simplex lasso_lambda_max ridge_lambda_max lasso lasso_vjp ridge ridge_vjp group_lasso
                        group_lasso_vjp group_lasso_lambda_max group_svm group_svm_vjp svm_lambda_max sparse_sharing sparse_sharing_vjp sharing_entropy""",
          "sparsedis": """cnn conv4 resnet12 normalise inner_lasso inner_ridge outer_lasso outer_ridge svm_episode ridge_episode prototypes_episode
                          sharing_episode adam task_objective episode_objective binary_objective""",
          "data": "latents sample_tasks Tasks gaussian_task BinaryTasks ShapesEpisodes omniglot",
          "metrics": "mcc r_score dci ica udr block_share assumptions supports_are_sufficient theory"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_of_the_equation_map_resolves(entry):
    if not entry.startswith("run.py "):
        module, name = entry.split(".")
        assert callable(getattr(importlib.import_module(module), name))
        return
    _, command, *rest = entry.split()
    top, commands = run.parser()
    assert command in commands
    flags = [word for word in rest if word.startswith("--")]
    assert all(flag in commands[command]._option_string_actions for flag in flags)
    if command in ("figure", "sweep"):
        top.parse_args([command, rest[0]])


@pytest.mark.parametrize("module, name", [(module, name) for module, names in PUBLIC.items() for name in names.split()])
def test_public_functions_cite_their_source(module, name):
    assert CITES.search(getattr(importlib.import_module(module), name).__doc__), f"{module}.{name}"


@pytest.mark.parametrize("module", PUBLIC)
def test_the_map_names_all_that_cite_an_equation(module):
    """Whatever cites an equation, problem, proposition, lemma, theorem or figure of [L23] is in the map."""
    for name, thing in vars(importlib.import_module(module)).items():
        if callable(thing) and getattr(thing, "__module__", "") == module:
            if re.search(r"\[L23, (Problem|Eq|Prop|Lemma|Theorem)|^(Proposition|Lemma|Theorem|Equations)", thing.__doc__ or ""):
                assert f"`{module}.{name}`" in MAP or name in ("draw_bound",), f"{module}.{name}"


@pytest.mark.parametrize("path", ["README.md", "docs/results.md", "docs/derivations.md", "docs/errata.md"])
def test_links_and_figures_exist(path):
    text = (ROOT / path).read_text()
    for link in re.findall(r"\]\(([^)#]+?)\)|src=\"([^\"]+)\"", text):
        target = link[0] or link[1]
        if not target.startswith("http"):
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"


def test_commands_of_the_readme_are_accepted():
    top, commands = run.parser()
    for line in re.findall(r"`python run\.py ([^`]+)`", README):
        words = [word for word in line.replace("[", " ").replace("]", " ").split() if word.isupper() is False]
        if words and not words[0].startswith("-"):
            assert words[0] in commands, line
        for flag in (word for word in words if word.startswith("--")):
            command = words[0] if words[0] in commands else "disentangle"
            assert flag in commands[command]._option_string_actions, line


def test_no_file_is_beyond_900_lines():
    for name in ("sparsedis", "solvers", "data", "metrics", "run"):
        assert len((ROOT / f"{name}.py").read_text().splitlines()) <= 900
    assert {path.stem for path in ROOT.glob("*.py")} == {"sparsedis", "solvers", "data", "metrics", "run"}


@pytest.mark.parametrize("path", ["README.md", "docs/results.md", "docs/derivations.md", "docs/errata.md"])
def test_inline_mathematics_survives_markdown(path):
    """GitHub's Markdown eats a backslash before punctuation in $...$, but not in $`...`$ and in blocks."""
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(), flags=re.S)
    for inline in re.findall(r"(?<![`$\\w])\$([^$`\n]+)\$(?!`)", text):
        assert not re.search(r"\\[^a-zA-Z]", inline), inline
