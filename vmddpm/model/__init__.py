"""The network of VM-DDPM (paper sections III-B to III-D)."""

from vmddpm.model.config import ModelConfig
from vmddpm.model.csm import CSM
from vmddpm.model.ss_layer import MSSBlock, SSLayer
from vmddpm.model.vmddpm import VMDDPM

__all__ = ["CSM", "VMDDPM", "MSSBlock", "ModelConfig", "SSLayer"]
