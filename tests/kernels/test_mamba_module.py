"""Mamba's modules against their definitions in float64 loops, single steps against whole sequences, and parameter names
and shapes against published models."""

import math
from types import SimpleNamespace

import pytest
import torch
from oracle import scan_loop

from vmddpm_kernels.compat import layer_norm, layernorm, mamba_ssm
from vmddpm_kernels.compat.generation import GenerationMixin, InferenceParams, decode, sample
from vmddpm_kernels.compat.stand_ins import BlockOfMambaSimple
from vmddpm_kernels.modules import Block, Mamba, RMSNorm

# The parameters of a layer of state-spaces/mamba-130m, from its checkpoint.
PUBLISHED = {
    "A_log": (1536, 16),
    "D": (1536,),
    "in_proj.weight": (3072, 768),
    "conv1d.weight": (1536, 1, 4),
    "conv1d.bias": (1536,),
    "x_proj.weight": (80, 1536),
    "dt_proj.weight": (1536, 48),
    "dt_proj.bias": (1536,),
    "out_proj.weight": (768, 1536),
}


def test_parameters_of_the_published_model():
    assert {name: tuple(p.shape) for name, p in Mamba(768).named_parameters()} == PUBLISHED
    branch = ("conv1d", "x_proj", "dt_proj", "A_log", "D")
    names = {name.partition(".")[0] for name in PUBLISHED}
    for kind, suffixes in (("v1", ()), ("v2", ("_b",)), ("v3", ("_b", "_s"))):
        more = {"A_b_log"} if kind == "v1" else set()
        more |= {name.replace("_log", f"{s}_log") if "log" in name else name + s for s in suffixes for name in branch}
        assert {name.partition(".")[0] for name, _ in Mamba(32, bimamba_type=kind).named_parameters()} == names | more
    assert Mamba(32, init_layer_scale=0.5).gamma.tolist() == [0.5] * 32
    assert not any("bias" in name and "dt" not in name for name, _ in Mamba(32, conv_bias=False).named_parameters())


def test_start():
    """Step sizes are between 0.001 and 0.1 if the projection adds nothing; A is -1 .. -N."""
    mamba = Mamba(64, d_state=5)
    steps = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert 0.001 <= steps.min() < 0.01
    assert 0.03 < steps.max() <= 0.1
    assert mamba.dt_proj.weight.abs().max() <= 4**-0.5
    assert torch.allclose(-torch.exp(mamba.A_log), -torch.arange(1.0, 6).expand(128, -1))
    assert mamba.A_log._no_weight_decay
    assert mamba.D._no_weight_decay
    assert mamba.dt_proj.bias._no_reinit


