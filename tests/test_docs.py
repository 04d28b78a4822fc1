"""The README and the pages: what they name is there, and the commands accept what is shown. Nothing is run.

Checked are links, paths, modules, extras, and every command: shown in a block, it is parsed as a whole; named in a
sentence, its flags are looked up in the command's own help.
"""

import ast
import contextlib
import importlib
import io
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from sama.cli import main, parser
from sama.train import CONFIGS, configure

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*.md"))
FOLDERS = ("bench", "docs", "examples", "kernels", "models", "sama", "tests", "tools")
BLOCK = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.M | re.S)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def spans(page: Path) -> list[str]:
    """What stands in backticks in the sentences."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text()))]


def commands(page: Path) -> list[list[str]]:
    """The commands of the shell blocks, in words, without comments and the dots of an example."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|;", line.split("  # ")[0].split(" # ")[0])]
    found = [[word for word in shlex.split(part, comments=True) if word != "..."] for part in parts]
    return [words for words in found if words]


def train_arguments(words: list[str]) -> list[str] | None:
    """The arguments of a command that trains, else None."""
    for start in (["sama", "train"], ["python", "-m", "sama.train"]):
        if words[: len(start)] == start:
            return words[len(start) :]
    if words[0] == "torchrun" and "sama.train" in words:
        return words[words.index("sama.train") + 1 :]
    return None


@cache
def help_of(*command: str) -> str:
    """The help that a command prints, on one line."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([*command, "--help"])
    return " ".join(text.getvalue().split())


def all_flags() -> str:
    """The help of every command, and the text of every script."""
    names = ("score", "inspect", "report", "compare", "evaluate", "demo-data", "train", "weights", "export")
    scripts = [*ROOT.glob("bench/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("examples/*.py")]
    return " ".join([help_of(), help_of("data", "check"), *map(help_of, names), *(s.read_text() for s in scripts)])


def has_flag(text: str, flag: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) is not None


def test_the_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("mark", ["main", "tests"])
def test_the_two_marked_commands_are_in_the_readme(mark):
    """As `.ci/run` reads them: the block after the mark, of one line."""
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(rf"^<!-- {mark} -->\n```sh\n[^\n]+\n```$", text, re.M)) == 1


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere_and_no_path_of_a_machine_is_shown(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert not missing
    assert not re.findall(r"(?<![\w.~])/(?:tmp|home|root|work|usr|opt|Users)/\S*", text)


@pytest.mark.parametrize("page", [*PAGES, *sorted(CONFIGS.glob("*.yaml"))], ids=lambda page: page.name)
def test_paths_of_the_project_that_are_named_exist(page):
    text = " ".join(spans(page)) if page.suffix == ".md" else page.read_text()
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w/?)", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@pages
def test_modules_functions_and_extras_that_are_named_exist(page):
    text = page.read_text()
    for name in set(re.findall(r"\bsama(?:\.[a-zA-Z_]\w*)+", " ".join([*spans(page), *blocks(page, "python")]))):
        found, parts = "sama", name.split(".")[1:]
        for part in parts:
            owner = importlib.import_module(found)
            if hasattr(owner, part) and not isinstance(getattr(owner, part), ModuleType):
                break  # a function or class; what stands behind it is its own
            found += f".{part}"
            importlib.import_module(found)
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for group in re.findall(r"\.\[([\w,]+)\]", text) for extra in group.split(",")} <= set(extras)


@pages
def test_commands_in_blocks_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        arguments = train_arguments(words)
        if arguments is not None:
            if "--config" in arguments and arguments[arguments.index("--config") + 1].startswith("mine"):
                continue
            configure(arguments)
        elif words[0] == "sama":
            parser().parse_args(words[1:])
        elif words[0] in ("python", "bash") and words[1].endswith((".py", ".sh")):
            script = (ROOT / words[1]).read_text()
            assert not [word for word in words[2:] if word.startswith("--") and not has_flag(script, word)], words


@pages
def test_commands_and_flags_in_sentences_are_known(page):
    everything = all_flags()
    for span in spans(page):
        words = re.split(r"[\s=]+", span)
        flags = [word for word in words if re.fullmatch(r"--[a-z][\w.-]*", word)]
        if words[0] == "sama" and len(words) > 1:
            name = next(word for word in words[1:] if not word.startswith("-"))
            about = help_of("data", "check") if name == "data" else help_of(name)
            assert not [flag for flag in flags if not has_flag(about, flag)], span
        elif words[0] not in ("pip", "git", "python3", "torchrun", "ruff", "kill"):
            assert not [flag for flag in flags if not has_flag(everything, flag)], span


def test_every_shipped_config_is_on_the_page_about_training_and_its_command_is_accepted():
    named = set(spans(ROOT / "docs" / "training.md"))
    assert not [path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in named]
    for path in CONFIGS.glob("*.yaml"):
        command = re.search(r"^# Command: (.*)$", path.read_text(), re.M)[1].split(" && ")[0]
        configure(train_arguments(shlex.split(command)))


def test_the_changelog_has_sections_of_a_known_form():
    """keep-a-changelog: versions, newest first, each with sections of known names."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", text, re.M)[-1] == "0.1.0"
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Moved"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= known
