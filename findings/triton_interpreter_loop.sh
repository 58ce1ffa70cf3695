#!/usr/bin/env bash
# Guess:  Triton 3.6.0, which asks for no version of NumPy, interprets a kernel (TRITON_INTERPRET=1) with any NumPy 2.
# Really: with NumPy 2.4 a kernel that loops up to an argument, `for i in range(n)`, ends in a TypeError of NumPy that names
#         neither the kernel nor the loop. A branch on the same argument, masked loads, sums and cumulative sums run.
# Way out: NumPy below 2.4, or Triton 3.7.1, which runs all of them.
# Version: triton 3.6.0 and 3.7.1, numpy 2.3.5 and 2.4.0, torch 2.13.0 (CPU), Python 3.11.
# Source: the interpreter holds a scalar as an array of one element and lets range() turn it into an int; NumPy 2.4 ends
#         what 1.25 deprecated, the conversion of arrays that have a dimension.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet torch==2.13.0
cat > "$scratch/kernels.py" <<'EOF_PYTHON'
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def loop(x, y, n):
    total = 0.0
    for i in range(n):
        total += tl.load(x + i)
    tl.store(y, total)


@triton.jit
def branch(x, y, n):
    total = tl.load(x)
    if n > 2:
        total += tl.load(x + 1)
    tl.store(y, total)


@triton.jit
def masked_sum(x, y, n):
    i = tl.arange(0, 8)
    tl.store(y, tl.sum(tl.load(x + i, mask=i < n, other=0.0)))


print(f"triton {triton.__version__}, numpy {numpy.__version__}")
for kernel in (loop, branch, masked_sum):
    y = torch.zeros(1)
    try:
        kernel[(1,)](torch.arange(8.0), y, 4)
        print(f"  {kernel.fn.__name__}: {y.item():g}")
    except Exception as error:
        while error.__cause__:
            error = error.__cause__
        print(f"  {kernel.fn.__name__}: {type(error).__name__}: {error}")
EOF_PYTHON
for pair in "3.6.0 2.4.0" "3.6.0 2.3.5" "3.7.1 2.4.0"; do
  read -r triton numpy <<< "$pair"
  "$scratch/venv/bin/pip" install --quiet torch==2.13.0 "triton==$triton" "numpy==$numpy"
  TRITON_INTERPRET=1 "$scratch/venv/bin/python" -W ignore "$scratch/kernels.py"
done | tee "$scratch/seen"
diff "$scratch/seen" - <<'EOF'
triton 3.6.0, numpy 2.4.0
  loop: TypeError: only 0-dimensional arrays can be converted to Python scalars
  branch: 1
  masked_sum: 6
triton 3.6.0, numpy 2.3.5
  loop: 6
  branch: 1
  masked_sum: 6
triton 3.7.1, numpy 2.4.0
  loop: 6
  branch: 1
  masked_sum: 6
EOF