def branch_by_loop(mamba, xz, suffix):
    """(B, L, 2E) -> (B, L, E), by the definition."""
    conv, x_proj, dt_proj = (getattr(mamba, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
    x, z = xz.chunk(2, dim=-1)
    taps = conv.weight.shape[2]
    padded = torch.cat([x.new_zeros(x.shape[0], taps - 1, x.shape[2]), x], dim=1)
    x = sum(padded[:, k : k + x.shape[1]] * conv.weight[:, 0, k] for k in range(taps)) + conv.bias
    x = x / (1 + torch.exp(-x))
    projected = x @ x_proj.weight.T
    rank, states = mamba.dt_rank, mamba.d_state
    delta = projected[..., :rank] @ dt_proj.weight.T
    A = -torch.exp(getattr(mamba, f"A{suffix}_log"))
    B, C = projected[..., rank : rank + states], projected[..., rank + states :]
    y, _ = scan_loop(x, delta[:, None], A[None], B[:, None], C[:, None], delta_bias=dt_proj.bias[None])
    return (y + getattr(mamba, f"D{suffix}") * x) * z / (1 + torch.exp(-z))


def by_loop(mamba, x):
    xz = x @ mamba.in_proj.weight.T
    y = branch_by_loop(mamba, xz, "")
    if mamba.bimamba_type in ("v2", "v3"):
        y = y + branch_by_loop(mamba, xz.flip(1), "_b").flip(1)
    if mamba.bimamba_type == "v3":
        order = torch.arange(x.shape[1]).view(mamba.nslices, -1).T.flatten()
        along = torch.zeros_like(y)
        along[:, order] = branch_by_loop(mamba, xz[:, order], "_s")
        y = y + along
    y = y / 2 if mamba.if_divide_out else y
    return (y @ mamba.out_proj.weight.T) * (1 if mamba.init_layer_scale is None else mamba.gamma)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bimamba_type": "v2"},
        {"bimamba_type": "v2", "if_devide_out": True, "init_layer_scale": 0.3},
        {"bimamba_type": "v3", "nslices": 4},
    ],
)
def test_forward_and_gradients(options):
    mamba, x = Mamba(24, d_state=5, **options).double(), torch.randn(2, 12, 24, dtype=torch.float64)
    got, want = mamba(x), by_loop(mamba, x)
    torch.testing.assert_close(got, want)
    parameters = list(mamba.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (got, want))):
        torch.testing.assert_close(a, b)
    single = Mamba(24, d_state=5, **options)
    single.load_state_dict(mamba.state_dict(), strict=True)
    torch.testing.assert_close(single(x.float()).double(), want, rtol=1e-4, atol=1e-5)
    assert single.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_both_ways_of_v1():
    """As in mamba_ssm's fork: one block, with a second A for the backward direction."""
    mamba, x = Mamba(24, bimamba_type="v1"), torch.randn(2, 9, 24)
    m = mamba
    A, A_b = -torch.exp(m.A_log), -torch.exp(m.A_b_log + 0.1)
    m.A_b_log.data += 0.1
    want = mamba_ssm.bimamba_inner_ref(
        m.in_proj(x).mT, m.conv1d.weight, m.conv1d.bias, m.x_proj.weight, m.dt_proj.weight, m.out_proj.weight, None, A,
        A_b, D=m.D, delta_bias=m.dt_proj.bias,
    )  # fmt: skip
    torch.testing.assert_close(mamba(x), want, rtol=1e-4, atol=1e-6)


def test_steps_are_the_whole():
    """By `step` with its cache, and by inference_params: the first five steps at once, then one by one."""
    mamba, x = Mamba(24, layer_idx=3), torch.randn(2, 9, 24)
    want = mamba(x)
    states = mamba.allocate_inference_cache(2, max_seqlen=100)
    assert [tuple(s.shape) for s in states] == [(2, 48, 4), (2, 48, 16)]
    with torch.no_grad():
        steps = [mamba.step(x[:, i : i + 1], *states)[0] for i in range(9)]
        torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-4, atol=1e-6)
        params = InferenceParams(max_seqlen=9, max_batch_size=2)
        steps = [mamba(x[:, :5], inference_params=params)]
        for params.seqlen_offset in range(5, 9):
            steps.append(mamba(x[:, params.seqlen_offset : params.seqlen_offset + 1], inference_params=params))
    torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-4, atol=1e-6)
    for kept, state in zip(params.key_value_memory_dict[3], states):
        torch.testing.assert_close(kept, state, rtol=1e-4, atol=1e-6)


