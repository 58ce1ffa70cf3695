"""Networks stored as folders: model.safetensors, config.json and README.md, the model card.

The header of model.safetensors has a copy of the configuration, which detects a config.json that does not belong to the
weights; model.sha256 has the checksum of the weights in the format of `sha256sum --check`.
"""

import json
import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors import safe_open
from safetensors.torch import save_model

from vmddpm.errors import InputError
from vmddpm.files import sha256, whole_folder

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = """\
---
{{ card_data }}
---

# {{ network }}

A network of vmddpm, an implementation of VM-DDPM (Vision Mamba Diffusion for Medical Image Synthesis, Ju and Zhou,
2024) and of the systems it is compared with. Its images are synthetic, and no basis for a diagnosis.

```python
from {{ module }} import {{ network }}

network = {{ network }}.from_pretrained("this folder")
```
"""


class Pretrained(PyTorchModelHubMixin, library_name="vmddpm", license="apache-2.0", model_card_template=CARD):
    """A network with `save_pretrained`, which writes such a folder, and `from_pretrained`, which reads it."""

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        names = {"network": type(self).__name__, "module": type(self).__module__}
        return super().generate_model_card(*args, **names, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        config: Any = self._hub_mixin_config
        plain = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
        # A single entry: safetensors writes several in random order, which would change the checksum of equal weights.
        metadata = {"config": json.dumps(plain)}
        save_model(cast(Any, self), str(save_directory / "model.safetensors"), metadata)
        mask = os.umask(0o077)  # safetensors makes its files private; the umask can be read only by setting it
        os.umask(mask)
        weights = save_directory / "model.safetensors"
        weights.chmod(0o666 & ~mask)
        (save_directory / "model.sha256").write_text(f"{sha256(weights)}  {weights.name}\n", encoding="ascii")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, from_hub: bool = False, **kwargs: Any
    ) -> "Self":
        """Load a network from a folder, or with `from_hub` from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: the folder, or with `from_hub` the name of a repository on the Hub.
            from_hub: whether files may be downloaded.
            kwargs: passed to `huggingface_hub.PyTorchModelHubMixin.from_pretrained`.

        Raises:
            InputError: if there is no such folder, its weights are damaged, or its config.json does not belong to them.

        Example:
            >>> VMDDPM.from_pretrained("runs/brats/weights/ema")  # doctest: +SKIP
        """
        folder = Path(pretrained_model_name_or_path)
        if from_hub:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        check_unit(folder)
        return super().from_pretrained(whole_folder(folder), **kwargs)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> "Pretrained":
        # The mixin's default, strict=False, silently leaves weights that are missing in a file at random values.
        network: Pretrained = super()._from_pretrained(strict=strict, **kwargs)
        return network


def check_unit(folder: Path) -> None:
    """Raise InputError if the folder has no network, damaged weights, or a configuration of other weights."""
    folder = whole_folder(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that save_pretrained wrote, or pass from_hub=True to "
                         "fetch a network of that name from Hugging Face's hub")  # fmt: skip
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}; it is not what save_pretrained wrote")
    checksum = folder / "model.sha256"  # files of other programs, and older ones, have none
    if checksum.exists() and checksum.read_text(encoding="utf-8").split()[:1] != [sha256(folder / "model.safetensors")]:
        raise InputError(f"{folder}: model.safetensors does not match its checksum in {checksum.name}; "
                         f"delete {checksum.name} if another program wrote these weights")  # fmt: skip
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        embedded = (file.metadata() or {}).get("config")  # not in files of other programs
    config_json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if embedded is not None and json.loads(embedded) != config_json:
        raise InputError(f"{folder}: config.json does not belong to model.safetensors; "
                         "restore the two together")  # fmt: skip
