"""VM-DDPM: a Vision-Mamba diffusion model that synthesises medical images (Ju and Zhou, 2024)."""

__version__ = "0.1.0"