def test_what_is_refused():
    x = torch.randn(2, 9, 24)
    with pytest.raises(ValueError, match="bimamba_type must be one of none, v1, v2, v3, got 'v4'"):
        Mamba(24, bimamba_type="v4")
    with pytest.raises(ValueError, match='dt_init must be "random" or "constant"'):
        Mamba(24, dt_init="zero")
    with pytest.raises(ValueError, match=r"\(batch, length, d_model\) with d_model = 24, got \(2, 9, 23\)"):
        Mamba(24)(x[..., 1:])
    with pytest.raises(ValueError, match="9 steps of hidden_states must divide into nslices = 5"):
        Mamba(24, bimamba_type="v3")(x)
    with pytest.raises(ValueError, match="layer_idx must be given"):
        Mamba(24)(x, inference_params=InferenceParams(9, 2))
    with pytest.raises(ValueError, match="scans in reverse and cannot decode"):
        Mamba(24, bimamba_type="v2", layer_idx=0)(x, inference_params=InferenceParams(9, 2))
    with pytest.raises(ValueError, match=r"shape \(batch, 1, d_model\) with d_model = 24 in a step"):
        Mamba(24).step(x, *Mamba(24).allocate_inference_cache(2, 9))
    with pytest.raises(TypeError, match=r"norm_cls must make nn\.LayerNorm or RMSNorm"):
        Block(24, Mamba, norm_cls=torch.nn.Identity, fused_add_norm=True)


def normalized_by_loop(x, weight, bias, eps, rms):
    rows = []
    for row in x.double().reshape(-1, x.shape[-1]):
        mean = 0 if rms else sum(row) / len(row)
        scale = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + eps)
        rows.append((row - mean) / scale * weight.double() + (0 if bias is None else bias.double()))
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rms", [False, True])
def test_norms_under_their_names(rms, dtype):
    x, residual = torch.randn(2, 3, 8).to(dtype), torch.randn(2, 3, 8)
    weight, bias = torch.randn(8), torch.randn(8)
    total = x.double() + residual.double()
    want = normalized_by_loop(total, weight, bias, 1e-5, rms)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    new, old = ((m.rms_norm_fn, m.rms_norm_ref) if rms else (m.layer_norm_fn, m.layer_norm_ref)
                for m in (layer_norm, layernorm))  # fmt: skip
    for function in (*new, *old):
        y, kept = function(x, weight, bias, residual=residual, prenorm=True, eps=1e-5)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), want, **tolerance)
        torch.testing.assert_close(kept.double(), total, **tolerance)
    assert new[0](x, weight, bias, prenorm=1, residual_in_fp32=1)[1].dtype == torch.float32
    assert torch.equal(new[0](x, weight, bias), layer_norm.LayerNormFn.apply(x, weight, bias, is_rms_norm=rms))
    weights = torch.randn(5, 8)
    projected = layer_norm.layer_norm_linear_fn(
        x, weight, bias, weights.to(dtype), None, residual, 1e-5, is_rms_norm=rms
    )
    torch.testing.assert_close(projected.double(), want @ weights.to(dtype).double().T, rtol=0.05, atol=0.1)


def test_a_second_norm_row_scales_and_dropout():
    x, x1, weight, weight1 = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8), torch.randn(8)
    y, y1, total = layer_norm.rms_norm_fn(x, weight, None, x1=x1, weight1=weight1, prenorm=True)
    torch.testing.assert_close(total, x + x1)
    torch.testing.assert_close(y1 * weight, y * weight1)
    scale = torch.rand(2, 3)
    scaled = layer_norm.rms_norm_fn(x, weight, None, rowscale=scale)
    torch.testing.assert_close(scaled, layer_norm.rms_norm_fn(x * scale[..., None], weight, None))
    y, mask, mask1 = layer_norm.layer_norm_fn(x, weight, None, dropout_p=0.5, return_dropout_mask=True)
    assert mask1 is None
    assert torch.equal(y, layer_norm.layer_norm_ref(x, weight, None, dropout_p=0.5, dropout_mask=mask))
    with pytest.raises(ValueError, match="rowscale must be None if x1 is given"):
        layer_norm.rms_norm_fn(x, weight, None, x1=x1, rowscale=scale)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, RMSNorm])
