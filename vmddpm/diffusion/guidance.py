"""Conditional sampling: the condition of each image, and classifier-free guidance (Ho and Salimans, 2022)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vmddpm.errors import InputError

# The condition of a batch: tensors float32 (B, ...) on the CPU, by the names of the model's arguments.
Condition = Mapping[str, Tensor]
# A function from numbers of images to their condition.
Conditions = Callable[[Sequence[int]], Condition]
Predictor = Callable[..., Tensor]
MAX_GUIDANCE = 1000.0


def check_guidance(guidance: float) -> None:
    """Raise InputError unless `guidance` is a number from 0 to MAX_GUIDANCE."""
    if not (math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise InputError(
            f"guidance is {guidance!r}; it must be from 0 (no condition) over 1 (the condition) to {MAX_GUIDANCE:g}"
        )


def guided(model: nn.Module, condition: Condition | None, guidance: float) -> Predictor:
    """The model with a condition, called as model(x, t, order_key=...).

    The guided prediction is (1 - w) ε_u + w ε_c, where w is the guidance, ε_u the prediction without the condition and
    ε_c the one with it. A pass with weight 0 is skipped: w = 0 is the model without the condition, bit for bit, and
    w = 1 the model with it. w is diffusers' `guidance_scale`; Ho and Salimans (2022, Eq. 6) use w - 1.

    Both passes have the same visit orders.

    Args:
        model: has the names of `condition` as arguments.
        condition: of the images, on the model's device; None means no condition.
        guidance: w, at least 0.
    """
    if not condition or guidance == 0:
        return model

    def predict(x: Tensor, t: Tensor, **options: Any) -> Tensor:
        if guidance == 1:
            conditional: Tensor = model(x, t, **options, **condition)
            return conditional
        # Multiplied before the second pass: a CUDA graph writes that to the same memory.
        unconditional: Tensor = (1 - guidance) * model(x, t, **options)
        stretched: Tensor = unconditional + guidance * model(x, t, **options, **condition)
        return stretched

    return predict
