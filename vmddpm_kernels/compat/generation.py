"""Decoding token by token: the names of `mamba_ssm.utils.generation`, except those for CUDA graphs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "GenerationMixin",
    "InferenceParams",
    "decode",
    "modify_logit_for_repetition_penalty",
    "modify_logits_for_min_p_filtering",
    "modify_logits_for_top_k_filtering",
    "modify_logits_for_top_p_filtering",
    "sample",
]


@dataclass
class InferenceParams:
    """The state of decoding: the states of each layer, and the number of steps they have seen."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class Decoded:
    """The result of `decode`."""

    sequences: Tensor                       # (batch, length)
    scores: tuple[Tensor, ...] | None       # the logits (batch, vocabulary) of each step


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Set all logits (batch, vocabulary) except the top_k largest of each row to -inf, in place."""
    logits.masked_fill_(logits < logits.topk(top_k).values[..., -1:], float("-inf"))


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Set the least probable logits, with a total probability of at most 1 - top_p, to -inf, in place; 0 and 1 keep
    all."""
    if 0 < top_p < 1:
        ascending, order = logits.sort(descending=False)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        logits.masked_fill_(torch.zeros_like(tail).scatter(-1, order, tail), float("-inf"))


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Set logits whose probability is below min_p times the largest one to -inf, in place; 0 and 1 keep all. (mamba_ssm
    compares logits instead of probabilities.)"""
    if 0 < min_p < 1:
        probabilities = logits.softmax(-1)
        logits.masked_fill_(probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf"))


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Divide the logits (batch, vocabulary) of previous tokens (batch, length) by the penalty, or multiply negative
    ones by it (arXiv 1909.05858), in place."""
    score = logits.gather(1, prev_output_tokens)
    score = torch.where(score < 0, score * repetition_penalty, score / repetition_penalty)
    return logits.scatter_(1, prev_output_tokens, score)


def sample(
    logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Logits (batch, vocabulary) -> tokens (batch,): the most probable token if top_k is 1, else a sample from the
    filtered logits; top_k 0 keeps all."""
    if top_k == 1:
        return logits.argmax(-1)
    left = logits / temperature
    if top_k > 0:
        modify_logits_for_top_k_filtering(left, min(top_k, left.shape[-1]))
    modify_logits_for_min_p_filtering(left, min_p)
    modify_logits_for_top_p_filtering(left, top_p)
    return left.softmax(-1).multinomial(1).squeeze(-1)


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Callable[..., Any],
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    streamer: Any = None,
) -> Decoded:
    """Continue tokens (batch, length) to `max_length`, or until all sequences have `eos_token_id` in the same step.

    Args:
        model: called with tokens, `position_ids`, `inference_params` and `num_last_tokens`; its result has `.logits`.
        teacher_outputs: (batch, steps), tokens to use instead of samples.
        vocab_size: number of logits to use.
        cg, enable_timing: ignored; there are no CUDA graphs, and no time is printed.
        streamer: an object with `put(tokens)` and `end()`.
    """
    params = InferenceParams(max_seqlen=max_length, max_batch_size=input_ids.shape[0])
    known = 0 if teacher_outputs is None else teacher_outputs.shape[1]
    tokens, scores, latest = input_ids, [], input_ids
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while True:
        positions = None
        if params.seqlen_offset > 0:
            positions = torch.full_like(latest, params.seqlen_offset)
        logits = model(latest, position_ids=positions, inference_params=params, num_last_tokens=1).logits
        logits = logits.squeeze(1)[..., :vocab_size]
        scores.append(logits)
        params.seqlen_offset += latest.shape[1]
        if teacher_outputs is not None and known > params.seqlen_offset:
            chosen = teacher_outputs[:, params.seqlen_offset]
        else:
            if repetition_penalty != 1.0:
                logits = modify_logit_for_repetition_penalty(logits.clone(), tokens, repetition_penalty)
            chosen = sample(logits, top_k, top_p, min_p, temperature)
        latest = chosen[:, None]
        tokens = torch.cat([tokens, latest], dim=1)
        if streamer is not None:
            streamer.put(latest.cpu())
        ended = eos_token_id is not None and bool((latest == eos_token_id).all())
        if ended or params.seqlen_offset >= max_length - 1:
            break
    if streamer is not None:
        streamer.end()
    return Decoded(tokens, tuple(scores))


class GenerationMixin:
    """Adds `generate` to a model whose `forward` takes the arguments of `decode`'s model."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        raise NotImplementedError("models that decode must implement allocate_inference_cache")

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`decode` with this model; returns the tokens (batch, length), or the whole result."""
        if not callable(self):
            raise TypeError(f"{type(self).__name__} must be a callable model")
        output = decode(
            input_ids, self, max_length, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature, **kwargs
        )
        if not output_scores:
            output.scores = None
        return output if return_dict_in_generate else output.sequences