def test_blocks(fused, norm):
    """x + residual, norm, mixer, then the same with an MLP; the older signature has no MLP."""
    x, residual = torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    older = BlockOfMambaSimple(24, Mamba, norm, fused, True)
    y, kept = older(x, residual)
    torch.testing.assert_close(kept, x + residual)
    torch.testing.assert_close(y, older.mixer(older.norm(x + residual)), rtol=1e-4, atol=1e-5)
    newer = Block(24, Mamba, lambda dim: torch.nn.Linear(dim, dim), norm, fused_add_norm=fused)
    y, kept = newer(x)
    mixed = newer.mixer(newer.norm(x)) + x
    torch.testing.assert_close(kept, mixed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y, newer.mlp(newer.norm2(mixed)), rtol=1e-4, atol=1e-5)
    assert [tuple(s.shape) for s in older.allocate_inference_cache(2, 9)] == [(2, 48, 4), (2, 48, 16)]
    names = {name.partition(".")[0] for name in older.state_dict()}
    assert names == {"norm", "mixer"}


class LanguageModel(torch.nn.Module, GenerationMixin):
    """Two blocks between an embedding and the same weights transposed."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(31, 24)
        self.layers = torch.nn.ModuleList(
            Block(24, lambda dim, i=i: Mamba(dim, layer_idx=i), norm_cls=RMSNorm) for i in range(2)
        )

    def forward(self, tokens, position_ids=None, inference_params=None, num_last_tokens=0):
        x, residual = self.embedding(tokens), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params)
        return SimpleNamespace(logits=((x + residual) @ self.embedding.weight.T)[:, -num_last_tokens:])


def test_greedy_decoding_is_the_whole_again_and_again():
    model, tokens = LanguageModel().eval(), torch.randint(31, (2, 4))
    want = tokens
    with torch.no_grad():
        for _ in range(6):
            want = torch.cat([want, model(want).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, max_length=10), want)
    options = {"return_dict_in_generate": True, "output_scores": True, "teacher_outputs": want}
    output = model.generate(tokens, max_length=10, **options)
    assert torch.equal(output.sequences, want)
    assert len(output.scores) == 6
    first = int(want[0, 4])
    assert decode(tokens[:1], model, 10, eos_token_id=first).sequences.shape == (1, 5)


def test_samples_stay_within_the_filters():
    logits = torch.tensor([[4.0, 3.0, 2.0, -9.0]]).repeat(400, 1)
    assert sample(logits).eq(0).all()
    assert set(sample(logits, top_k=2).tolist()) == {0, 1}
    assert set(sample(logits, top_k=0, top_p=0.8).tolist()) == {0, 1}
    assert set(sample(logits, top_k=0, min_p=0.2).tolist()) == {0, 1}
    assert set(sample(logits, top_k=3, temperature=100.0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"dt_rank": 0}, "dt_rank"), ({"dt_rank": "foo"}, "dt_rank"), ({"d_conv": 0}, "d_conv"),
        ({"nslices": 0, "bimamba_type": "v3"}, "nslices"), ({"expand": 0.01}, "expand"),
    ],
)  # fmt: skip
def test_sizes_are_checked_when_a_module_is_made(sizes, words):
    with pytest.raises(ValueError, match=words):
        Mamba(32, **sizes)


def test_states_of_another_batch_are_refused_before_anything_moves():
    module = Mamba(32, layer_idx=0)
    cache = SimpleNamespace(key_value_memory_dict={0: module.allocate_inference_cache(2, 0)}, seqlen_offset=0)
    with pytest.raises(ValueError, match="conv_state"):
        module(torch.randn(1, 4, 32), inference_params=cache)
    conv_state, ssm_state = module.allocate_inference_cache(2, 0)
    with pytest.raises(ValueError, match="ssm_state"):
        module.step(torch.randn(2, 1, 32), conv_state, ssm_state[:1])
    assert not conv_state.any()


def test_dropout_of_one_and_more():
    x, weight = torch.randn(2, 5), torch.ones(5)
    assert torch.isfinite(layer_norm.layer_norm_fn(x, weight, None, x, dropout_p=1.0)).all()
    with pytest.raises(ValueError, match="dropout_p must be from 0 to 1"):
        layer_norm.layer_norm_fn(x, weight, None, x, dropout_p=2.0)
