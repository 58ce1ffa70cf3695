"""The baselines: scans from installed packages, or from sources in benchmarks/third_party/ that
`benchmarks.gpu.baselines` has built. The results list each missing baseline and the reason."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "benchmarks" / "third_party"
BUILDS = ROOT / "build" / "third_party"
VMAMBA_EXTENSION, MAMBA_EXTENSION = "selective_scan_cuda_oflex", "selective_scan_cuda"


class Missing(Exception):
    """An implementation cannot run here; the message says why."""


@dataclass
class Baselines:
    """The baselines that were loaded, and why the others are missing. VMamba's is (cross_scan, selective_scan,
    cross_merge); the others are functions."""

    loaded: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A baseline. Raises `Missing` if it was not loaded."""
        if name not in self.loaded:
            raise Missing(self.missing[name])
        return self.loaded[name]


def module_from(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_extension(name: str) -> None:
    folder = BUILDS / name
    if not (folder / "built").exists():
        raise FileNotFoundError(f"{name} was not built; `python3 -m benchmarks.gpu.baselines` says why")
    importlib.import_module("torch")  # the extension is linked with torch's libraries
    module_from(folder / f"{name}.so", name)


def sources(folder: str) -> Path:
    if not (SOURCES / folder).is_dir():
        raise FileNotFoundError(f"not installed, and no sources in benchmarks/third_party/{folder}")
    return SOURCES / folder


def load_vmamba(device: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    models = sources("VMamba") / "classification" / "models"
    if device == "cuda":
        import_extension(VMAMBA_EXTENSION)
    routes = module_from(models / "csm_triton.py", "vmamba_csm_triton")
    scan = module_from(models / "csms6s.py", "vmamba_csms6s")
    if device == "cuda":
        return routes.cross_scan_fn, scan.selective_scan_fn, routes.cross_merge_fn
    return routes.CrossScanF.apply, scan.selective_scan_torch, routes.CrossMergeF.apply


def load_mamba(device: str) -> Callable[..., Any]:
    if importlib.util.find_spec("mamba_ssm") is None:
        package = ModuleType("mamba_ssm")  # avoids its __init__, which imports all of its models
        package.__path__ = [str(sources("mamba") / "mamba_ssm")]
        sys.modules["mamba_ssm"] = package
        if device == "cuda":
            import_extension(MAMBA_EXTENSION)
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    return interface.selective_scan_fn if device == "cuda" else interface.selective_scan_ref


def load_mambapy(device: str) -> Callable[..., Any]:
    try:
        return importlib.import_module("mambapy.pscan").pscan
    except ModuleNotFoundError:
        raise FileNotFoundError("not installed; `pip install mambapy`") from None


def load_transformers(device: str) -> Callable[..., Any]:
    try:
        return importlib.import_module("transformers.models.mamba.modeling_mamba").mamba_selective_scan
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"{error}; `pip install transformers`") from None


LOADERS = {
    "VMamba": load_vmamba,
    "mamba": load_mamba,
    "mamba.py": load_mambapy,
    "transformers": load_transformers,
}


def load(device: str, names: Iterable[str] = tuple(LOADERS)) -> Baselines:
    """Load the named baselines. On a CPU these are the projects' own PyTorch versions."""
    baselines = Baselines()
    for name in names:
        try:
            baselines.loaded[name] = LOADERS[name](device)
            revision = SOURCES / name / "REVISION"
            baselines.revisions[name] = revision.read_text().strip() if revision.exists() else "unknown"
        except Exception as error:  # the other baselines can still run
            baselines.missing[name] = f"{type(error).__name__}: {error}"
    return baselines
