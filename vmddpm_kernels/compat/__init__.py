"""The operators under the names by which other projects import theirs.

`compat.mamba_ssm`, `compat.vmamba` and `compat.selective_scan` are for a changed import line; `install` is for model
code that stays as it is.
"""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any

from vmddpm_kernels import cross_scan
from vmddpm_kernels.compat import extensions, mamba_ssm, selective_scan, vmamba

__all__ = ["Installation", "install", "uninstall"]

_installations: list["Installation"] = []


def install(installed: str = "refuse", vmamba_package: str | None = None) -> "Installation":
    """Stands in for mamba_ssm and for VMamba's kernels, for model code that is imported from then on.

    `mamba_ssm.ops.selective_scan_interface`, `selective_scan`, `selective_scan_cuda`, `selective_scan_cuda_oflex` and
    `selective_scan_cuda_core` are entered in sys.modules. causal_conv1d is not: mamba_ssm's code works without.

    Args:
        installed: what happens where one of these packages is really installed. "refuse" raises ImportError; "keep"
            leaves all names of that package to it, for example a mamba_ssm that was built without
            `selective_scan_cuda`; "override" stands in for it too, and for nothing else in that package.
        vmamba_package: the package of VMamba's own csm_triton.py and csms6s.py, "models" for example, or "" if they are
            imported by these names alone: both are stood in for too, whether they exist or not.

    Returns:
        what was entered; `with install(): ...` takes it out at the end.

    Raises:
        ImportError: if a package is really installed and `installed` is "refuse".
    """
    if installed not in ("refuse", "keep", "override"):
        raise ValueError(f'installed must be "refuse", "keep" or "override", got {installed!r}')
    if not isinstance(vmamba_package, str | None):
        raise TypeError(f"vmamba_package must be a str or None, got {type(vmamba_package).__name__}")
    modules = _stand_ins()
    real = {root: origin for root in {name.partition(".")[0] for name in modules} if (origin := _real_origin(root))}
    if real and installed == "refuse":
        places = ", ".join(f"{root} ({origin})" for root, origin in sorted(real.items()))
        raise ImportError(
            f"really installed: {places}; pass installed='override' to stand in for it, or 'keep' to leave it"
        )
    for name, module in list(modules.items()):
        if name.partition(".")[0] in real and (installed == "keep" or hasattr(module, "__path__")):
            del modules[name]
    if vmamba_package is not None:
        prefix = f"{vmamba_package}." if vmamba_package else ""
        scans = _contents(cross_scan)
        modules[f"{prefix}csm_triton"] = _module(f"{prefix}csm_triton", scans)
        modules[f"{prefix}csms6s"] = _module(f"{prefix}csms6s", scans | _contents(vmamba))
    return Installation(modules)


def uninstall() -> None:
    """Takes out whatever `install` entered, and puts back what was there before."""
    for installation in reversed(list(_installations)):
        installation.remove()


class Installation:
    """What one `install` entered in sys.modules."""

    def __init__(self, modules: dict[str, ModuleType]):
        self.modules = modules
        self._before = [(name, sys.modules.get(name), _attribute(name)) for name in modules]
        for name, module in modules.items():
            sys.modules[name] = module
            _set_attribute(name, module)
        _installations.append(self)

    def remove(self) -> None:
        """Puts back what was there before. Code that has imported a function keeps it. Safe to call twice."""
        if self not in _installations:
            return
        _installations.remove(self)
        for name, module, attribute in reversed(self._before):
            _set_attribute(name, attribute)
            if sys.modules.get(name) is self.modules[name]:
                del sys.modules[name]
                if module is not None:
                    sys.modules[name] = module

    def __enter__(self) -> "Installation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _stand_ins() -> dict[str, ModuleType]:
    interface = _contents(mamba_ssm)
    contents: dict[str, Mapping[str, Any]] = {
        "mamba_ssm": {name: interface[name] for name in ("mamba_inner_fn", "selective_scan_fn")} | {"__path__": []},
        "mamba_ssm.ops": {"__path__": []},
        "mamba_ssm.ops.selective_scan_interface": interface,
        "selective_scan": _contents(selective_scan),
        "selective_scan_cuda": {"fwd": extensions.mamba_fwd, "bwd": extensions.mamba_bwd},
        "selective_scan_cuda_oflex": {"fwd": extensions.oflex_fwd, "bwd": extensions.vmamba_bwd},
        "selective_scan_cuda_core": {"fwd": extensions.core_fwd, "bwd": extensions.vmamba_bwd},
    }
    return {name: _module(name, names) for name, names in contents.items()}


def _contents(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


def _module(name: str, contents: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name, "vmddpm_kernels.compat stands in for this module.")
    module.__spec__ = ModuleSpec(name, None, is_package="__path__" in contents)
    vars(module).update(contents)
    if name == "mamba_ssm":
        module.__getattr__ = _refuse_modules  # type: ignore[method-assign]
    return module


def _refuse_modules(name: str) -> Any:
    if name in ("Mamba", "Mamba2", "Mamba3", "Block", "MambaLMHeadModel", "modules", "models"):
        raise ImportError(
            f"vmddpm_kernels.compat stands in for mamba_ssm's scan, not for {name}. Install mamba_ssm itself, with "
            "MAMBA_SKIP_CUDA_BUILD=TRUE where there is no nvcc, and pass installed='override' to compat.install()"
        )
    raise AttributeError(f"module 'mamba_ssm', of vmddpm_kernels.compat, has no attribute {name!r}")


def _real_origin(root: str) -> str | None:
    """Where a package of this name is really installed; None if it is not, or ours. A mere folder is no package."""
    module = sys.modules.get(root)
    if any(module is ours for installation in _installations for ours in installation.modules.values()):
        return None
    if module is not None:
        return getattr(module, "__file__", None) or "imported already"
    spec = find_spec(root)
    return spec.origin if spec else None


def _attribute(name: str) -> Any:
    parent, _, leaf = name.rpartition(".")
    return getattr(sys.modules.get(parent), leaf, None) if parent else None


def _set_attribute(name: str, value: Any) -> None:
    """Binds a submodule in its parent, as importing it would."""
    parent, _, leaf = name.rpartition(".")
    if parent not in sys.modules:
        return
    if value is not None:
        setattr(sys.modules[parent], leaf, value)
    elif hasattr(sys.modules[parent], leaf):
        delattr(sys.modules[parent], leaf)
