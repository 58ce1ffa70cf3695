"""Networks as folders: model.safetensors, config.json and README.md, a card that says what they are."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin

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
    """`save_pretrained` writes such a folder, `from_pretrained` reads it back."""

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        names = {"network": type(self).__name__, "module": type(self).__module__}
        return super().generate_model_card(*args, **names, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        mask = os.umask(0o077)  # safetensors lets the owner alone read its files; the umask is known by setting it
        os.umask(mask)
        (save_directory / "model.safetensors").chmod(0o666 & ~mask)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> "Pretrained":
        # The mixin's own default leaves weights that a file lacks at random values, without a word.
        network: Pretrained = super()._from_pretrained(strict=strict, **kwargs)
        return network
