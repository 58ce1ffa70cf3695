"""Hugging Face's Mamba, FalconMamba and Jamba on our kernels, against their own PyTorch code: small random models."""

import importlib
import io
import logging
import sys
import warnings
from collections import Counter

import pytest
import torch
from oracle import relative_error

from vmddpm_kernels import compat
from vmddpm_kernels.backends.cpu import CpuBackend
from vmddpm_kernels.modules import replace_linear

transformers = pytest.importorskip("transformers")

FUNCTIONS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "mamba_selective_scan",
    "mamba_selective_state_update",
)
COMMON = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
MODELS = {
    "mamba": ("Mamba", {}),
    "falcon_mamba": ("FalconMamba", {}),
    "jamba": (
        "Jamba",
        {
            "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_period": 2,
            "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1,
        },
    ),
}  # fmt: skip
OPERATORS = ("scan", "scan_backward", "causal_conv1d", "causal_conv1d_backward", "causal_conv1d_update", "state_update")


@pytest.fixture(params=MODELS)
def modeling(request, monkeypatch):
    """A model's module, reimported while our kernels are installed, so that it stays bound to them."""
    name = f"transformers.models.{request.param}.modeling_{request.param}"
    importlib.import_module(name)
    for loaded in [n for n in sys.modules if n.startswith("transformers.models.") and ".modeling_" in n]:
        monkeypatch.delitem(sys.modules, loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compat.install():
            return importlib.import_module(name)


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of each CPU operator."""
    counter = Counter()

    def counting(name, function):
        def counted(*args, **kwargs):
            counter[name] += 1
            return function(*args, **kwargs)

        return counted

    for name in OPERATORS:
        monkeypatch.setattr(CpuBackend, name, counting(name, getattr(CpuBackend, name)))
    return counter


@pytest.fixture
def log(monkeypatch):
    """Collects transformers' warnings."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def model_of(modeling):
    family, options = MODELS[modeling.__name__.rpartition("modeling_")[2]]
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**COMMON, **options)
    return getattr(modeling, f"{family}ForCausalLM")(config).eval()


def own_pytorch(modeling, monkeypatch):
    """Make transformers use its own functions again."""
    for name in FUNCTIONS:
        monkeypatch.setattr(modeling, name, getattr(modeling, name).__wrapped__)


def logits_and_gradients(model, tokens, mask=None):
    logits = model(tokens, attention_mask=mask, use_cache=False).logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    total = (logits * weight).sum()
    return [logits, *torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)]


def generated(model, tokens, mask):
    with torch.no_grad():
        return model.generate(tokens, attention_mask=mask, max_new_tokens=9, do_sample=False)[:, tokens.shape[1] :]


def test_against_its_own_pytorch(modeling, monkeypatch, calls, log):
    """Logits, gradients, greedy tokens with a cache and with padding; our operators are called without warnings."""
    model = model_of(modeling)
    tokens = torch.randint(1, 97, (2, 13))
    mask = torch.ones_like(tokens)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), tokens], dim=1)
    padding = (padded != 0).long()

    got = logits_and_gradients(model, tokens)
    layers = sum("A_log" in name for name, _ in model.named_parameters())
    assert calls == Counter(dict.fromkeys(OPERATORS[:4], layers))
    calls.clear()
    continued = generated(model, tokens, mask)
    assert calls == Counter(scan=layers, causal_conv1d=layers, causal_conv1d_update=8 * layers, state_update=8 * layers)
    after_padding = generated(model, padded, padding)
    behind = model(padded, attention_mask=padding, use_cache=False).logits[:, 4:]
    assert "falling back" not in log.getvalue()

    own_pytorch(modeling, monkeypatch)
    calls.clear()
    want = logits_and_gradients(model, tokens)
    exact = logits_and_gradients(model.double(), tokens)
    model.float()
    assert not calls
    for a, b, e in zip(got, want, exact):
        assert relative_error(a, e) <= max(2 * relative_error(b, e), 1e-6)
    assert torch.equal(continued, generated(model, tokens, mask))
    assert torch.equal(after_padding, continued)
    torch.testing.assert_close(behind, got[0], rtol=1e-5, atol=1e-6)


def test_layers_replaced_for_decoding(modeling):
    """`replace_linear` changes neither parameters nor greedy tokens."""
    family, options = MODELS[modeling.__name__.rpartition("modeling_")[2]]
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**COMMON | {"hidden_size": 384}, **options)
    model = getattr(modeling, f"{family}ForCausalLM")(config).eval()
    tokens = torch.randint(1, 97, (1, 13))
    expected, names = generated(model, tokens, torch.ones_like(tokens)), list(model.state_dict())
    replace_linear(model)
    assert torch.equal(generated(model, tokens, torch.ones_like(tokens)), expected)
    assert list(model.state_dict()) == names


def test_training_takes_the_fused_block(modeling, calls, log):
    """In training mode one call of mamba_inner_fn replaces several layers and gives the same logits. (Not FalconMamba,
    whose two paths normalize step sizes at different places, nor Jamba, which has one path.)"""
    model = model_of(modeling)
    tokens = torch.randint(1, 97, (2, 13))
    layers = sum("A_log" in name for name, _ in model.named_parameters())
    want = model(tokens, use_cache=False).logits
    calls.clear()
    got = logits_and_gradients(model.train(), tokens)
    assert calls == Counter(dict.fromkeys(OPERATORS[:4], layers))
    assert "falling back" not in log.getvalue()
    assert all(g.isfinite().all() for g in got)
    if "falcon" not in modeling.__name__:
        torch.testing.assert_close(got[0], want, rtol=1e-5, atol=1e-6)
