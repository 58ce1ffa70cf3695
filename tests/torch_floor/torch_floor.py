"""Whether the packages ask only for what the oldest torch that pyproject.toml allows has:

    python torch_floor.py [VERSION]

Downloads the wheel of that version of torch (or of VERSION), installs nothing, and has mypy check the packages against
the types in it. Every line is printed that uses a module, an attribute or an argument which that torch lacks. What
comes from an untyped function is not checked, nor are arguments that a function takes as **kwargs."""

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
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")  # whose wheels are small; the types are the same in all

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
# "object" is what mypy makes of several types of our own, and a keyword that no overload takes has a line of its own.
LACKS = re.compile(
    r"(?P<file>[^:/][^:]*):(?P<line>\d+): error: (?P<what>(?!\"object\"|No overload).*)  "
    r"\[(attr-defined|call-arg|import-not-found|call-overload)\]"
)


def floor(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The oldest version of torch that the package installs with."""
    dependencies = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    return next(d for d in dependencies if d.startswith("torch>=")).removeprefix("torch>=")


def download(version: str, folder: Path) -> Path:
    """The Python files and the stubs of that torch, unpacked in `folder`."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", *platforms]
    subprocess.run([sys.executable, "-m", "pip", *command, f"--dest={folder}", f"torch=={version}"], check=True)
    with zipfile.ZipFile(next(folder.glob("torch-*.whl"))) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if re.match(r"torch/.*\.pyi?$", n)])
    return folder


def lacking(types: Path, sources: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """"file:line: what" for each use of something that the torch in the folder `types` does not have."""
    found = _complaints(sources, packages, types) - _complaints(sources, packages, None)
    return [f"{file}:{line}: {what}" for file, line, what in sorted(found)]


def _complaints(sources: Path, packages: tuple[str, ...], types: Path | None) -> set[tuple[str, int, str]]:
    """What mypy has to say; without `types`, all of torch is Any to it."""
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
        lines = lacking(download(version, Path(folder)))
    print("\n".join([*lines, f"torch {version}: {len(lines)} uses of what it lacks"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or [floor()])))
