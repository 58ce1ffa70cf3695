"""Mamba's mixer, block and normalization as modules, with the parameter names and shapes of the published models."""

from vmddpm_kernels.modules.block import Block
from vmddpm_kernels.modules.linear import Linear, replace_linear
from vmddpm_kernels.modules.mamba import Mamba
from vmddpm_kernels.modules.norm import RMSNorm

__all__ = ["Block", "Linear", "Mamba", "RMSNorm", "replace_linear"]
