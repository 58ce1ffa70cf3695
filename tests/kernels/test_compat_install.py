"""compat.install: code written for mamba_ssm and VMamba's kernels runs unchanged, and uninstalling leaves no trace."""

import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracle import relative_error

from vmddpm_kernels import compat
from vmddpm_kernels.compat import mamba_ssm, vmamba

NAMES = {
    "causal_conv1d",
    "causal_conv1d.causal_conv1d_interface",
    "mamba_ssm",
    "mamba_ssm.modules",
    "mamba_ssm.modules.block",
    "mamba_ssm.modules.mamba_simple",
    "mamba_ssm.ops",
    "mamba_ssm.ops.selective_scan_interface",
    "mamba_ssm.ops.triton",
    "mamba_ssm.ops.triton.layer_norm",
    "mamba_ssm.ops.triton.layernorm",
    "mamba_ssm.ops.triton.selective_state_update",
    "mamba_ssm.utils",
    "mamba_ssm.utils.generation",
    "mamba_ssm.utils.hf",
    "selective_scan",
    "selective_scan_cuda",
    "selective_scan_cuda_core",
    "selective_scan_cuda_ndstate",
    "selective_scan_cuda_nrow",
    "selective_scan_cuda_oflex",
}


@pytest.fixture(autouse=True)
def _modules_restored():
    before = set(sys.modules) & (NAMES | {"csm_triton", "csms6s"})
    yield
    compat.uninstall()
    assert set(sys.modules) & (NAMES | {"csm_triton", "csms6s"}) == before


def write_package(folder, name, **files):
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for file, text in files.items():
        (package / f"{file}.py").write_text(text)


@pytest.fixture
def real_packages(tmp_path, monkeypatch):
    """An installed mamba_ssm, built without its extension."""
    write_package(tmp_path, "mamba_ssm", modules="from mamba_ssm.ops.selective_scan_interface import selective_scan_fn")
    write_package(tmp_path / "mamba_ssm", "ops", selective_scan_interface="def selective_scan_fn(): return 'real'")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "mamba_ssm"]:
        del sys.modules[name]


def test_names_come_and_go():
    with compat.install() as installation:
        assert set(installation.modules) == NAMES
        import mamba_ssm.ops.selective_scan_interface as interface
        import selective_scan
        import selective_scan_cuda_oflex
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        assert selective_scan_fn is interface.selective_scan_fn is mamba_ssm.selective_scan_fn
        assert sys.modules["mamba_ssm"].ops.selective_scan_interface is interface
        assert callable(selective_scan.selective_scan_fn)
        assert callable(selective_scan_cuda_oflex.bwd)
        assert all(importlib.util.find_spec(name) for name in NAMES)
    assert not NAMES & set(sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_install_twice_and_uninstall():
    first = compat.install()
    second = compat.install()
    second.remove()
    second.remove()
    assert sys.modules["selective_scan"] is first.modules["selective_scan"]
    compat.install()
    compat.uninstall()
    compat.uninstall()
    assert not NAMES & set(sys.modules)


def test_what_is_really_installed_is_refused(real_packages):
    with pytest.raises(ImportError, match=r"already installed: mamba_ssm \(.*installed='override'"):
        compat.install()
    assert "selective_scan" not in sys.modules
    with pytest.raises(ValueError, match="installed must be"):
        compat.install(installed="maybe")
    with pytest.raises(TypeError, match="vmamba_package must be"):
        compat.install(vmamba_package=3)


def test_what_is_really_installed_is_kept(real_packages):
    """Only its missing extension is replaced."""
    with compat.install(installed="keep") as installation:
        assert set(installation.modules) == {name for name in NAMES if not name.startswith("mamba_ssm")}
        assert importlib.import_module("mamba_ssm.modules").selective_scan_fn() == "real"


@pytest.mark.parametrize("imported_before", [False, True])
def test_what_is_really_installed_is_overridden(real_packages, imported_before):
    """The functions are ours, the rest is the package's own, and in the end everything is restored."""
    interface = "mamba_ssm.ops.selective_scan_interface"
    if imported_before:
        importlib.import_module(interface)
    with compat.install(installed="override") as installation:
        packages = {"mamba_ssm", "mamba_ssm.ops", "mamba_ssm.modules.mamba_simple", "mamba_ssm.utils.generation"}
        assert packages.isdisjoint(installation.modules)
        model = importlib.import_module("mamba_ssm.modules")
        assert model.selective_scan_fn is mamba_ssm.selective_scan_fn
        if imported_before:
            assert sys.modules["mamba_ssm.ops"].selective_scan_interface is sys.modules[interface]
    assert importlib.import_module(interface).selective_scan_fn() == "real"
    assert sys.modules["mamba_ssm.ops"].selective_scan_interface.selective_scan_fn() == "real"


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    """VMamba's kernels/ has a folder named selective_scan."""
    (tmp_path / "selective_scan").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with compat.install():
        assert callable(importlib.import_module("selective_scan").selective_scan_fn)


@pytest.mark.parametrize("package", ["", "vmamba_models"])
def test_vmamba_own_modules(tmp_path, monkeypatch, package):
    dot = "." if package else ""
    write_package(
        tmp_path, "vmamba_models",
        csm_triton="raise NotImplementedError", csms6s="raise NotImplementedError",
        model=f"from {dot}csm_triton import cross_scan_fn\nfrom {dot}csms6s import selective_scan_fn, CrossScan",
    )  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path / "" if package else tmp_path / "vmamba_models"))
    model = "vmamba_models.model" if package else "model"
    with compat.install(vmamba_package=package):
        module = importlib.import_module(model)
        assert module.selective_scan_fn is vmamba.selective_scan_fn
        assert module.cross_scan_fn(torch.zeros(1, 2, 3, 4)).shape == (1, 4, 2, 12)
        assert module.CrossScan.apply(torch.zeros(1, 2, 3, 4)).shape == (1, 4, 2, 12)
    for name in ("vmamba_models", model):
        sys.modules.pop(name, None)


