"""Calls of every public function for test_fuzz.py: valid ones, and ones with an invalid argument."""

from math import prod

import hypothesis.strategies as st
import numpy as np
import torch

import vmddpm_kernels as vk
from vmddpm_kernels.compat import extensions, mamba_ssm, selective_scan, vmamba
from vmddpm_kernels.curves import SETS, route_names

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
sizes = st.sampled_from([1, 2, 3, 5, 9, 0])
few = st.sampled_from([1, 2, 4])
flag = st.booleans()


ranks = st.sampled_from([None, 1, 2, 17])


class ArgumentBuilder:
    """Random tensors of the sizes and the dtype that `draw` chooses."""

    def __init__(self, draw):
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        self.dtype = draw(st.sampled_from(DTYPES))

    def normal(self, *shape, dtype=None):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def decay(self, *shape, dtype=None):
        return -torch.rand(*shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype) - 0.05

    def maybe(self, tensor):
        return tensor if self.draw(flag) else None

    def permutations(self, rows, length):
        return torch.stack([torch.randperm(length, generator=self.generator) for _ in range(rows)]).int()


def image(m):
    """The pixels of an image or a volume, a set of routes for it, and the number of routes."""
    pixels = [m.draw(few) for _ in range(m.draw(st.sampled_from([2, 2, 3])))]
    names = [name for name, routes in SETS.items() if len(pixels) in routes]
    scans = m.draw(st.sampled_from([0, 1, 2, 3, *names] if len(pixels) == 2 else [0, *names]))
    return pixels, scans, len(route_names(scans, len(pixels)))


def cross_scan(m):
    batch, channels, first, one_by_one = m.draw(sizes), m.draw(sizes), m.draw(flag), m.draw(flag)
    pixels, scans, routes = image(m)
    channel = (routes, channels) if one_by_one else (channels,)
    x = m.normal(batch, *channel, *pixels) if first else m.normal(batch, *pixels, *channel)
    permutation = m.maybe(m.permutations(1, prod(pixels))[0])
    return {
        "x": x, "in_channel_first": first, "out_channel_first": m.draw(flag), "one_by_one": one_by_one,
        "scans": scans, "permutation": permutation, "backend": None,
    }  # fmt: skip


def cross_merge(m):
    arguments = cross_scan(m)
    pixels, scans, routes = image(m)
    batch, channels, first = m.draw(sizes), m.draw(sizes), arguments["out_channel_first"]
    shape = (batch, routes, channels, *pixels) if first else (batch, *pixels, routes, channels)
    del arguments["x"]
    permutation = m.maybe(m.permutations(1, prod(pixels))[0])
    return {"y": m.normal(*shape), **arguments, "scans": scans, "permutation": permutation}


def scan(m, constant=False):
    """selective_scan's tensors, channel first."""
    batch, dim, length, states = (m.draw(s) for s in (sizes, sizes, sizes, few))
    groups = m.draw(st.sampled_from([g for g in (1, 3, 9) if dim % g == 0]))
    parameter = m.draw(st.sampled_from([None, torch.float32]))

    def matrix():
        if constant and m.draw(flag):
            return m.normal(dim, states, dtype=parameter)
        group = () if groups == 1 and m.draw(flag) else (groups,)
        return m.normal(batch, *group, states, length)

    return {
        "u": m.normal(batch, dim, length), "delta": m.normal(batch, dim, length),
        "A": m.decay(dim, states, dtype=parameter), "B": matrix(), "C": matrix(),
        "D": m.maybe(m.normal(dim, dtype=parameter)), "z": m.maybe(m.normal(batch, dim, length)),
        "delta_bias": m.maybe(m.normal(dim, dtype=parameter)), "delta_softplus": m.draw(flag),
    }  # fmt: skip


def low_rank(m, routes, dim):
    """The last axis of delta, and `dt_proj`."""
    rank = m.draw(ranks)
    weight = None if rank is None else m.normal(*routes, dim, rank) / rank**0.5
    return (dim, None) if rank is None else (rank, weight)


