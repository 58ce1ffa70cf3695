"""Images of a wanted kind: conditions of the images by number, and classifier-free guidance (Ho and Salimans, 2022)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vmddpm.errors import InputError

# What a model is told of each image, by the names of its arguments, float32 (B, ...) on the CPU.
Condition = Mapping[str, Tensor]
# The condition of some images, by their numbers.
Conditions = Callable[[Sequence[int]], Condition]
Predictor = Callable[..., Tensor]
STRONGEST = 1000.0


def check_guidance(guidance: float) -> None:
    """Raise InputError unless it is a number from 0 on that predictions can be stretched by."""
    if not (math.isfinite(guidance) and 0 <= guidance <= STRONGEST):
        raise InputError(
            f"guidance is {guidance!r}; it must be from 0 (no condition) over 1 (the condition) to {STRONGEST:g}"
        )


def guided(model: nn.Module, condition: Condition | None, guidance: float) -> Predictor:
    """The model with a condition, called as model(x, t, order_key=...).

    With ε_u the prediction without the condition and ε_c that with it, the guided one is (1 - w) ε_u + w ε_c, where w
    is the guidance. Where a weight is 0, that pass is not made: w = 0 is the model without the condition, bit for bit,
    and w = 1 that with it. Ho and Salimans (2022, Eq. 6) call w - 1 what is w here; diffusers' `guidance_scale` is w.

    Both passes have the same visit orders.

    Args:
        model: takes the names of `condition` for arguments.
        condition: of the images, on the model's device; None is no condition.
        guidance: w, at least 0.
    """
    if not condition or guidance == 0:
        return model

    def predict(x: Tensor, t: Tensor, **options: Any) -> Tensor:
        if guidance == 1:
            given: Tensor = model(x, t, **options, **condition)
            return given
        # Multiplied at once: the next pass of a CUDA graph is written where this one was.
        without: Tensor = (1 - guidance) * model(x, t, **options)
        stretched: Tensor = without + guidance * model(x, t, **options, **condition)
        return stretched

    return predict
