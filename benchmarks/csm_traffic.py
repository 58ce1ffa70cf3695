"""Bytes read and written by each PyTorch operator around the scan in one forward and backward of a CSM.

    python benchmarks/csm_traffic.py [--size 32] [--channels 64] [--batch-size 4]

Views are free; the compiled kernels are not counted. A large aten.clone or aten.copy_ is a copy that might be avoided.
"""

import argparse
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmddpm.model.config import ModelConfig
from vmddpm.model.csm import CSM
from vmddpm_kernels import routes


class Traffic(TorchDispatchMode):
    """Counts the bytes of all tensor arguments and results of each operator, except for views."""

    def __init__(self):
        super().__init__()
        self.bytes, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        addresses = [t.untyped_storage().data_ptr() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        inputs = [t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        name = str(function).removesuffix(".default")
        if name.startswith("aten.empty") or (not name.endswith("_") and set(addresses) & set(inputs)):
            return result  # nothing is moved
        self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors)
        self.calls[name] += 1
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    module = CSM(options.channels, ModelConfig())
    shape = (options.batch_size, options.channels, options.size, options.size)
    x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    with Traffic() as traffic:
        y = module(x, routes(options.size, options.size))
        y.backward(torch.randn_like(y))
    for name, count in traffic.bytes.most_common(12):
        print(f"{name:45}{traffic.calls[name]:4} calls {count / 1e6:9.1f} MB")
    print(f"{'all':45}{sum(traffic.calls.values()):4} calls {sum(traffic.bytes.values()) / 1e6:9.1f} MB")


if __name__ == "__main__":
    main()
