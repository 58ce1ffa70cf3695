"""Data sets of medical images: DICOM, volumes, pictures and arrays from files, or volumes in memory."""

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dataset import SliceDataset, from_volumes, held_out_images
from vmddpm.data.transforms import random_flip

__all__ = ["DataConfig", "DataError", "SliceDataset", "from_volumes", "held_out_images", "random_flip"]
