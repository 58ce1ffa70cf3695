"""The PyTorch operators `torch.ops.vmddpm.*`. Each file has the schema of an operator, its kernel, which checks the
arguments and runs a backend, its fake kernel for shapes, dtypes and strides, and its autograd Function."""
