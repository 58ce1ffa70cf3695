"""The functions of `mamba_ssm.utils.hf`: a model's files on the Hugging Face Hub or in a folder."""

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_config_hf", "load_state_dict_hf"]


def load_config_hf(model_name: str) -> Any:
    """The contents of config.json of a repository or a folder."""
    return json.loads(_file(model_name, "config.json").read_text(encoding="utf-8"))


def load_state_dict_hf(
    model_name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of pytorch_model.bin, on `device` and in `dtype`. Nothing in the file is executed."""
    state = torch.load(_file(model_name, "pytorch_model.bin"), map_location="cpu", weights_only=True)
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in state.items()}


def _file(model_name: str, name: str) -> Path:
    if (local := Path(model_name) / name).is_file():
        return local
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"{model_name} is not a folder with {name}, and the Hub needs `pip install huggingface_hub`"
        ) from error
    return Path(hf_hub_download(model_name, name))