def channel_last(name, tensor):
    """(B, D, L) -> (B, L, D), (B, N, L) -> (B, L, N), (B, G, N, L) -> (B, L, G, N)."""
    moves = name in ("u", "delta", "z", "B", "C") and tensor is not None
    return tensor.movedim(-1, 1) if moves else tensor


def selective_scan_call(m):
    arguments = scan(m)
    batch, dim, length = arguments["u"].shape
    rank, dt_proj = low_rank(m, (), dim)
    arguments["delta"] = arguments["delta"] if dt_proj is None else m.normal(batch, rank, length)
    last = m.draw(flag)
    if last:
        arguments = {name: channel_last(name, value) for name, value in arguments.items()}
    return {
        **arguments, "channel_last": last, "discretization": m.draw(st.sampled_from(["mamba", "zoh"])),
        "initial_state": m.maybe(m.normal(batch, dim, arguments["A"].shape[1])), "return_last_state": m.draw(flag),
        "dt_proj": dt_proj, "backend": None,
    }  # fmt: skip


def cross_selective_scan(m):
    batch, routes, length, dim, states = (m.draw(s) for s in (sizes, few, sizes, sizes, few))
    table = m.permutations(routes, length)
    columns, dt_proj = low_rank(m, (routes,), dim)
    parameter = m.draw(st.sampled_from([None, torch.float32]))
    return {
        "x": m.normal(batch, length, dim), "delta": m.normal(batch, routes, length, columns),
        "A": m.decay(routes, dim, states, dtype=parameter), "B": m.normal(batch, routes, length, states),
        "C": m.normal(batch, routes, length, states), "D": m.maybe(m.normal(routes, dim, dtype=parameter)),
        "delta_bias": m.maybe(m.normal(routes, dim, dtype=parameter)),
        "table": table if routes > 1 else m.maybe(table), "delta_softplus": m.draw(flag),
        "discretization": m.draw(st.sampled_from(["mamba", "zoh"])),
        "initial_state": m.maybe(m.normal(batch, routes, dim, states)), "return_last_state": m.draw(flag),
        "dt_proj": dt_proj, "backend": None,
    }  # fmt: skip


def routes_of(depth, height, width, scans, permutation):
    """`routes`, of an image if depth is 1."""
    size = (height, width) if isinstance(depth, int) and depth == 1 else (depth, height, width)
    return vk.routes(*size, scans=scans, permutation=permutation)


def routes(m):
    depth, height, width = m.draw(few), m.draw(sizes), m.draw(sizes)
    permutation = m.maybe(m.permutations(1, depth * height * width)[0])
    scans = m.draw(st.sampled_from([0, 1, 2, 3, 4, *SETS, "hw,wh-reversed", "snake-dHw", "skip3@5-wh", "hh"]))
    return {"depth": depth, "height": height, "width": width, "scans": scans, "permutation": permutation}


def permutation_of(height, width, patch_size, seed, keys):
    return vk.patch_permutation(height, width, patch_size=patch_size, seed=seed, keys=keys)


def patch_permutation(m):
    size, rows, columns = m.draw(few), m.draw(few), m.draw(few)
    keys = m.maybe(m.normal(rows * columns))
    seed = m.draw(st.integers(0, 5)) if keys is None else None
    return {"height": size * rows, "width": size * columns, "patch_size": size, "seed": seed, "keys": keys}


def mamba(m):
    return {**scan(m, constant=True), "return_last_state": m.draw(flag)}


def mamba_complex(m):
    arguments = mamba(m)
    dim, states = arguments["A"].shape
    arguments["A"] = torch.complex(*(make(dim, states, dtype=torch.float32) for make in (m.decay, m.normal)))
    for name in ("B", "C"):
        t = arguments[name]
        arguments[name] = torch.complex(t.float(), t.float()) if t.dim() == 2 else torch.cat([t, t], dim=-1)
    return arguments


def vmamba_call(m):
    arguments = scan(m)
    del arguments["z"]
    for name in ("delta", "delta_bias"):  # one step size for all channels
        if arguments["u"].shape[1] and arguments[name] is not None and m.draw(flag):
            arguments[name] = arguments[name].narrow(int(arguments[name].dim() > 1), 0, 1)
    return {**arguments, "oflex": m.draw(flag), "backend": m.draw(st.sampled_from([None, "core", "mamba", "torch"]))}


