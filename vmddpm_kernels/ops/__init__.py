"""The compiled kernels as operators of PyTorch, `torch.ops.vmddpm.*`, a file for each family: the schema, the kernel,
which checks its arguments and runs a backend, the fake kernel, which states shapes, dtypes and strides, and the
autograd Function."""
