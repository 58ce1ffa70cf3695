"""ImportErrors for names of mamba_ssm and causal_conv1d that the replacements do not have; they list the supported
names."""

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_COVERED = {
    "mamba_ssm": "the scan and Mamba's blocks (Mamba, Block, RMSNorm, layer_norm_fn, selective_state_update, decoding)",
    "causal_conv1d": "causal_conv1d_fn and causal_conv1d_update",
}
_INSTEAD = {
    "mamba_ssm": "For other names install mamba_ssm itself, with MAMBA_SKIP_CUDA_BUILD=TRUE if there is no nvcc, and "
    "pass installed='override' to compat.install()",
    "causal_conv1d": "For other names install causal_conv1d itself, and pass installed='keep' to compat.install()",
}
_REASONS = {
    "Mamba2": "Mamba-2 has no kernels here; transformers' Mamba2 models run in PyTorch",
    "Mamba3": "Mamba-3 has no kernels here",
    "MambaLMHeadModel": "language models are in transformers: MambaForCausalLM of 5.24 finds these kernels",
}

# Public names of mamba_ssm up to 2.3 and of causal_conv1d that the replacement modules do not have.
_ABSENT = {
    "mamba_ssm": {"Mamba2", "Mamba3", "MambaLMHeadModel"},
    "mamba_ssm.ops.selective_scan_interface": {"custom_bwd", "custom_fwd"},
    "mamba_ssm.ops.triton.layer_norm": {
        "config_prune", "configs_autotune", "custom_bwd", "custom_fwd", "pruned_configs_autotune",
    },
    "mamba_ssm.ops.triton.selective_state_update": {"softplus"},
    "mamba_ssm.utils.generation": {
        "DecodingCGCache", "allocate_inference_cache", "capture_graph", "update_graph_cache",
    },
}  # fmt: skip


def refuse_names(module: ModuleType) -> None:
    """Make `module` raise ImportError for public names that it does not have. Other names raise AttributeError, as
    usual, so that hasattr works."""

    def absent(name: str) -> object:
        if name in _ABSENT.get(module.__name__, ()):
            raise ImportError(_explained(module.__name__, name), name=module.__name__)
        raise AttributeError(f"module {module.__name__!r}, of vmddpm_kernels.compat, has no attribute {name!r}")

    module.__getattr__ = absent  # type: ignore[method-assign]


class Refusals(MetaPathFinder):
    """Raises ImportError for missing submodules of replaced packages; existing ones are found in sys.modules first."""

    def __init__(self, packages: Sequence[str]):
        self.packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        if rest and package in self.packages:
            raise ImportError(_explained(package, rest), name=fullname)
        return None


def _explained(module: str, name: str) -> str:
    package = module.partition(".")[0]
    last = name.rpartition(".")[2]
    reasons = {key.lower(): reason for key, reason in _REASONS.items()}
    reason = reasons.get(last.lower().removesuffix("_simple"))
    return (
        f"vmddpm_kernels.compat stands in for {package} and has no {module}.{name}"
        f"{f': {reason}' if reason else ''}. It covers {_COVERED[package]}. {_INSTEAD[package]}"
    )
