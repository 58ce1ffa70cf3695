"""Volume files: NIfTI, Analyze and FreeSurfer, read by nibabel; MetaImage and NRRD, read by SimpleITK."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.crops import parts_of
from vmddpm.data.files import GZIP, open_regular, voxels_of
from vmddpm.data.limits import check_pixels, check_stored, check_voxels
from vmddpm.data.slicing import Plane

CIFTI_INTENTS = range(3000, 3100)
# Header entries of MetaImage and NRRD that point to other files, which must not be followed.
DETACHED = re.compile(rb"^\s*(?:ElementDataFile\s*=\s*(?!\s|LOCAL\s*$)|data ?file:)", re.MULTILINE | re.IGNORECASE)
COMPRESSED = re.compile(rb"^\s*(?:CompressedData\s*=\s*T|encoding:\s*gz)", re.MULTILINE | re.IGNORECASE)
META_END = re.compile(rb"^\s*ElementDataFile[^\n]*\n?", re.MULTILINE)
NRRD_END = re.compile(rb"\r?\n\r?\n")
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(file: BinaryIO, config: DataConfig, path: Path | None = None) -> Iterator[Plane]:
    """The slices (`slicing.volume_planes`) or crops (`crops.volume_crops`) of a NIfTI-1, NIfTI-2 or Analyze volume.
    Compression is detected by content.

    Args:
        path: the header of a .hdr and .img pair; None for a single file.

    Raises:
        DataError: if it is damaged, or holds no volume.
    """
    with _decompressed(file) as header_file:
        header = _header(header_file)
        if path is None:
            least = getattr(header, "single_vox_offset", 348)
            if not least <= float(header["vox_offset"]):
                raise DataError(
                    f"vox_offset is {float(header['vox_offset']):g}, inside the header; in one file it must be "
                    f"at least {least}: correct it, or write the file again"
                )
            yield from parts_of(_nifti_image(header, header_file, file, config), config)
            return
    stem = re.sub(r"\.hdr(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    partner = voxels_of(path)
    if partner is None:
        raise DataError(f"is a header, but the {stem}.img with its voxels is missing; fetch that too")
    note = ""
    if not isinstance(header, nib.Nifti1Header):
        if path.with_name(f"{stem}.mat").exists():  # SPM's, for MATLAB
            raise DataError(
                f"is an Analyze volume with its orientation in {stem}.mat, which is not read; convert it to NIfTI, for "
                "example with SPM, or remove the .mat if the header alone is right"
            )
        note = "an Analyze volume, whose header gives no orientation: its first axis is taken to run to the left"
    with open_regular(partner) as packed, _decompressed(packed) as voxels:
        for plane in parts_of(_nifti_image(header, voxels, packed, config), config):
            yield replace(plane, note=note)


def _decompressed(file: BinaryIO) -> BinaryIO:
    """The file, decompressed if its first two bytes are those of gzip."""
    compressed = file.read(2) == GZIP
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file


def _header(file: BinaryIO) -> nib.analyze.AnalyzeHeader:
    size = file.read(4)
    file.seek(0)
    kinds: dict[int, type[nib.analyze.AnalyzeHeader]] = {540: nib.Nifti2Header, 348: nib.Nifti1Header}
    for order in ("little", "big"):
        kind = kinds.get(int.from_bytes(size, order))
        if kind is not None:
            break
    else:
        raise DataError("is not a NIfTI file: its header has neither 348 nor 540 bytes")
    endianness = "<" if order == "little" else ">"
    content = file.read(kind.template_dtype.itemsize)
    if len(content) < kind.template_dtype.itemsize:
        raise DataError("is truncated within its header")
    header = kind(content, endianness, check=False)
    if kind is nib.Nifti1Header and bytes(header["magic"])[:2] not in (b"n+", b"ni"):
        return nib.Spm99AnalyzeHeader(content, endianness, check=False)
    return header


def _nifti_image(
    header: nib.analyze.AnalyzeHeader, voxels: BinaryIO, packed: BinaryIO, config: DataConfig
) -> nib.spatialimages.SpatialImage:
    intent = int(header["intent_code"]) if isinstance(header, nib.Nifti1Header) else 0
    if intent in CIFTI_INTENTS:
        raise DataError("holds no volume of voxels (a CIFTI surface file)")
    shape = _shape(header)
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        raise DataError(f"datatype is {int(header['datatype'])}, which is not a NIfTI data type") from None
    if dtype.itemsize == 0 or dtype.hasobject:
        raise DataError(f"datatype is {int(header['datatype'])}, which does not give the type of the voxels")
    if not 0 <= float(header["vox_offset"]) < 2**40:
        raise DataError(f"vox_offset is {float(header['vox_offset']):g}; the header is damaged")
    offset = int(header["vox_offset"])
    slope, intercept = _scaling(header) if dtype.names is None else (1.0, 0.0)
    if dtype.kind in "biu" and abs(intercept) > 2**53 * abs(slope):
        raise DataError(
            f"scl_inter is {intercept:g}, so large that voxels times scl_slope {slope:g} are lost; correct it"
        )
    check_pixels(shape[:2], config)
    check_voxels(shape[:3], config)
    stored = os.fstat(packed.fileno()).st_size
    needed = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    check_stored(needed, stored, compressed=voxels is not packed)
    proxy = ArrayProxy(voxels, (shape, dtype, offset, slope, intercept), mmap=False)
    if config.spatial_dims == 3:
        _check_spacing(header)
    return nib.Nifti1Image(proxy, _affine(header, shape))


def _shape(header: nib.analyze.AnalyzeHeader) -> tuple[int, ...]:
    """The lengths of the axes. As in the format's reference library, any axis but the first may be 0, which means 1."""
    dim = [int(length) for length in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise DataError(f"dim[0] is {dim[0]}, not from 1 to 7 axes; the header is damaged")
    if dim[1] < 1:
        raise DataError(f"is empty: dim[1] is {dim[1]}")
    return (dim[1], *(max(length, 1) for length in dim[2 : dim[0] + 1]))


def _scaling(header: nib.analyze.AnalyzeHeader) -> tuple[float, float]:
    """Slope and intercept: (1, 0) if the slope is 0 or not finite; an intercept that is not finite counts as 0."""
    if not isinstance(header, nib.Nifti1Header):
        slope = float(header["scl_slope"]) if "scl_slope" in header else 1.0
        return (slope if np.isfinite(slope) and slope else 1.0), 0.0
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _affine(header: nib.analyze.AnalyzeHeader, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix from voxels to millimetres: the sform if usable, else the qform, else from the voxel sizes alone."""
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    sizes[~np.isfinite(sizes) | (sizes == 0)] = 1
    header["pixdim"][1:4] = sizes
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the sign of the third axis
    if isinstance(header, nib.Nifti1Header):
        if header["sform_code"] > 0 and _is_usable(sform := np.asarray(header.get_sform())):
            return sform
        if header["qform_code"] > 0:
            quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
            square = float(quaternion @ quaternion)
            if square > 1:  # by rounding; the format's reference library also normalizes it
                quaternion /= square**0.5
                for axis, value in zip("bcd", quaternion):
                    header[f"quatern_{axis}"] = value
            if np.isfinite(square) and _is_usable(qform := np.asarray(header.get_qform())):
                return qform
        if header["sform_code"] > 0 or header["qform_code"] > 0:
            raise DataError("neither its sform nor its qform gives an orientation: rows of zeros, or not finite")
    padded = np.ones(3)
    padded[: min(len(shape), 3)] = shape[:3]
    # Without an orientation, nibabel and SPM take the first axis to run to the patient's left.
    scales = sizes * (-1 if getattr(header, "default_x_flip", True) else 1, 1, 1)
    affine = np.diag([*scales, 1.0])
    affine[:3, 3] = -(padded - 1) / 2 * scales
    return affine


def _check_spacing(header: nib.analyze.AnalyzeHeader) -> None:
    """Raise DataError if the header has no voxel sizes."""
    if isinstance(header, nib.Nifti1Header) and header["sform_code"] > 0 and _is_usable(np.asarray(header.get_sform())):
        return
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise DataError(
            f"gives no voxel size: pixdim is {', '.join(f'{size:g}' for size in sizes)}; write the "
            "millimetres into its header, or exclude it with pattern"
        )


def _is_usable(affine: np.ndarray) -> bool:
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    # With columns of unit length, a determinant near 0 means that the axes are linearly dependent.
    return bool(np.isfinite(affine).all() and lengths.min() > 0 and abs(np.linalg.det(columns / lengths)) > 1e-3)


def read_mgh(file: BinaryIO, config: DataConfig) -> Iterator[Plane]:
    """The slices of a FreeSurfer volume, .mgh or .mgz."""
    with _decompressed(file) as unpacked:
        header = nib.freesurfer.mghformat.MGHHeader.from_fileobj(unpacked, check=False)
        header.check_fix(error_level=40)
        shape = tuple(int(length) for length in header.get_data_shape())
        check_pixels(shape[:2], config)
        check_voxels(shape[:3], config)
        needed = header.get_data_offset() + int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
        check_stored(needed, os.fstat(file.fileno()).st_size, compressed=unpacked is not file)
        affine = header.get_affine()
        if not _is_usable(affine):
            raise DataError("its Mdc and delta give no orientation")
        yield from parts_of(nib.Nifti1Image(ArrayProxy(unpacked, header, mmap=False), affine), config)


def read_itk(file: BinaryIO, config: DataConfig, path: Path) -> Iterator[Plane]:
    """The slices of a MetaImage (.mha) or NRRD (.nrrd) volume in a single file."""
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise DataError(
            f'{path.suffix} files are read by SimpleITK, which is missing; `pip install ".[itk]"` in the source tree '
            "installs it"
        ) from None
    header = _text_header(file, NRRD_END if path.suffix.lower() == ".nrrd" else META_END)
    if DETACHED.search(header):
        raise DataError("its voxels are in another file; convert it to one file, such as with SimpleITK.WriteImage")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError("has a name that is not UTF-8, which SimpleITK cannot open; rename it") from None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _convert_errors(path):
        reader.ReadImageInformation()
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    check_pixels(size[:2], config)
    check_voxels((*size, components), config)  # SimpleITK reads all frames together
    check_stored(int(np.prod(size, dtype=object)) * components, os.fstat(file.fileno()).st_size, compressed=True)
    with _convert_errors(path):
        image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image)
    if COMPRESSED.search(header):
        file.seek(len(header))
        _check_packed(file, voxels.nbytes)
    if components == 3 and voxels.dtype == np.uint8:
        voxels = voxels.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    elif components != 1:
        raise DataError(f"has {components} values of {voxels.dtype} per voxel; 1, or 3 of 8 bits, are supported")
    dimensions = min(image.GetDimension(), 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:dimensions, :dimensions]
    affine[:dimensions, :dimensions] = direction * np.array(image.GetSpacing()[:dimensions])
    affine[:dimensions, 3] = image.GetOrigin()[:dimensions]
    del image  # frees as much memory as the voxels take
    yield from parts_of(nib.Nifti1Image(voxels.T, RAS_OF_LPS @ affine), config)


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Convert SimpleITK's errors to DataError, without the source locations in their text."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^.*?ERROR:|\w+\(0x[0-9a-f]+\):|Reason:.*", "", str(error), flags=re.DOTALL)
        reason = " ".join(reason.replace(str(path), path.name).split())
        raise DataError(f"is damaged or truncated, or of a kind that SimpleITK does not read ({reason})") from error


def _check_packed(file: BinaryIO, needed: int) -> None:
    """Raise DataError unless the rest of the file decompresses, with a valid checksum, to at least `needed` bytes.
    SimpleITK returns voxels even of damaged MetaImage files."""
    inflate, count, pending = zlib.decompressobj(zlib.MAX_WBITS | 32), 0, b""
    try:
        while count <= needed and not inflate.eof and (block := pending or file.read(1 << 20)):
            count += len(inflate.decompress(block, 1 << 24))
            pending = inflate.unconsumed_tail
            if inflate.eof and count < needed and inflate.unused_data.startswith(GZIP):  # another gzip member
                pending, inflate = inflate.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
    except zlib.error as error:
        raise DataError(f"is damaged: its voxels cannot be decompressed ({error}); fetch it again") from error
    if not inflate.eof or count < needed:
        raise DataError("is damaged or truncated: its decompressed voxels do not match its header; fetch it again")


def _text_header(file: BinaryIO, end: re.Pattern[bytes]) -> bytes:
    head = file.read(1 << 16)
    found = end.search(head)
    if found is None:
        raise DataError("has no end of header in its first 64 KiB; it is damaged, or in another format")
    return head[: found.end()]