def wrapped_by_projects(extension, kind):
    """An autograd Function around an extension's fwd and bwd, as projects write them."""

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, D, z, delta_bias):
            if kind == "mamba":
                out, x, *rest = extension.fwd(u, delta, A, B, C, D, z, delta_bias, True)
            else:
                options = (True, 1, True) if kind == "oflex" else (True, 1)
                out, x, *rest = extension.fwd(u, delta, A, B, C, D, delta_bias, *options)
            ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, x, out)
            ctx.last_state = x[:, :, -1, 1::2]
            return rest[0] if rest else out

        @staticmethod
        def backward(ctx, dout):
            u, delta, A, B, C, D, z, delta_bias, x, out = ctx.saved_tensors
            if kind == "mamba":
                dz = None if z is None else torch.empty_like(z)
                arguments = (u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, True, True)
                *grads, out_z = extension.bwd(*arguments)
                assert z is None or torch.equal(grads[7], dz)
                assert out_z.shape == u.shape
                return (*grads[:6], dz, grads[6])
            grads = extension.bwd(u, delta, A, B, C, D, delta_bias, dout, x, True, 1)
            return (*grads[:6], None, grads[6])

    return Scan.apply


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"), [("mamba", "cuda"), ("oflex", "cuda_oflex"), ("core", "cuda_core"), ("core", "cuda_nrow")]
)
def test_extensions_by_their_fwd_and_bwd(kind, name, gate):
    u, delta, z = (torch.randn(2, 6, 9) for _ in range(3))
    A, B, C = -torch.rand(6, 4), torch.randn(2, 3, 4, 9), torch.randn(2, 3, 4, 9)
    tensors = [u, delta, A, B, C, torch.randn(6), z if gate and kind == "mamba" else None, torch.randn(6)]
    with compat.install():
        function = wrapped_by_projects(importlib.import_module(f"selective_scan_{name}"), kind)

    def gradients(function):
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        return [out, *torch.autograd.grad((out * weight).sum(), [t for t in leaves if t is not None])]

    want = gradients(lambda *t: mamba_ssm.selective_scan_ref(*t, True))
    for a, b in zip(gradients(function), want):
        assert relative_error(a, b) < 1e-6


def test_extension_of_oflex():
    """Half precision in, float32 out, gradients in either, step sizes shared by channels; x holds the last state."""
    u, delta = torch.randn(2, 6, 9).bfloat16(), torch.randn(2, 2, 9).bfloat16()
    A, B = -torch.rand(6, 4), torch.randn(2, 3, 4, 9).bfloat16()
    with compat.install():
        extension = importlib.import_module("selective_scan_cuda_oflex")
    for out_float in (True, False):
        out, x = extension.fwd(u, delta, A, B, B, None, None, True, 1, out_float)
        assert out.dtype == (torch.float32 if out_float else torch.bfloat16)
        wide = delta.repeat_interleave(3, dim=1)
        _, last = mamba_ssm.selective_scan_fn(u, wide, A, B, B, delta_softplus=True, return_last_state=True)
        torch.testing.assert_close(x[:, :, -1, 1::2], last)
        grads = extension.bwd(u, delta, A, B, B, None, None, torch.ones_like(out), x, True, 1)
        assert [g is None for g in grads] == [False] * 5 + [True] * 2
        assert [(g.shape, g.dtype) for g in grads[:5]] == [(t.shape, t.dtype) for t in (u, delta, A, B, B)]


def test_extension_of_a_single_state():
    """A (D,), B and C (B, G, L) act like tensors with a state axis of length 1."""
    u, delta = torch.randn(2, 6, 9), torch.rand(2, 6, 9)
    A, B, C = -torch.rand(6), torch.randn(2, 3, 9), torch.randn(2, 3, 9)
    with compat.install():
        core, single = (importlib.import_module(f"selective_scan_cuda_{name}") for name in ("core", "ndstate"))
    wide = (A[:, None], B[:, :, None], C[:, :, None])
    out, x = single.fwd(u, delta, A, B, C, None, None, True, 1)
    want, want_x = core.fwd(u, delta, *wide, None, None, True, 1)
    assert torch.equal(out, want)
    assert torch.equal(x, want_x)
    grads = single.bwd(u, delta, A, B, C, None, None, torch.ones_like(out), x, True, 1)
    wants = core.bwd(u, delta, *wide, None, None, torch.ones_like(out), x, True, 1)
    for grad, want, like in zip(grads, wants, (u, delta, A, B, C)):
        assert grad.shape == like.shape
        assert torch.equal(grad.flatten(), want.flatten())
    assert grads[5:] == [None, None]
    with pytest.raises(ValueError, match=r"A must have shape \(dim\), got \(6, 1\)"):
        single.fwd(u, delta, *wide, None, None, True, 1)


