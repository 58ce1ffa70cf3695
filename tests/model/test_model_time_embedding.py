import math

import pytest
import torch

from vmddpm.model.time_embedding import TimeEmbedding, sinusoids


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_sinusoids_closed_form(dtype):
    t = torch.tensor([0, 1, 37, 999], dtype=dtype)
    frequencies = [10_000 ** (-i / 6) for i in range(6)]
    expected = [[f(step * w) for f in (math.sin, math.cos) for w in frequencies] for step in t.tolist()]
    result = sinusoids(t, 12)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=1e-4)  # 999 has an ulp of 6e-5


def test_embedding_is_the_perceptron_of_the_sinusoids():
    torch.manual_seed(0)
    embedding = TimeEmbedding(8, 20)
    t = torch.tensor([5, 600])
    first, _, second, _ = embedding.mlp
    hidden = sinusoids(t, 8) @ first.weight.T + first.bias
    out = (hidden * hidden.sigmoid()) @ second.weight.T + second.bias
    torch.testing.assert_close(embedding(t), out * out.sigmoid())
    assert embedding(t).shape == (2, 20)
    assert embedding.bfloat16()(t).dtype == torch.bfloat16
