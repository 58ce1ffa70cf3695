"""The compiled kernels as operators of PyTorch, `torch.ops.vmddpm.*`, each in a file of its own: the schema, the kernel,
which checks its arguments and runs a backend, the fake kernel, which states shapes, dtypes and strides, and the autograd
Function."""
