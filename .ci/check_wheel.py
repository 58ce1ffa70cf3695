"""The installed wheel, with nothing but its base requirements: it imports, its kernels run and are right."""

import torch

import vmddpm_kernels as vk

assert "site-packages" in vk.__file__, vk.__file__
assert vk.backends()["cpu"].active, vk.backends()
x, delta = torch.randn(2, 12, 5), torch.randn(2, 4, 12, 5)
A, B, C = -torch.rand(4, 5, 3), torch.randn(2, 4, 12, 3), torch.randn(2, 4, 12, 3)
table = vk.routes(3, 4)
y, reference = (
    vk.cross_selective_scan(x, delta, A, B, C, table=table, delta_softplus=True, backend=b)
    for b in ("cpu", "reference")
)
torch.testing.assert_close(y, reference)
print("wheel:", vk.__file__, vk.backends()["cpu"].detail)
