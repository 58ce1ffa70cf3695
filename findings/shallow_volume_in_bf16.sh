#!/usr/bin/env bash
# Guess:  a 3-D convolution in bfloat16 on a CPU has the gradients of float32, to the digits of bfloat16, at every size.
# Really: where a zero-padded volume has fewer planes than the kernel (but more than one), the gradient of the weight holds
#         whatever was in memory: errors of 100 % of the largest entry and more, often NaN, another one at each call. The
#         output, the gradients of input and bias, 2-D convolutions, float16 and float32 are right. Networks over volumes
#         meet it at the bottleneck of a U-Net, where 32^3 voxels have become 2^3.
# Way out: compute such a layer in float32, or pad so that the volume is as deep as the kernel.
# Version: torch 2.13.0 (CPU; its oneDNN), Python 3.11, on a processor with AVX-512 and its bfloat16 instructions.
# Source: ONEDNN_VERBOSE=1 names the kernel of the backward pass by weights, jit_bf16:avx512_core_bf16; the other passes run
#         other kernels.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
grep -q avx512_bf16 /proc/cpuinfo || { echo "this processor has no AVX-512 bfloat16 instructions" >&2; exit 1; }
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cat > "$scratch/gradients.py" <<'EOF_PYTHON'
import torch

LAST = torch.channels_last_3d
torch.manual_seed(0)
torch.set_num_threads(1)


def worst(depth, side, dtype):
    """The largest error of the weight's gradient against float64, relative to its largest entry, over six calls."""
    def layer():
        return torch.nn.Conv3d(32, 32, side, padding=side // 2)

    low, high = layer().to(memory_format=LAST).to(dtype), layer().double()
    high.load_state_dict(low.state_dict())
    x, dy = (torch.randn(2, 32, depth, 4, 4).contiguous(memory_format=LAST).to(dtype) for _ in range(2))
    (right,) = torch.autograd.grad(high(x.double()), high.weight, dy.double())
    errors = []
    for _ in range(6):
        poison = [torch.full((size,), torch.nan) for size in (4096, side**3 * 32, side**3 * 32 * 32)]
        del poison  # freed: the next tensors of these sizes begin as NaN
        (found,) = torch.autograd.grad(low(x), low.weight, dy)
        errors.append(((found.double() - right).abs().max() / right.abs().max()).nan_to_num(torch.inf).item())
    return max(errors)


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for side in (3, 5):
        told = [f"{depth} {'right' if worst(depth, side, dtype) < 0.02 else 'wrong'}" for depth in (1, 2, 3, 4, 5, 6)]
        print(f"{str(dtype)[6:]}, kernel {side}^3, planes: {', '.join(told)}")
EOF_PYTHON
"$scratch/venv/bin/python" -W ignore "$scratch/gradients.py" | tee "$scratch/seen"
diff "$scratch/seen" - <<'EOF'
float32, kernel 3^3, planes: 1 right, 2 right, 3 right, 4 right, 5 right, 6 right
float32, kernel 5^3, planes: 1 right, 2 right, 3 right, 4 right, 5 right, 6 right
float16, kernel 3^3, planes: 1 right, 2 right, 3 right, 4 right, 5 right, 6 right
float16, kernel 5^3, planes: 1 right, 2 right, 3 right, 4 right, 5 right, 6 right
bfloat16, kernel 3^3, planes: 1 right, 2 wrong, 3 right, 4 right, 5 right, 6 right
bfloat16, kernel 5^3, planes: 1 right, 2 wrong, 3 wrong, 4 wrong, 5 right, 6 right
EOF
