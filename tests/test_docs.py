"""The documentation works: Python blocks run, and shell commands name existing things."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "docs", ROOT / "examples"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for f in FOLDERS for p in sorted(f.rglob("*.md")))]


def blocks(language):
    """(page and number, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}") for i, text in enumerate(texts)]
    return found


def commands(text):
    """The commands of a shell block as lists of words, without comments and settings such as NAME=value."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


@pytest.mark.parametrize("text", blocks("python"))
def test_python_block(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "block", "exec"), {})


@pytest.mark.parametrize("text", blocks("sh"))
def test_shell_block(text, monkeypatch):
    from vmddpm.cli import parse

    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in commands(text):
        if program == "vmddpm":
            parse(arguments)
        elif program == "make":
            assert {a for a in arguments if "=" not in a} <= set(targets)
        elif program == "python" and arguments[0] == "-m":
            module = ROOT / arguments[1].replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
        elif program == "python":
            assert (ROOT / arguments[0]).exists()
        elif program == "pytest":
            assert all((ROOT / a).exists() for a in arguments if not a.startswith("-"))
        else:
            known = ("pip", "torchrun", "cd", "git", "curl", "sha256sum")
            assert program in known, f"{program}: not a command the documents use"


def test_the_kernels_and_the_model_take_ten_lines():
    examples = [p.values[0] for p in blocks("python") if p.id.startswith("README")]
    assert len(examples) == 2
    assert max(text.count("\n") for text in examples) <= 12


def test_the_migration_table_imports_what_is_there():
    text = (ROOT / "docs" / "dropin.md").read_text(encoding="utf-8")
    imports = re.findall(r"`(from vmddpm_kernels[^`]* import [^`]*)`", text)
    assert imports
    for statement in imports:
        exec(statement, {})


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/reader_study.md"])
def test_links_lead_to_files(page):
    """mkdocs checks the links of docs/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text)]
    assert [link for link in links if link and not (ROOT / page).parent.joinpath(link).exists()] == []
