"""VM-DDPM: a Vision-Mamba diffusion model that synthesises medical images (Ju and Zhou, 2024)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmddpm_kernels import __version__ as __version__
else:

    def __getattr__(name: str) -> str:
        """Load `__version__` on demand: vmddpm_kernels imports torch, which `--help` does not need."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from vmddpm_kernels import __version__

        return __version__
