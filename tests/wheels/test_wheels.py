"""The release scripts agree with pyproject.toml and constraints.txt; no wheel is built here."""

import re
import runpy
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = PROJECT["tool"]["cibuildwheel"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def jobs(workflow):
    return yaml.safe_load((ROOT / ".github" / "workflows" / workflow).read_text())["jobs"]


def commands():
    return [
        (path.name, step["run"])
        for path in WORKFLOWS
        for job in jobs(path.name).values()
        for step in job["steps"]
        if "run" in step
    ]


def test_wheels_and_workflows_are_for_every_python_that_is_allowed():
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    assert all(version in allowed for version in PYTHONS)
    assert "3.9" not in allowed
    assert WHEELS["build"].split() == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert jobs("test.yml")["kernels"]["strategy"]["matrix"]["python"] == PYTHONS


def test_the_oldest_torch_that_is_allowed_is_in_the_matrix():
    (torch,) = [r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "torch"]
    (oldest,) = [clause.version for clause in torch.specifier if clause.operator == ">="]
    tested = [row["torch"] for row in jobs("test.yml")["kernels"]["strategy"]["matrix"]["include"]]
    assert any(re.fullmatch(rf"=={re.escape(oldest)}(\.0)?", version) for version in tested)


def test_wheels_of_both_ways_are_manylinux_2_28_and_leave_out_the_openmp_runtime():
    script = runpy.run_path(str(ROOT / "wheels" / "build_wheels.py"))
    for arch in script["COMPILERS"]:
        assert WHEELS[f"manylinux-{arch}-image"] == script["POLICY"] == "manylinux_2_28"
    exclude = "--exclude libgomp.so.1"
    assert exclude in WHEELS["repair-wheel-command"]
    assert exclude.replace(" ", '", "') in (ROOT / "wheels" / "build_wheels.py").read_text()
    cuda = {row["select"]: row["environment"]["VMDDPM_CUDA"] for row in WHEELS["overrides"]}
    assert cuda == {"*-manylinux_x86_64": "1", "*-manylinux_aarch64": "0"}


def test_workflows_run_what_is_there():
    assert {path.name for path in WORKFLOWS} == {"docs.yml", "test.yml", "wheels.yml"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = commands()
    assert "make test" in [command for _, command in seen]
    for name, command in seen:
        assert set(re.findall(r"\bmake ([\w-]+)", command)) <= targets, name
        for path in re.findall(r"\b(?:tests|wheels)/[\w/.]+", command):
            assert (ROOT / path).exists(), (name, path)
    for name in WHEELS["test-command"].split()[1:]:
        assert Path(name.replace("{project}", str(ROOT))).exists()


def test_every_job_has_a_limit_and_may_only_read():
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
        for name, job in jobs(path.name).items():
            assert job["timeout-minutes"] <= 360, (path.name, name)
            for step in job["steps"]:
                assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@v[\d.]+", step["uses"])


def test_hooks_have_the_versions_of_the_constraints_and_exact_ones_otherwise():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "clang-format", "actionlint", "mypy"} <= set(hooks)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {r.name: r.specifier for r in map(Requirement, [line for line in lines if not line.startswith("#")])}
    for hook in hooks.values():
        for needed in map(Requirement, hook.get("additional_dependencies", [])):
            assert str(needed.specifier).startswith("==")
            assert versions.get(needed.name, needed.specifier) == needed.specifier
    tracked = [str(path.relative_to(ROOT)) for folder in ("csrc", "vmddpm") for path in (ROOT / folder).rglob("*.*")]
    for name in ("ruff-format", "clang-format"):
        assert any(re.search(hooks[name]["files"], path) for path in tracked), name


@pytest.mark.parametrize(("symbol", "fits"), [("PyLong_FromLong", True), ("arc4random_of_tomorrow", False)])
def test_a_wheel_with_a_symbol_of_no_library_is_refused(tmp_path, symbol, fits):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or not shutil.which("readelf"):
        pytest.skip("no C compiler")
    source = tmp_path / "native.c"
    source.write_text(f"#include <stdlib.h>\nint {symbol}(void);\nint call(void) {{ return {symbol}() + rand(); }}\n")
    library = tmp_path / "native.so"
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    wheel = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "package/native.so")
    check = runpy.run_path(str(ROOT / "wheels" / "build_wheels.py"))["check_symbols"]
    if fits:
        check(wheel)
    else:
        with pytest.raises(SystemExit, match=rf"glibc 2\.28 does not have: {symbol}$"):
            check(wheel)
