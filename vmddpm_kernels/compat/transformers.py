"""Whether Hugging Face's transformers will find the stand-ins: by how the installed version looks for them."""

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_LOOKS_BY_IMPORT = "use_kernel_func_from_hub_with_fallback"


def obstacle() -> str | None:
    """Why the models of the installed transformers would not find what `install` has entered; None if they do, or if
    there is no transformers."""
    try:
        number, spec = version("transformers"), find_spec("transformers")
    except (PackageNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "integrations" / "hub_kernels.py"
    if not (source.is_file() and _LOOKS_BY_IMPORT in source.read_text(encoding="utf-8")):
        return (
            f"transformers {number} looks for mamba_ssm and causal_conv1d on NVIDIA GPUs alone: on other devices its "
            "Mamba models run their own PyTorch, step by step. Install transformers 5.24 or newer, which finds these "
            "kernels on every device"
        )
    early = sorted(name for name in sys.modules if name.startswith("transformers.models.") and _bound(name))
    if early:
        return (
            f"{', '.join(early)} had been imported and will not find these kernels: call compat.install() before the "
            "models of transformers are imported"
        )
    return None


def _bound(name: str) -> bool:
    """Whether a module of a model has looked for the functions, and found other ones."""
    names = ("causal_conv1d_fn", "causal_conv1d_update", "mamba_inner_fn", "mamba_selective_scan")
    return ".modeling_" in name and any(hasattr(sys.modules[name], function) for function in names)
