"""Checks that the packages use only what the oldest torch allowed by pyproject.toml has:

    python torch_floor.py [VERSION]

Downloads the wheel of that torch version (or of VERSION) without installing it, and runs mypy on the packages against
its types. Prints every line that uses a module, an attribute or an argument that this torch lacks. Results of untyped
functions and arguments passed as **kwargs are not checked."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vmddpm_kernels", "vmddpm")
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")  # small wheels; all platforms have the same types

SETTINGS = """
[mypy]
check_untyped_defs = True
no_site_packages = True
follow_imports = skip
ignore_missing_imports = True
"""
TORCH = """
[mypy-torch.*]
follow_imports = silent
ignore_missing_imports = False
"""
# mypy joins several of our types to "object"; a keyword that no overload takes has its own message.
LACKS = re.compile(
    r"(?P<file>[^:/][^:]*):(?P<line>\d+): error: (?P<what>(?!\"object\"|No overload).*)  "
    r"\[(attr-defined|call-arg|import-not-found|call-overload)\]"
)


def floor(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The oldest version of torch that the package installs with."""
    dependencies = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    return next(d for d in dependencies if d.startswith("torch>=")).removeprefix("torch>=")


def download(version: str, folder: Path) -> Path:
    """Download that torch and unpack its Python files and stubs in `folder`."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", *platforms]
    subprocess.run([sys.executable, "-m", "pip", *command, f"--dest={folder}", f"torch=={version}"], check=True)
    with zipfile.ZipFile(next(folder.glob("torch-*.whl"))) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if re.match(r"torch/.*\.pyi?$", n)])
    return folder


def uses_of_missing_names(types: Path, sources: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """"file:line: message" for each use of something that the torch in the folder `types` lacks."""
    found = _mypy_errors(sources, packages, types) - _mypy_errors(sources, packages, None)
    return [f"{file}:{line}: {what}" for file, line, what in sorted(found)]


def _mypy_errors(sources: Path, packages: tuple[str, ...], types: Path | None) -> set[tuple[str, int, str]]:
    """mypy's messages; without `types`, all of torch is Any."""
    ours = "".join(f"[mypy-{package}.*]\nfollow_imports = normal\n" for package in packages)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "mypy.ini")
        settings.write_text(SETTINGS + ours + TORCH * (types is not None))
        command = ["mypy", f"--config-file={settings}", f"--cache-dir={folder}", "--hide-error-context"]
        command += [f"--package={package}" for package in packages]
        environment = {**os.environ, "MYPYPATH": str(types or "")}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=sources, env=environment, capture_output=True, text=True
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"mypy failed:\n{done.stdout}{done.stderr}")
    return {(m["file"], int(m["line"]), m["what"]) for line in done.stdout.splitlines() if (m := LACKS.fullmatch(line))}


def main(version: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        lines = uses_of_missing_names(download(version, Path(folder)))
    print("\n".join([*lines, f"torch {version}: {len(lines)} uses of what it lacks"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or [floor()])))