PUBLIC = json.loads((Path(__file__).parent / "public_names.json").read_text())
# Names that models need at construction: they must exist.
NEEDED = {
    "mamba_ssm": "Mamba mamba_inner_fn selective_scan_fn",
    "mamba_ssm.modules.mamba_simple": "Block Mamba RMSNorm layer_norm_fn rms_norm_fn selective_state_update",
    "mamba_ssm.modules.block": "Block",
    "mamba_ssm.ops.selective_scan_interface": "SelectiveScanFn MambaInnerFn mamba_inner_ref selective_scan_ref "
    "rms_norm_forward bimamba_inner_ref MambaInnerFnNoOutProj BiMambaInnerFn",
    "mamba_ssm.ops.triton.layer_norm": "LayerNormFn RMSNorm layer_norm_fn layer_norm_linear_fn rms_norm_fn",
    "mamba_ssm.ops.triton.layernorm": "LayerNormFn RMSNorm layer_norm_fn layer_norm_linear_fn rms_norm_fn",
    "mamba_ssm.ops.triton.selective_state_update": "selective_state_update selective_state_update_ref",
    "mamba_ssm.utils.generation": "GenerationMixin InferenceParams decode sample",
    "mamba_ssm.utils.hf": "load_config_hf load_state_dict_hf",
    "causal_conv1d": "causal_conv1d_fn causal_conv1d_update",
    "causal_conv1d.causal_conv1d_interface": "CausalConv1dFn causal_conv1d_ref causal_conv1d_update_ref",
}


@pytest.mark.parametrize("version", PUBLIC)
def test_every_public_name_is_ours_or_refused_with_what_is_covered(version):
    package = version.partition(" ")[0]
    explained = rf"stands in for {package} and has no {package}\..*It covers .*(Mamba, Block|causal_conv1d_fn)"
    with compat.install():
        there = compat.installed()
        for module, names in PUBLIC[version].items():
            if module not in there:
                with pytest.raises(ImportError, match=explained):
                    importlib.import_module(module)
                continue
            for name in names.split():
                scope: dict = {}
                if name in there[module] or name == "__version__":
                    exec(f"from {module} import {name}", scope)
                    assert scope[name] is not None
                else:
                    with pytest.raises(ImportError, match=explained):
                        exec(f"from {module} import {name}", scope)


def test_what_models_are_built_of_is_there():
    with compat.install():
        for module, names in NEEDED.items():
            for name in names.split():
                assert callable(getattr(importlib.import_module(module), name)), (module, name)
        ours = compat.installed()
    assert not [name for module, names in NEEDED.items() for name in names.split() if name not in ours[module]]
    assert compat.installed() == {}


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from mamba_ssm import Mamba2", "Mamba-2 has no kernels here"),
        ("import mamba_ssm.modules.mamba2", "Mamba-2 has no kernels here"),
        ("from mamba_ssm import MambaLMHeadModel", "MambaForCausalLM"),
        ("from mamba_ssm.ops.triton import ssd_combined", "installed='override'"),
    ],
)
def test_refusals_come_and_go(statement, message):
    with compat.install():
        with pytest.raises(ImportError, match=message):
            exec(statement, {})
        assert not hasattr(importlib.import_module("mamba_ssm"), "no_such_name")
        assert importlib.util.find_spec("no_such_package") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'mamba_ssm'"):
        exec(statement, {})


def hugging_face(folder, monkeypatch, text, number="5.24.0"):
    """A transformers package of this version, reduced to the file that looks for kernels."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    write_package(folder, "transformers", integrations="")
    (folder / "transformers" / "integrations").mkdir()
    (folder / "transformers" / "integrations" / "hub_kernels.py").write_text(text)
    metadata = folder / f"transformers-{number}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {number}\n")


def test_transformers_that_cannot_find_them_is_reported(tmp_path, monkeypatch):
    hugging_face(tmp_path, monkeypatch, "", "4.57.6")
    with pytest.warns(UserWarning, match=r"transformers 4\.57\.6 looks for mamba_ssm .* on NVIDIA GPUs only.*5\.24"):
        compat.install()


def test_transformers_models_imported_before_are_reported(tmp_path, monkeypatch):
    hugging_face(tmp_path, monkeypatch, "def use_kernel_func_from_hub_with_fallback(): ...")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.install()
    early = ModuleType("transformers.models.mamba.modeling_mamba")
    early.causal_conv1d_fn = None
    monkeypatch.setitem(sys.modules, early.__name__, early)
    with pytest.warns(UserWarning, match=r"modeling_mamba were imported .* before the models of transformers"):
        compat.install()
