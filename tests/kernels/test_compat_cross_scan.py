"""VMamba's names for cross scan and cross merge, against the table of destinations."""


import itertools
import pickle
import subprocess
import sys

import pytest
import torch
from oracle import route_destination
from test_cross_scan import image, merge_by_definition, scan_by_definition

import vmddpm_kernels as vk
from vmddpm_kernels.cross_scan import (
    CrossMerge,
    CrossMerge_Ab_1direction,
    CrossMerge_Ab_2direction,
    CrossMergeF,
    CrossMergeTriton,
    CrossMergeTritonF,
    CrossScan,
    CrossScan_Ab_1direction,
    CrossScan_Ab_2direction,
    CrossScanF,
    CrossScanTriton,
    CrossScanTriton1b1,
    CrossScanTriton1b1F,
    CrossScanTritonF,
    cross_merge_fn,
    cross_scan_fn,
    getCSM,
)

LAYOUTS = list(itertools.product([True, False], [True, False], [True, False], [0, 1, 2, 3]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strided", [False, True])
def test_functions_of_the_current_version(layout, strided):
    """All layouts, scans and one_by_one, by position, including cases where VMamba's functions fail: on a CPU, with
    scans = 3, with one_by_one and channel last, on inputs that are not contiguous."""
    in_first, out_first, one_by_one, _ = layout
    x = image(2, 3, 4, 5, in_first, one_by_one).requires_grad_()
    y = image(2, 3, 4, 5, out_first, True).requires_grad_()
    scan_in, merge_in = (t.mT.contiguous().mT if strided else t for t in (x, y))
    scanned, merged = scan_by_definition(x.detach(), *layout), merge_by_definition(y.detach(), *layout)
    for scan in (cross_scan_fn, CrossScanF.apply, CrossScanTritonF.apply):
        got = scan(scan_in, *layout)
        assert torch.equal(got, scanned)
        assert got.is_contiguous()
    for merge in (cross_merge_fn, CrossMergeF.apply, CrossMergeTritonF.apply):
        got = merge(merge_in, *layout)
        assert torch.equal(got, merged)
        assert got.is_contiguous()
    assert torch.equal(cross_scan_fn(scan_in, *layout, force_torch=True), scanned)
    assert torch.equal(cross_merge_fn(merge_in, *layout, force_torch=True), merged)

    (dx,) = torch.autograd.grad(cross_scan_fn(scan_in, *layout), x, y.detach().reshape(scanned.shape))
    assert torch.equal(dx.flatten(), merged.flatten())  # each is the other's gradient
    (dy,) = torch.autograd.grad(cross_merge_fn(merge_in, *layout), y, x.detach().reshape(merged.shape))
    assert torch.equal(dy.flatten(), scanned.flatten())


@pytest.mark.parametrize(
    ("scan", "merge", "code"),
    [
        (CrossScan, CrossMerge, 0),
        (CrossScanTriton, CrossMergeTriton, 0),
        (CrossScanTritonF, CrossMergeTritonF, 0),
        (CrossScan_Ab_1direction, CrossMerge_Ab_1direction, 1),
        (CrossScan_Ab_2direction, CrossMerge_Ab_2direction, 2),
        (*getCSM(1), 1),
        (*getCSM(2), 2),
    ],
)
def test_classes_of_older_versions(scan, merge, code):
    x, y = image(2, 3, 4, 5, True, False), image(2, 3, 4, 5, True, True)
    assert torch.equal(scan.apply(x), scan_by_definition(x, True, True, False, code))
    assert torch.equal(merge.apply(y), merge_by_definition(y, True, True, False, code))
    pixel = torch.zeros(1, 1, 4, 5)
    pixel[0, 0, 1, 3] = 1
    visited = [route_destination(code, k, 1, 3, 4, 5) for k in range(4)]
    assert scan.apply(pixel)[0, :, 0].argmax(-1).tolist() == visited


def test_one_image_a_route():
    x = image(2, 3, 4, 5, True, True)
    assert torch.equal(CrossScanTriton1b1.apply(x), scan_by_definition(x, True, True, True, 0))
    assert torch.equal(CrossScanTriton1b1F.apply(x), scan_by_definition(x, True, True, True, 0))
    x = image(2, 3, 4, 5, False, True)
    assert torch.equal(CrossScanTriton1b1F.apply(x, False), scan_by_definition(x, False, True, True, 0))


def test_older_channel_last_layout():
    """CrossScanTritonF.apply(x, channel_first) takes the image's layout; sequences are always channel first."""
    x, y = image(2, 3, 4, 5, False, False), image(2, 3, 4, 5, True, True)
    assert torch.equal(CrossScanTritonF.apply(x, False), scan_by_definition(x, False, True, False, 0))
    assert torch.equal(CrossMergeTritonF.apply(y, False), merge_by_definition(y, False, True, False, 0))


def test_function_and_module_by_one_name():
    import vmddpm_kernels.cross_scan as csm
    from vmddpm_kernels import cross_scan

    x = image(1, 2, 3, 4, True, False)
    module = sys.modules["vmddpm_kernels.cross_scan"]
    assert torch.equal(cross_scan(x), csm.cross_scan_fn(x))
    for name in module.__all__:
        assert getattr(csm, name) is getattr(module, name)
        assert pickle.loads(pickle.dumps(getattr(module, name))) is getattr(module, name)


def test_reload():
    """Reloading the module, then the package gives one consistent set of names. Runs in its own process."""
    script = """
import importlib, pickle, sys
import vmddpm_kernels as vk
importlib.reload(sys.modules["vmddpm_kernels.cross_scan"])
importlib.reload(vk)
assert vk.cross_scan is sys.modules["vmddpm_kernels.cross_scan"].cross_scan is vk.cross_scan.cross_scan
assert pickle.loads(pickle.dumps(vk.cross_scan)) is vk.cross_scan
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_gradient_that_is_still_to_be_negated():
    for function, t in ((vk.cross_scan, torch.randn(1, 2, 3, 4)), (vk.cross_merge, torch.randn(1, 4, 2, 3, 4))):
        t.requires_grad_()
        y = function(t)
        dy = torch.randn(y.shape)
        (want,) = torch.autograd.grad(y, t, dy, retain_graph=True)
        (got,) = torch.autograd.grad(y, t, torch._neg_view(-dy))
        assert torch.equal(got, want)


def test_errors_name_the_argument():
    x = torch.zeros(1, 2, 3, 4)
    for call, error, words in [
        (lambda: cross_scan_fn(x[0]), ValueError, r"x must have shape \(B, C, H, W\)"),
        (lambda: CrossMerge.apply(x), ValueError, r"y must have shape \(B, 4, C, H, W\)"),
        (lambda: cross_scan_fn(x[:, :, :0]), ValueError, r"x \(B, C, H, W\) must have at least one pixel"),
        (lambda: cross_scan_fn(x, "first"), TypeError, "in_channel_first must be True or False"),
        (lambda: cross_scan_fn(x, scans=4), ValueError, "scans must be"),
        (lambda: cross_scan_fn(x.to_sparse()), TypeError, "x must be a dense tensor"),
        (lambda: getCSM(3), ValueError, "mode must be 0, 1 or 2"),
    ]:
        with pytest.raises(error, match=words):
            call()


