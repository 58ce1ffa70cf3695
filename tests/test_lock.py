"""The lock files match constraints.txt and pyproject.toml: every package once, each file with its hash."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def locked(lock="requirements.lock"):
    """{name: the requirement's lines as pip reads them}; a name may be there for several versions of Python."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found.setdefault(canonicalize_name(Requirement(requirement).name), []).append((requirement, hashes))
    return found


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(("lock", "least"), [("requirements.lock", 100), ("requirements-demo.lock", 60)])
def test_every_file_has_a_hash_and_every_version_is_the_constraints(lock, least):
    found = locked(lock)
    assert len(found) > least
    for lines in found.values():
        for requirement, hashes in lines:
            assert hashes, requirement
            assert all(re.fullmatch("sha256:[0-9a-f]{64}", text) for text in hashes)
            assert str(Requirement(requirement).specifier).startswith("==")
    for wanted in constraints():
        name = canonicalize_name(wanted.name)
        assert name != "torch" or name not in found
        if name in found:  # packages that only supply images for nightly tests are not locked
            assert [str(Requirement(line).specifier) for line, _ in found[name]] == [str(wanted.specifier)]


def test_the_demo_has_a_part_of_the_developers_files():
    def files(lock):  # drops the markers, which differ between locks
        lines = [(name, *line) for name, lines in lock.items() for line in lines]
        return {(name, str(Requirement(line).specifier), *hashes) for name, line, hashes in lines}

    part = locked("requirements-demo.lock")
    assert files(part) <= files(locked())
    assert not {"pytest", "mypy", "ruff", "mkdocs", "transformers", "playwright"} & set(part)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {canonicalize_name(Requirement(line).name) for line in build} <= set(part)


@pytest.mark.parametrize(
    ("lock", "extra", "least"), [("requirements.lock", "dev", 80), ("requirements-demo.lock", "demo", 50)]
)
def test_nothing_that_is_needed_is_missing(lock, extra, least):
    """Every installed dependency of the packages is locked, except torch and its dependencies."""
    found, seen = locked(lock), set()

    def walk(name, extras):
        if (name, extras) in seen or name == "torch":
            return
        seen.add((name, extras))
        for requirement in map(Requirement, requires(name) or []):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
                walk(canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))

    walk("vmddpm", (extra,))
    needed = {name for name, _ in seen} - {"vmddpm"}
    assert needed - set(found) == set()
    assert len(needed) > least
