"""The contents of the modules that `install` adds."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vmddpm_kernels.compat import (
    causal_conv1d,
    extensions,
    generation,
    hub,
    layer_norm,
    layernorm,
    mamba_ssm,
    selective_scan,
    state_update,
)
from vmddpm_kernels.modules import Block, Mamba

# The versions of these interfaces. Version 2 of mamba_ssm would promise Mamba-2.
_MAMBA_VERSION, _CONV_VERSION = "1.2.0", "1.4.0"


class BlockOfMambaSimple(Block):
    """`Block` of `mamba_ssm.modules.mamba_simple` up to mamba_ssm 1.2, without an MLP."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Any,
        norm_cls: Any = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ):
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return super().forward(hidden_states, residual, inference_params, **mixer_kwargs)


def contents() -> dict[str, dict[str, Any]]:
    """The names in each module; packages have a `__path__`."""
    interface, newer, older = names_of(mamba_ssm), names_of(layer_norm), names_of(layernorm)
    update, convolution = names_of(state_update), names_of(causal_conv1d)
    package: Mapping[str, Any] = {"__path__": []}
    functions = {name: interface[name] for name in ("mamba_inner_fn", "selective_scan_fn")}
    mixer = {
        **functions,
        **{name: newer[name] for name in ("RMSNorm", "layer_norm_fn", "rms_norm_fn")},
        "selective_state_update": update["selective_state_update"],
        "Mamba": Mamba,
        "Block": BlockOfMambaSimple,
    }
    core = {"fwd": extensions.core_fwd, "bwd": extensions.vmamba_bwd}
    return {
        "mamba_ssm": {**package, **functions, "Mamba": Mamba, "__version__": _MAMBA_VERSION},
        "mamba_ssm.modules": {**package},
        "mamba_ssm.modules.block": {
            "Block": Block, "RMSNorm": newer["RMSNorm"], "layer_norm_fn": newer["layer_norm_fn"],
        },
        "mamba_ssm.modules.mamba_simple": mixer,
        "mamba_ssm.ops": {**package},
        "mamba_ssm.ops.selective_scan_interface": interface,
        "mamba_ssm.ops.triton": {**package},
        "mamba_ssm.ops.triton.layer_norm": newer,
        "mamba_ssm.ops.triton.layernorm": older,
        "mamba_ssm.ops.triton.selective_state_update": update,
        "mamba_ssm.utils": {**package},
        "mamba_ssm.utils.generation": names_of(generation),
        "mamba_ssm.utils.hf": names_of(hub),
        "causal_conv1d": {
            **package,
            **{name: convolution[name] for name in ("causal_conv1d_fn", "causal_conv1d_update")},
            "__version__": _CONV_VERSION,
        },
        "causal_conv1d.causal_conv1d_interface": convolution,
        "selective_scan": names_of(selective_scan),
        "selective_scan_cuda": {"fwd": extensions.mamba_fwd, "bwd": extensions.mamba_bwd},
        "selective_scan_cuda_core": core,
        "selective_scan_cuda_ndstate": {"fwd": extensions.ndstate_fwd, "bwd": extensions.ndstate_bwd},
        "selective_scan_cuda_nrow": core,
        "selective_scan_cuda_oflex": {"fwd": extensions.oflex_fwd, "bwd": extensions.vmamba_bwd},
    }  # fmt: skip


def names_of(module: ModuleType | Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}