def selective_scan_package(m):
    arguments = vmamba_call(m)
    del arguments["oflex"], arguments["backend"]
    return arguments


def mamba_inner(m):
    batch, dim, length, states, rank, width = (m.draw(s) for s in (few, few, few, few, few, few))
    matrices = {name: m.maybe(m.normal(dim, states)) for name in ("B", "C")}
    rows = rank + states * sum(t is None for t in matrices.values())
    return {
        "xz": m.normal(batch, 2 * dim, length), "conv1d_weight": m.normal(dim, 1, width),
        "conv1d_bias": m.maybe(m.normal(dim)), "x_proj_weight": m.normal(rows, dim),
        "delta_proj_weight": m.normal(dim, rank), "out_proj_weight": m.normal(3, dim),
        "out_proj_bias": m.maybe(m.normal(3)), "A": m.decay(dim, states), **matrices, "D": m.maybe(m.normal(dim)),
        "delta_bias": m.maybe(m.normal(dim)), "delta_softplus": m.draw(flag),
        "B_proj_bias": m.maybe(m.normal(states)), "dt_rms_weight": m.maybe(m.normal(dim)),
    }  # fmt: skip


def bimamba_inner(m):
    arguments = mamba_inner(m)
    del arguments["dt_rms_weight"]
    return {**arguments, "A_b": m.decay(*arguments["A"].shape)}


def vmamba_function(call):
    def with_force_torch(m):
        arguments = call(m)
        del arguments["permutation"], arguments["backend"]
        return {**arguments, "force_torch": m.draw(flag)}

    return with_force_torch


def mamba_backward(m):
    arguments = scan(m)
    dout = m.normal(*arguments["u"].shape)
    return {**arguments, "dout": dout, "x": None, "out": None, "dz": None, "recompute_out_z": m.draw(flag)}


def oflex_backward(m):
    arguments = selective_scan_package(m)
    dtype = m.draw(st.sampled_from([None, torch.float32]))
    return {**arguments, "dout": m.normal(*arguments["u"].shape, dtype=dtype), "x": None, "nrows": 1}


def oflex_forward(m):
    arguments = selective_scan_package(m)
    return {**arguments, "nrows": 1, "out_float": m.draw(flag)}


TARGETS = {
    "cross_scan": (vk.cross_scan, cross_scan),
    "cross_merge": (vk.cross_merge, cross_merge),
    "selective_scan": (vk.selective_scan, selective_scan_call),
    "cross_selective_scan": (vk.cross_selective_scan, cross_selective_scan),
    "cross_scan_fn": (vk.cross_scan.cross_scan_fn, vmamba_function(cross_scan)),
    "cross_merge_fn": (vk.cross_scan.cross_merge_fn, vmamba_function(cross_merge)),
    "routes": (routes_of, routes),
    "patch_permutation": (permutation_of, patch_permutation),
    "mamba_ssm.selective_scan_fn": (mamba_ssm.selective_scan_fn, mamba),
    "mamba_ssm.selective_scan_fn, complex": (mamba_ssm.selective_scan_fn, mamba_complex),
    "mamba_ssm.mamba_inner_fn": (mamba_ssm.mamba_inner_fn, mamba_inner),
    "mamba_ssm.bimamba_inner_fn": (mamba_ssm.bimamba_inner_fn, bimamba_inner),
    "vmamba.selective_scan_fn": (vmamba.selective_scan_fn, vmamba_call),
    "selective_scan.selective_scan_fn": (selective_scan.selective_scan_fn, selective_scan_package),
    "selective_scan_cuda.fwd": (extensions.mamba_fwd, scan),
    "selective_scan_cuda.bwd": (extensions.mamba_bwd, mamba_backward),
    "selective_scan_cuda_oflex.fwd": (extensions.oflex_fwd, oflex_forward),
    "selective_scan_cuda_oflex.bwd": (extensions.vmamba_bwd, oflex_backward),
}


def strided(t):
    """The same values inside a larger tensor, with every stride changed."""
    padded = torch.zeros([2 * s + 1 for s in t.shape], dtype=t.dtype)
    window = padded[tuple(slice(1, None, 2) for _ in t.shape)]
    return window.copy_(t)


