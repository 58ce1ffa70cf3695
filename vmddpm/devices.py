"""Where a network runs."""

import os

import torch

from vmddpm.errors import InputError


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one; of many GPUs, "auto" and "cuda" are this process's own under `torchrun`.

    Raises:
        InputError: if torch cannot use such a device here.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda":
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device is {name!r}, which torch cannot use here ({reason}); use cpu or auto") from error
