"""The operators under the names that other projects use.

`compat.mamba_ssm`, `compat.vmamba` and `compat.selective_scan` replace imports in model code; `install` serves model
code that stays unchanged.
"""

import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any

from vmddpm_kernels import cross_scan
from vmddpm_kernels.compat import transformers, vmamba
from vmddpm_kernels.compat.refusals import Refusals, refuse_names
from vmddpm_kernels.compat.stand_ins import contents, names_of

__all__ = ["Installation", "install", "installed", "uninstall"]

_installations: list["Installation"] = []


def install(installed: str = "refuse", vmamba_package: str | None = None) -> "Installation":
    """Replace mamba_ssm, causal_conv1d and VMamba's kernels for model code that is imported afterwards.

    Adds modules to sys.modules: `mamba_ssm` with Mamba's blocks and functions, `causal_conv1d`, and the extensions
    `selective_scan`, `selective_scan_cuda`, `selective_scan_cuda_core`, `_ndstate`, `_nrow` and `_oflex`. Importing
    another name of these packages raises an ImportError that lists the supported ones. Warns if the installed
    transformers cannot find them.

    Args:
        installed: what to do if one of these packages is installed. "refuse" raises ImportError. "keep" leaves all
            modules of that package alone, for example of a mamba_ssm built without `selective_scan_cuda`. "override"
            replaces its functions (for mamba_ssm, the modules of `mamba_ssm.ops`) and nothing else.
        vmamba_package: the package with VMamba's csm_triton.py and csms6s.py, for example "models"; "" if they are
            top-level modules. Both are replaced, whether they exist or not.

    Returns:
        The installation; `with install(): ...` removes it at the end.

    Raises:
        ImportError: if one of these packages is installed and `installed` is "refuse".

    Example:
        >>> with install("keep") as installation:
        ...     "selective_scan_cuda" in sys.modules
        True
    """
    if installed not in ("refuse", "keep", "override"):
        raise ValueError(f'installed must be "refuse", "keep" or "override", got {installed!r}')
    if not isinstance(vmamba_package, str | None):
        raise TypeError(f"vmamba_package must be a str or None, got {type(vmamba_package).__name__}")
    modules = {name: _module(name, names) for name, names in contents().items()}
    real = {root: origin for root in {name.partition(".")[0] for name in modules} if (origin := _real_origin(root))}
    if real and installed == "refuse":
        places = ", ".join(f"{root} ({origin})" for root, origin in sorted(real.items()))
        raise ImportError(
            f"already installed: {places}; pass installed='override' to replace its functions, or 'keep' to leave it"
        )
    for name, module in list(modules.items()):
        root = name.partition(".")[0]
        replaced = root != "mamba_ssm" or (name.startswith("mamba_ssm.ops.") and not hasattr(module, "__path__"))
        if root in real and (installed == "keep" or not replaced):
            del modules[name]
    if vmamba_package is not None:
        prefix = f"{vmamba_package}." if vmamba_package else ""
        scans = names_of(cross_scan)
        modules[f"{prefix}csm_triton"] = _module(f"{prefix}csm_triton", scans)
        modules[f"{prefix}csms6s"] = _module(f"{prefix}csms6s", scans | names_of(vmamba))
    if obstacle := transformers.obstacle():
        warnings.warn(obstacle, stacklevel=2)
    return Installation(modules)


def installed() -> dict[str, list[str]]:
    """The names in each module of sys.modules that `install` added."""
    ours = {name: module for installation in _installations for name, module in installation.modules.items()}
    return {
        name: sorted(
            key for key, value in vars(module).items() if not (key.startswith("__") or isinstance(value, ModuleType))
        )
        for name, module in sorted(ours.items())
        if sys.modules.get(name) is module
    }


def uninstall() -> None:
    """Remove all modules that `install` added and restore the previous ones."""
    for installation in reversed(list(_installations)):
        installation.remove()


class Installation:
    """The modules that one `install` added to sys.modules."""

    def __init__(self, modules: dict[str, ModuleType]):
        self.modules = modules
        self._before = [(name, sys.modules.get(name), _attribute(name)) for name in modules]
        for name, module in modules.items():
            sys.modules[name] = module
            _set_attribute(name, module)
        _installations.append(self)
        packages = [name for name, module in modules.items() if hasattr(module, "__path__") and "." not in name]
        self._refusals = Refusals(packages)
        sys.meta_path.insert(0, self._refusals)

    def remove(self) -> None:
        """Restore the previous modules. Code that has imported a function keeps it. Can be called twice."""
        if self not in _installations:
            return
        _installations.remove(self)
        sys.meta_path.remove(self._refusals)
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


def _module(name: str, contents: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name, "Replaced by vmddpm_kernels.compat.")
    module.__spec__ = ModuleSpec(name, None, is_package="__path__" in contents)
    vars(module).update(contents)
    refuse_names(module)
    return module


def _real_origin(root: str) -> str | None:
    """Where a package of this name is installed; None if it is not, or is ours. A namespace package does not count."""
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
    """Set a submodule as an attribute of its parent, as an import does."""
    parent, _, leaf = name.rpartition(".")
    if parent not in sys.modules:
        return
    if value is not None:
        setattr(sys.modules[parent], leaf, value)
    elif hasattr(sys.modules[parent], leaf):
        delattr(sys.modules[parent], leaf)
