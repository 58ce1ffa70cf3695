"""Mamba's mixer (arXiv 2312.00752, Figure 3), and its variants in both directions: Vim's (arXiv 2401.09417, `v1` and
`v2`) and SegMamba's (arXiv 2401.13560, `v3`). Parameters have the names and shapes of the published models."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmddpm_kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from vmddpm_kernels.checks import check_count, check_shape
from vmddpm_kernels.selective_scan import selective_scan
from vmddpm_kernels.selective_state_update import selective_state_update

# The suffixes of the parameters of each branch.
_BRANCHES = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}


class Mamba(nn.Module):
    """Projection, causal convolution, SiLU, selective scan, gate, projection: (B, L, D) -> (B, L, D).

    Args:
        d_model: channels D.
        d_state: states N of a channel.
        d_conv: taps W of the convolution.
        expand: inner channels are expand * D.
        dt_rank: rank R of the step sizes; ceil(D / 16) by default.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: how step sizes start.
        conv_bias, bias: whether the convolution, and the first and last projection, have one.
        use_fast_path: taken for the sake of the signature: there is one path.
        layer_idx: the key of this layer's states in `inference_params`.
        bimamba_type: "none"; "v1", a second scan backwards with A of its own; "v2", a second branch backwards with
            parameters of its own; "v3", a third one along slices too.
        if_divide_out: halve the sum of the branches of "v2"; `if_devide_out` is its older spelling.
        init_layer_scale: if given, the result is multiplied by a parameter `gamma` (D,) that starts there.
        nslices: slices of "v3", a divisor of L: its third branch visits one step of each slice in turn.

    Example:
        >>> mamba = Mamba(d_model=32)
        >>> y = mamba(torch.randn(2, 100, 32))                                  # (2, 100, 32)
    """

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    out_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        nslices: int = 5,
        if_devide_out: bool = False,
    ):
        super().__init__()
        if bimamba_type not in _BRANCHES:
            raise ValueError(f"bimamba_type must be one of {', '.join(_BRANCHES)}, got {bimamba_type!r}")
        if dt_init not in ("random", "constant"):
            raise ValueError(f'dt_init must be "random" or "constant", got {dt_init!r}')
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        if isinstance(dt_rank, str) and dt_rank != "auto":
            raise ValueError(f'dt_rank must be "auto" or a positive integer, got {dt_rank!r}')
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "dt_rank": self.dt_rank, "nslices": nslices}
        for name, size in sizes.items():
            check_count(name, size)
        if self.d_inner < 1:
            raise ValueError(f"expand times d_model must be at least 1, got {expand} times {d_model}")
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.nslices = bimamba_type, nslices
        self.if_divide_out = if_divide_out or if_devide_out
        self.init_layer_scale = init_layer_scale
        self.activation, self.act = "silu", nn.SiLU()
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device, dtype=dtype))

        # Made in the order of the original, so that a seed makes the same parameters.
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=bias, device=device, dtype=dtype)
        self._add_branch("", conv_bias, device, dtype)
        self._start_step_sizes(dt_init, self.dt_rank**-0.5 * dt_scale, dt_min, dt_max, dt_init_floor)
        if bimamba_type == "v1":
            self.A_b_log = self._decays(device)
        for suffix in _BRANCHES[bimamba_type][1:]:
            self._add_branch(suffix, conv_bias, device, dtype)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)

    def _add_branch(
        self, suffix: str, conv_bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        inner = self.d_inner
        made: dict[str, nn.Module | nn.Parameter] = {
            f"conv1d{suffix}": nn.Conv1d(
                inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, bias=conv_bias, device=device,
                dtype=dtype,
            ),
            f"x_proj{suffix}": nn.Linear(
                inner, self.dt_rank + 2 * self.d_state, bias=False, device=device, dtype=dtype
            ),
            f"dt_proj{suffix}": nn.Linear(self.dt_rank, inner, device=device, dtype=dtype),
            f"A{suffix}_log": self._decays(device),
            f"D{suffix}": nn.Parameter(torch.ones(inner, device=device)),
        }  # fmt: skip
        for name, value in made.items():
            setattr(self, name, value)
        getattr(self, f"D{suffix}")._no_weight_decay = True

    def _decays(self, device: torch.device | str | None) -> nn.Parameter:
        """A starts as -1 .. -N for every channel, and is kept as a logarithm, in float32."""
        row = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        log = nn.Parameter(torch.log(row.repeat(self.d_inner, 1)))
        log._no_weight_decay = True  # type: ignore[attr-defined]
        return log

    @torch.no_grad()
    def _start_step_sizes(self, how: str, std: float, least: float, most: float, floor: float) -> None:
        """softplus(dt_proj.bias) starts between `least` and `most`, evenly by its logarithm."""
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        if how == "constant":
            nn.init.constant_(weight, std)
        else:
            nn.init.uniform_(weight, -std, std)
        random = torch.rand(self.d_inner, device=bias.device, dtype=bias.dtype)
        dt = torch.exp(random * (math.log(most) - math.log(least)) + math.log(least)).clamp(min=floor)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        bias._no_reinit = True  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Args:
            inference_params: holds the states of each layer between calls, `key_value_memory_dict[layer_idx]`, and how
                many steps they have seen, `seqlen_offset`: the first call takes any number of steps, others a single
                one.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"hidden_states must have shape (B, L, D) with D = {self.d_model}, got {tuple(hidden_states.shape)}"
            )
        states = None
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
            self._check_states(states, hidden_states.shape[0], exact=True)
        xz = self.in_proj(hidden_states)                                        # (B, L, 2 expand D)
        y = self._both_ways(xz) if self.bimamba_type == "v1" else self._branch(xz, "", states)
        if "_b" in _BRANCHES[self.bimamba_type]:
            y = y + self._branch(xz.flip(1), "_b").flip(1)
        if "_s" in _BRANCHES[self.bimamba_type]:
            y = y + self._along_slices(xz)
        if self.bimamba_type == "v2" and self.if_divide_out:
            y = y / 2
        return self._scaled(self.out_proj(y))

    def _branch(self, xz: Tensor, suffix: str, states: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, L, 2 E) -> (B, L, E); the states, if given, become those after the last step."""
        x, z = xz.chunk(2, dim=-1)
        x, delta, B, C = self._projected(x, suffix, states)
        options = self._scan_options(suffix)
        y: Tensor
        if states is None:
            y = selective_scan(x, delta, self._A(suffix), B, C, z=z, **options)
        else:
            y, last_state = selective_scan(x, delta, self._A(suffix), B, C, z=z, return_last_state=True, **options)
            states[1].copy_(last_state)
        return y

    def _both_ways(self, xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=-1)
        x, delta, B, C = self._projected(x, "")
        forwards: Tensor = selective_scan(x, delta, self._A(""), B, C, z=z, **self._scan_options(""))
        x, delta, B, C, z = (t.flip(1) for t in (x, delta, B, C, z))
        backwards: Tensor = selective_scan(x, delta, self._A("_b"), B, C, z=z, **self._scan_options(""))
        return forwards + backwards.flip(1)

    def _along_slices(self, xz: Tensor) -> Tensor:
        length, slices = xz.shape[1], self.nslices
        if length % slices:
            raise ValueError(f"the {length} steps of hidden_states must divide into nslices = {slices} slices")
        turned = xz.unflatten(1, (slices, length // slices)).transpose(1, 2).flatten(1, 2)
        y: Tensor = self._branch(turned, "_s").unflatten(1, (length // slices, slices))
        return y.transpose(1, 2).flatten(1, 2)

    def _projected(
        self, x: Tensor, suffix: str, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, L, E) -> the convolved x, delta (B, L, E), B and C (B, L, N)."""
        if states is not None:
            steps = x.mT
            states[0].copy_(F.pad(steps, (self.d_conv - steps.shape[-1], 0)))
        conv = getattr(self, f"conv1d{suffix}")
        y = causal_conv1d(x, conv.weight.squeeze(1), conv.bias, activation=self.activation, channel_last=True)
        assert isinstance(y, Tensor)
        projected = getattr(self, f"x_proj{suffix}")(y)
        low_rank, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return y, F.linear(low_rank, getattr(self, f"dt_proj{suffix}").weight), B, C

    def _A(self, suffix: str) -> Tensor:
        log: Tensor = getattr(self, f"A{suffix}_log")
        return -torch.exp(log.to(torch.promote_types(log.dtype, torch.float32)))

    def _scan_options(self, suffix: str) -> dict[str, Any]:
        return {
            "D": getattr(self, f"D{suffix}"),
            "delta_bias": getattr(self, f"dt_proj{suffix}").bias,
            "delta_softplus": True,
            "channel_last": True,
        }

    def _scaled(self, y: Any) -> Tensor:
        scaled: Tensor = y if self.init_layer_scale is None else y * self.gamma
        return scaled

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: hidden_states (B, 1, D), conv_state (B, E, W) and ssm_state (B, E, N) -> (B, 1, D) and the two
        states, which have been changed in place."""
        if self.bimamba_type != "none":
            raise ValueError(f"bimamba_type {self.bimamba_type!r} sees the end of a sequence: it has no single steps")
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise ValueError(
                f"hidden_states must have shape (B, 1, D) with D = {self.d_model} in a step, got "
                f"{tuple(hidden_states.shape)}"
            )
        self._check_states((conv_state, ssm_state), hidden_states.shape[0], exact=False)
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)          # (B, E)
        x = causal_conv1d_update(
            x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation=self.activation
        )
        low_rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(low_rank, self.dt_proj.weight)
        y = selective_state_update(
            ssm_state, x, delta, self._A(""), B, C, self.D, z, self.dt_proj.bias, delta_softplus=True
        )
        return self._scaled(self.out_proj(y)).unsqueeze(1), conv_state, ssm_state

    def _check_states(self, states: tuple[Tensor, Tensor], batch_size: int, *, exact: bool) -> None:
        """ValueError unless they are the states of so many sequences. A step needs the last W - 1 inputs at least."""
        conv_state, ssm_state = states
        shape = (batch_size, self.d_inner, conv_state.shape[-1] if conv_state.dim() and not exact else self.d_conv)
        check_shape("conv_state", conv_state, "B, E, W", shape)
        check_shape("ssm_state", ssm_state, "B, E, N", (batch_size, self.d_inner, self.d_state))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """conv_state (B, E, W) and ssm_state (B, E, N) of zeros, in `dtype` or that of the parameters; their size does
        not depend on `max_seqlen`."""
        weight = self.conv1d.weight
        states = (
            torch.zeros(batch_size, self.d_inner, size, device=weight.device, dtype=dtype or like.dtype)
            for size, like in ((self.d_conv, weight), (self.d_state, self.dt_proj.weight))
        )
        return next(states), next(states)

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise ValueError("layer_idx must be given to decode with inference_params: it is the key of the states")
        if self.bimamba_type != "none":
            raise ValueError(f"bimamba_type {self.bimamba_type!r} sees the end of a sequence: it has no single steps")
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        states: tuple[Tensor, Tensor] = memory[self.layer_idx]
        if initialize_states:
            for state in states:
                state.zero_()
        return states
