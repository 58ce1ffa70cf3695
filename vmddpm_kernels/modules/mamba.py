"""Mamba's mixer (arXiv 2312.00752, Figure 3) and its bidirectional variants: Vim's (arXiv 2401.09417, `v1` and `v2`)
and SegMamba's (arXiv 2401.13560, `v3`). Parameters have the names and shapes of the published models."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmddpm_kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from vmddpm_kernels.checks import check_count, check_shape
from vmddpm_kernels.modules.linear import Linear
from vmddpm_kernels.selective_scan import selective_scan
from vmddpm_kernels.selective_state_update import selective_state_update

# The suffixes of the parameters of each branch.
_BRANCHES = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}


class Mamba(nn.Module):
    """Input projection, causal convolution, SiLU, selective scan, gate, output projection.

    Args:
        d_model: channels of the input and the output.
        d_state: states of a channel.
        d_conv: width of the convolution.
        expand: the inner channels are d_inner = expand * d_model.
        dt_rank: rank of the step sizes; by default ceil(d_model / 16).
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initialization of the step sizes.
        conv_bias, bias: whether the convolution, and the input and output projections, have a bias.
        use_fast_path: ignored; there is one path.
        layer_idx: key of this layer's states in `inference_params`.
        bimamba_type: "none"; "v1" adds a reverse scan with its own A; "v2" adds a reverse branch with its own
            parameters; "v3" adds to "v2" a branch across slices.
        if_divide_out: halve the sum of the branches of "v2"; `if_devide_out` is its older spelling.
        init_layer_scale: if given, the initial value of a parameter `gamma` (d_model,) that scales the result.
        nslices: number of slices for "v3", a divisor of the length; its third branch takes the first step of each
            slice, then the second of each, and so on.

    Example:
        >>> mamba = Mamba(d_model=32)
        >>> y = mamba(torch.randn(2, 100, 32))                                  # (batch, length, d_model)
    """

    in_proj: Linear
    conv1d: nn.Conv1d
    x_proj: Linear
    dt_proj: Linear
    out_proj: Linear
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

        # In the order of the original, so that a seed gives the same parameters.
        self.in_proj = Linear(d_model, self.d_inner * 2, bias=bias, device=device, dtype=dtype)
        self._add_branch("", conv_bias, device, dtype)
        self._start_step_sizes(dt_init, self.dt_rank**-0.5 * dt_scale, dt_min, dt_max, dt_init_floor)
        if bimamba_type == "v1":
            self.A_b_log = self._decays(device)
        for suffix in _BRANCHES[bimamba_type][1:]:
            self._add_branch(suffix, conv_bias, device, dtype)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias, device=device, dtype=dtype)

    def _add_branch(
        self, suffix: str, conv_bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        inner = self.d_inner
        made: dict[str, nn.Module | nn.Parameter] = {
            f"conv1d{suffix}": nn.Conv1d(
                inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, bias=conv_bias, device=device,
                dtype=dtype,
            ),
            f"x_proj{suffix}": Linear(
                inner, self.dt_rank + 2 * self.d_state, bias=False, device=device, dtype=dtype
            ),
            f"dt_proj{suffix}": Linear(self.dt_rank, inner, device=device, dtype=dtype),
            f"A{suffix}_log": self._decays(device),
            f"D{suffix}": nn.Parameter(torch.ones(inner, device=device)),
        }  # fmt: skip
        for name, value in made.items():
            setattr(self, name, value)
        getattr(self, f"D{suffix}")._no_weight_decay = True

    def _decays(self, device: torch.device | str | None) -> nn.Parameter:
        """log(-A) in float32; A starts as -1, ..., -d_state for each channel."""
        row = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        log = nn.Parameter(torch.log(row.repeat(self.d_inner, 1)))
        log._no_weight_decay = True  # type: ignore[attr-defined]
        return log

    @torch.no_grad()
    def _start_step_sizes(self, how: str, std: float, least: float, most: float, floor: float) -> None:
        """Initialize softplus(dt_proj.bias) log-uniformly between `least` and `most`."""
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
        """(batch, length, d_model) -> (batch, length, d_model).

        Args:
            inference_params: the state of decoding. `key_value_memory_dict[layer_idx]` holds this layer's states, and
                `seqlen_offset` counts the steps they have seen. The first call takes any number of steps, later calls
                take one step each.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"hidden_states must have shape (batch, length, d_model) with d_model = {self.d_model}, got "
                f"{tuple(hidden_states.shape)}"
            )
        states = None
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
            self._check_states(states, hidden_states.shape[0], exact=True)
        xz = self.in_proj(hidden_states)                                        # (batch, length, 2 * d_inner)
        y = self._both_ways(xz) if self.bimamba_type == "v1" else self._branch(xz, "", states)
        if "_b" in _BRANCHES[self.bimamba_type]:
            y = y + self._branch(xz.flip(1), "_b").flip(1)
        if "_s" in _BRANCHES[self.bimamba_type]:
            y = y + self._along_slices(xz)
        if self.bimamba_type == "v2" and self.if_divide_out:
            y = y / 2
        return self._scaled(self.out_proj(y))

    def _branch(self, xz: Tensor, suffix: str, states: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(batch, length, 2 * d_inner) -> (batch, length, d_inner); updates the states if given."""
        x, z = xz.chunk(2, dim=-1)
        x, factor, B, C = self._projected(x, suffix, states)
        options = self._scan_options(suffix)
        y: Tensor
        if states is None:
            y = selective_scan(x, factor, self._A(suffix), B, C, z=z, **options)
        else:
            y, last_state = selective_scan(x, factor, self._A(suffix), B, C, z=z, return_last_state=True, **options)
            states[1].copy_(last_state)
        return y

    def _both_ways(self, xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=-1)
        x, factor, B, C = self._projected(x, "")
        forwards: Tensor = selective_scan(x, factor, self._A(""), B, C, z=z, **self._scan_options(""))
        x, factor, B, C, z = (t.flip(1) for t in (x, factor, B, C, z))
        backwards: Tensor = selective_scan(x, factor, self._A("_b"), B, C, z=z, **self._scan_options(""))
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
        """x (batch, length, d_inner) -> the convolved x, the factor of the step sizes (batch, length, dt_rank), B and C
        (batch, length, d_state)."""
        if states is not None:
            steps = x.mT
            states[0].copy_(F.pad(steps, (self.d_conv - steps.shape[-1], 0)))
        conv = getattr(self, f"conv1d{suffix}")
        y = causal_conv1d(x, conv.weight.squeeze(1), conv.bias, activation=self.activation, channel_last=True)
        assert isinstance(y, Tensor)
        projected = getattr(self, f"x_proj{suffix}")(y)
        factor, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return y, factor, B, C

    def _A(self, suffix: str) -> Tensor:
        log: Tensor = getattr(self, f"A{suffix}_log")
        return -torch.exp(log.to(torch.promote_types(log.dtype, torch.float32)))

    def _scan_options(self, suffix: str) -> dict[str, Any]:
        return {
            "D": getattr(self, f"D{suffix}"),
            "dt_proj": getattr(self, f"dt_proj{suffix}").weight,
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
        """One step of decoding; updates the states in place.

        Args:
            hidden_states: (batch, 1, d_model).
            conv_state: (batch, d_inner, d_conv).
            ssm_state: (batch, d_inner, d_state).

        Returns:
            The result (batch, 1, d_model) and the two states.
        """
        if self.bimamba_type != "none":
            raise ValueError(f"bimamba_type {self.bimamba_type!r} scans in reverse and cannot decode step by step")
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise ValueError(
                f"hidden_states must have shape (batch, 1, d_model) with d_model = {self.d_model} in a step, got "
                f"{tuple(hidden_states.shape)}"
            )
        self._check_states((conv_state, ssm_state), hidden_states.shape[0], exact=False)
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)          # (batch, d_inner)
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
        """Raise ValueError unless the states are for `batch_size` sequences; a step needs the last d_conv - 1
        inputs."""
        conv_state, ssm_state = states
        shape = (batch_size, self.d_inner, conv_state.shape[-1] if conv_state.dim() and not exact else self.d_conv)
        check_shape("conv_state", conv_state, "batch, d_inner, d_conv", shape)
        check_shape("ssm_state", ssm_state, "batch, d_inner, d_state", (batch_size, self.d_inner, self.d_state))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: conv_state (batch, d_inner, d_conv) and ssm_state (batch, d_inner, d_state), in `dtype` or that
        of the parameters. Their size does not depend on `max_seqlen`."""
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
            raise ValueError(f"bimamba_type {self.bimamba_type!r} scans in reverse and cannot decode step by step")
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        states: tuple[Tensor, Tensor] = memory[self.layer_idx]
        if initialize_states:
            for state in states:
                state.zero_()
        return states
