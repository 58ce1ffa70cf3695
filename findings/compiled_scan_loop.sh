#!/usr/bin/env bash
# Guess:  torch.compile of the selective scan written as a loop over three steps gives on a CPU what the loop gives.
# Really: with 8 or 16 states y of the first step is wrong, by as much as y is large, without a word; the second and the
#         third are right. So it is with registers of 256 and of 512 bits. Two steps, one state, and code without vector
#         registers (`cpp.simdlen` 1) are right.
# Way out: a newer torch: 2.14.1 and 2.15.0 were right, 2.8.0 was wrong as 2.13.0 is. Or compare the compiled function with
#         the plain one before it is trusted or measured.
# Version: torch 2.13.0 (CPU), Python 3.11, g++ 12, on a processor with AVX2 or AVX-512.
# Source: the C++ that TorchInductor generates: it joins the sums of the steps in one loop over vector registers, where the
#         products of one step wait in a buffer for theirs.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet torch==2.13.0
TORCHINDUCTOR_CACHE_DIR="$scratch/cache" "$scratch/venv/bin/python" -W ignore - <<'EOF_PYTHON' | tee "$scratch/seen"
import torch


def scan(x, delta, A, B, C):
    h, ys = x.new_zeros(x.shape[0], x.shape[1], A.shape[1]), []
    for l in range(x.shape[2]):
        step = delta[:, :, l, None]
        h = torch.exp(step * A) * h + step * x[:, :, l, None] * B[:, None, :, l]
        ys.append((h * C[:, None, :, l]).sum(-1))
    return torch.stack(ys, -1)


torch.set_num_threads(1)
for steps, states, bits in ((3, 16, 256), (3, 8, 256), (3, 16, 1), (2, 16, 256), (3, 1, 256)):
    torch.manual_seed(0)
    x, delta, A = torch.randn(2, 32, steps), torch.rand(2, 32, steps), -torch.rand(32, states) - 0.1
    tensors = x, delta, A, torch.randn(2, states, steps), torch.randn(2, states, steps)
    torch._dynamo.reset()
    compiled = torch.compile(scan, dynamic=False, options={"cpp.simdlen": bits})(*tensors)
    exact = scan(*(t.double() for t in tensors))
    right = [bool(step) for step in ((compiled - exact).abs() < 1e-4).all(0).all(0)]
    print(f"{steps} steps, {states} states, registers of {bits} bits: steps that are right {right}")
EOF_PYTHON
diff "$scratch/seen" - <<'EOF'
3 steps, 16 states, registers of 256 bits: steps that are right [False, True, True]
3 steps, 8 states, registers of 256 bits: steps that are right [False, True, True]
3 steps, 16 states, registers of 1 bits: steps that are right [True, True, True]
2 steps, 16 states, registers of 256 bits: steps that are right [True, True]
3 steps, 1 states, registers of 256 bits: steps that are right [True, True, True]
EOF