def with_value(value):
    def change(t, draw):
        t = t.clone(memory_format=torch.contiguous_format)
        if t.numel() and isinstance(value, float) == (t.is_floating_point() or t.is_complex()):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = value
        return t

    return change


def some_axis(t, draw):
    return draw(st.integers(0, max(t.dim() - 1, 0)))


def resized(t, draw):
    if t.dim() == 0:
        return t[None]
    shape = list(t.shape)
    shape[some_axis(t, draw)] = draw(st.sampled_from([0, 1, 4, 7, 257]))
    return torch.zeros(shape, dtype=t.dtype)


def swapped(t, draw):
    return t.transpose(some_axis(t, draw), some_axis(t, draw)) if t.dim() else t


def expanded(t, draw):
    if t.dim() == 0:
        return t
    axis = some_axis(t, draw)
    return t.narrow(axis, 0, 1).expand_as(t) if t.shape[axis] else t


# The same values in another form.
SAME = {
    "strided": lambda t, draw: strided(t),
    "negated view": lambda t, draw: torch._neg_view(-t) if t.is_floating_point() else t,
    "transposed memory": lambda t, draw: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() else t,
    "parameter": lambda t, draw: torch.nn.Parameter(t) if t.is_floating_point() else t,
    "int64": lambda t, draw: t if t.is_floating_point() or t.is_complex() else t.long(),
    "expanded": expanded,
}

SPOILED = {
    "no dimension": lambda t, draw: t.sum() if t.is_floating_point() else t.flatten()[:1].squeeze(),
    "one dimension more": lambda t, draw: t[None],
    "one dimension less": lambda t, draw: t[0] if t.dim() and len(t) else t,
    "flat": lambda t, draw: t.flatten(),
    "resized": resized,
    "swapped": swapped,
    "int": lambda t, draw: t.real.to(torch.int64),
    "uint8": lambda t, draw: t.real.to(torch.uint8),
    "bool": lambda t, draw: t.bool(),
    "complex": lambda t, draw: t.to(torch.complex64),
    "half": lambda t, draw: t.to(torch.float16) if t.is_floating_point() else t,
    "double": lambda t, draw: t.to(torch.float64) if t.is_floating_point() else t,
    "float8": lambda t, draw: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t,
    "meta": lambda t, draw: t.to("meta"),
    "sparse": lambda t, draw: t.to_sparse() if t.dim() else t,
    "nested": lambda t, draw: torch.nested.as_nested_tensor([t, t]) if t.is_floating_point() else t,
    "NaN": with_value(float("nan")),
    "infinite": with_value(float("inf")),
    "large": with_value(1e30),
    "out of range": with_value(99),
    "negative": with_value(-1),
    "repeated": lambda t, draw: torch.zeros_like(t),
    "beyond 32 bits": lambda t, draw: t + 2**32 if t.dtype == torch.int64 else t.double().to(torch.int64) + 2**32,
    "None": lambda t, draw: None,
    "list": lambda t, draw: t.tolist(),
    "array": lambda t, draw: np.zeros(tuple(t.shape), dtype=np.float32),
    "object": lambda t, draw: object(),
    "number": lambda t, draw: 1.0,
    "text": lambda t, draw: "x",
}

OPTIONS = [None, True, 0, 1, 3, -1, 2**40, 0.5, "yes", "mamba", "cpu", "cuda", b"cpu", [], ["cpu"], object()]


def is_plain(t):
    """Whether most torch functions accept its values."""
    return t.layout == torch.strided and not t.is_nested and not t.is_meta and t.dtype != torch.float8_e4m3fn


@st.composite
def calls(draw, target):
    """(function, arguments, changes to the arguments)."""
    function, valid = TARGETS[target]
    arguments = valid(ArgumentBuilder(draw))
    done = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(arguments)))
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            pool = SAME if draw(flag) else SPOILED
            how = draw(st.sampled_from(sorted(pool)))
            if is_plain(value):
                arguments[name] = pool[how](value, draw)
        else:
            how = draw(st.sampled_from(range(len(OPTIONS))))
            arguments[name] = OPTIONS[how]
        done.append((name, how))
    return function, arguments, done
