"""Hugging Face's Mamba on a CPU, with random weights: `python hf_mamba_cpu.py`, and with `--plain` to compare.

transformers looks for mamba_ssm and causal_conv1d when it imports a model, and falls back to a loop over the tokens in
PyTorch. `compat.install()` before that import gives it this package's operators; the model's code stays as it is.
"""

import argparse
import time

import torch

from vmddpm_kernels import compat
from vmddpm_kernels.modules import replace_linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="leave transformers its own PyTorch")
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    if not options.plain:
        compat.install()
    from transformers import MambaConfig, MambaForCausalLM  # after install()

    torch.manual_seed(0)
    # With published weights: MambaForCausalLM.from_pretrained("state-spaces/mamba-130m-hf")
    config = MambaConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=2, pad_token_id=0)
    model = MambaForCausalLM(config)
    if not options.plain:
        replace_linear(model)  # decodes large models faster
    tokens = torch.randint(1, 1000, (1, options.tokens))

    begun = time.process_time()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    seconds = time.process_time() - begun
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    written = model.eval().generate(tokens[:, :8], attention_mask=tokens[:, :8] > 0, max_new_tokens=8, do_sample=False)
    print(f"{'transformers alone' if options.plain else 'with vmddpm_kernels'}: "
          f"{seconds:.2f} s of processor time forward and backward")  # fmt: skip
    print(f"loss {loss.item():.4f}, norm of the gradients {norm.item():.4f}, new tokens {written[0, 8:].tolist()}")


if __name__ == "__main__":
    main()
