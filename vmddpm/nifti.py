"""Synthetic volumes as NIfTI files, with the patient's axes."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from vmddpm.errors import InputError


def nifti_bytes(voxels: np.ndarray, spacing: tuple[float, ...]) -> bytes:
    """A compressed NIfTI-1 file, with identical bytes for identical voxels. The origin is the centre of the volume,
    because the position of a crop is not known.

    Args:
        voxels: uint8 (D, H, W), from inferior to superior, anterior to posterior, and the patient's right to left.
        spacing: voxel size in millimetres along D, H and W.

    Example:
        >>> content = nifti_bytes(np.zeros((4, 3, 2), np.uint8), (5.0, 1.0, 1.0))
        >>> nib.Nifti1Image.from_bytes(gzip.decompress(content)).shape
        (2, 3, 4)
    """
    depth, height, width = spacing
    affine = np.diag([-width, -height, depth, 1.0])  # nibabel's axes run to right, anterior and superior
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(voxels.shape[::-1]) - 1) / 2)
    image = nib.Nifti1Image(np.ascontiguousarray(voxels.T), affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def read_nifti_voxels(path: Path) -> np.ndarray:
    """The voxels of a `nifti_bytes` file, uint8 (D, H, W). Raises InputError if it is damaged or not such a file."""
    try:
        image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        voxels = np.asarray(image.dataobj)
    except Exception as error:  # nibabel and zlib document no closed set
        raise InputError(f"{path} cannot be read ({error}); draw it again with vmddpm sample") from error
    axes = "".join(map(str, nib.aff2axcodes(image.affine)))
    if voxels.dtype != np.uint8 or voxels.ndim != 3 or axes != "LPS":
        raise InputError(f"{path}: {voxels.dtype} of shape {voxels.shape} and axes {axes}, which vmddpm sample did not "
                         "write; samples are 8-bit, with three axes LPS")  # fmt: skip
    return voxels.T
