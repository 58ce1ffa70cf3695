"""The residual block around a mixer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vmddpm_kernels.modules.norm import RMSNorm, add_norm


class Block(nn.Module):
    """Add the residual, normalize and mix; then the same with an MLP if there is one.

    The result is (mixed, residual): the next block, or the caller, adds both.

    Args:
        dim: number of channels.
        mixer_cls: mixer_cls(dim) makes the mixer (batch, length, dim) -> (batch, length, dim).
        mlp_cls: mlp_cls(dim) makes the MLP; `nn.Identity` for none.
        norm_cls: norm_cls(dim) makes an `nn.LayerNorm` or `RMSNorm`.
        fused_add_norm: compute the sum and its normalization in float32; otherwise each is rounded to the norm's dtype.
        residual_in_fp32: keep the residual in float32.

    Example:
        >>> block = Block(32, Mamba, norm_cls=RMSNorm)
        >>> x, residual = block(torch.randn(2, 9, 32))
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module] = nn.Identity,
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ):
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise TypeError(
                f"norm_cls must make nn.LayerNorm or RMSNorm with fused_add_norm, got {type(self.norm).__name__}"
            )

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """hidden_states and residual (batch, length, dim) -> (mixed, residual), whose sum is the block's result."""
        hidden_states, residual = self._add_norm(self.norm, hidden_states, residual)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = self._add_norm(self.norm2, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def _add_norm(self, norm: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            return add_norm(
                x, norm.weight, norm.bias, residual,
                eps=norm.eps, rms=isinstance(norm, RMSNorm), residual_in_fp32=self.residual_in_fp32,
            )  # fmt: skip
        total = x if residual is None else x + residual
        y: Tensor = norm(total.to(norm.weight.dtype))
        return y, total.to(torch.float32) if self.residual_in_fp32 else total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)  # type: ignore[operator]
