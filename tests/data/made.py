"""DICOM files made from arrays, and the values they should be read as."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from vmddpm.data import DataConfig, SliceDataset


def read(tmp_path, root, **options):
    options = {"min_foreground": 0, **options}
    return SliceDataset(DataConfig(root=str(root), cache_dir=str(tmp_path / "cache"), **options))


def make_dicom(path, stored, **attributes):
    """Save uint16 (H, W) or (F, H, W) with further attributes as a DICOM file at `path`."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=["image"])
    dataset.set_pixel_data(np.asarray(stored, np.uint16), "MONOCHROME2", 16)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**attributes):
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def linear(values, low, high):
    return np.clip((values - low) / (high - low), 0, 1) * 2 - 1


def make_encapsulated(path, stored, syntax, streams, **attributes):
    """Like `make_dicom`, with pixels that are already compressed, one stream per frame."""
    dataset = pydicom.dcmread(make_dicom(path, stored, **attributes))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path, enforce_file_format=True)
    return path
