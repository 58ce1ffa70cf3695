#!/usr/bin/env bash
# Guess:  torch.jit.trace of a function that draws with a generator of its own, seeded inside it, gives a graph that draws
#         the same numbers as the function, or tracing fails.
# Really: the graph has the random operator without the generator. It draws from the global one: the function returns one
#         and the same result in every call, the traced graph another in each. The tracer's own check does say that the
#         outputs differ, as it does for every graph that draws; with check_trace=False nothing is said. A seeded
#         permutation of patches or a seeded noise is thereby lost in a saved model.
# Way out: draw before tracing, so that the numbers become a constant of the graph.
# Version: torch 2.13.0 (CPU), Python 3.11.
# Source: torch.jit.trace at run time; seen in the printed graphs, whose aten::randperm and aten::randn take no generator.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet torch==2.13.0
"$scratch/venv/bin/python" -W ignore - <<'EOF' | tee "$scratch/seen"
import torch


def order(x):
    return x[torch.randperm(8, generator=torch.Generator().manual_seed(0))]


def noise(x):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


x = torch.arange(8.0)
for function in (order, noise):
    traced = torch.jit.trace(function, x, check_trace=False)
    eager, graph = ({tuple(call(x).tolist()) for _ in range(20)} for call in (function, traced))
    print(f"{function.__name__}: different results of 20 calls, function {len(eager)}, traced graph {len(graph)}")
EOF
diff "$scratch/seen" - <<'EOF'
order: different results of 20 calls, function 1, traced graph 20
noise: different results of 20 calls, function 1, traced graph 20
EOF
