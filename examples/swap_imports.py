"""Code written for mamba_ssm and VMamba, with only its imports changed, checked against plain PyTorch.

Each pair of lines is what the code said and what it says now; the calls below stay as they were.
"""

import torch
from torch.nn import functional as F

# from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from vmddpm_kernels.compat.mamba_ssm import selective_scan_fn

# from .csm_triton import cross_scan_fn, cross_merge_fn
from vmddpm_kernels.cross_scan import cross_merge_fn, cross_scan_fn

# from mamba_ssm import Mamba
from vmddpm_kernels.modules import Mamba


def scan_in_pytorch(u, delta, A, B, C, D, z, delta_bias):
    """The selective scan one step at a time, from its definition (arXiv 2312.00752, Algorithm 2)."""
    delta = F.softplus(delta + delta_bias[:, None])                             # (B, D, L)
    state, ys = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), []        # (B, D, N)
    for step in range(u.shape[2]):
        decay = torch.exp(delta[:, :, step, None] * A)
        state = decay * state + (delta * u)[:, :, step, None] * B[:, None, :, step]
        ys.append((state * C[:, None, :, step]).sum(-1))
    return (torch.stack(ys, 2) + D[:, None] * u) * F.silu(z)


def check(name, ours, expected):
    error = ((ours - expected).norm() / expected.norm()).item()
    print(f"{name}: relative error {error:.1e}")
    if not error < 1e-5:
        raise SystemExit(f"{name} differs from plain PyTorch")


def main() -> None:
    torch.manual_seed(0)
    batch, dim, length, d_state = 2, 64, 200, 16
    u, delta, z = torch.randn(3, batch, dim, length)
    A, (D, bias) = -torch.rand(dim, d_state), torch.randn(2, dim)
    B, C = torch.randn(2, batch, d_state, length)
    y = selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True)
    wide = (t.double() for t in (u, delta, A, B, C, D, z, bias))
    check("selective_scan_fn", y, scan_in_pytorch(*wide))

    x = torch.randn(batch, dim, 12, 10)
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    expected = torch.stack([rows, columns, rows.flip(2), columns.flip(2)], 1)   # (B, 4, D, L)
    sequences = cross_scan_fn(x, in_channel_first=True, out_channel_first=True)
    check("cross_scan_fn", sequences, expected)
    merged = cross_merge_fn(sequences.unflatten(3, (12, 10)), in_channel_first=True, out_channel_first=True)
    check("cross_merge_fn", merged, 4 * rows)                                   # each route returns every pixel

    block, tokens = Mamba(d_model=dim), torch.randn(batch, length, dim)
    whole = block(tokens)
    later = block(torch.cat([tokens[:, :100], torch.randn(batch, 100, dim)], 1))
    check("Mamba, whose past does not depend on its future", later[:, :100], whole[:, :100])


if __name__ == "__main__":
    main()
