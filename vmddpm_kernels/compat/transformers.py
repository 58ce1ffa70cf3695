"""Checks whether the installed version of Hugging Face's transformers finds the replacements."""

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_LOOKS_BY_IMPORT = "use_kernel_func_from_hub_with_fallback"


def obstacle() -> str | None:
    """Why models of the installed transformers cannot find the replacements; None if they can or there is no
    transformers."""
    try:
        number, spec = version("transformers"), find_spec("transformers")
    except (PackageNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "integrations" / "hub_kernels.py"
    if not (source.is_file() and _LOOKS_BY_IMPORT in source.read_text(encoding="utf-8")):
        return (
            f"transformers {number} looks for mamba_ssm and causal_conv1d on NVIDIA GPUs only: on other devices its "
            "Mamba models run in plain PyTorch, step by step. Install transformers 5.24 or newer, which finds these "
            "kernels on every device"
        )
    early = sorted(name for name in sys.modules if name.startswith("transformers.models.") and _bound(name))
    if early:
        return (
            f"{', '.join(early)} were imported before and will not find these kernels: call compat.install() "
            "before the models of transformers are imported"
        )
    return None


def _bound(name: str) -> bool:
    """Whether a model's module has already bound the functions."""
    names = ("causal_conv1d_fn", "causal_conv1d_update", "mamba_inner_fn", "mamba_selective_scan")
    return ".modeling_" in name and any(hasattr(sys.modules[name], function) for function in names)
