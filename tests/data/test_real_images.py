"""Every image shipped with pydicom, pydicom-data, nibabel, dipy, nilearn and scikit-image, as read by us and by another
library: SimpleITK (which uses GDCM for DICOM), nibabel or imagecodecs."""

import gzip
import logging
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from vmddpm.data import DataConfig, DataError
from vmddpm.data.files import find, open_regular
from vmddpm.data.readers import kind_of, read_file
from vmddpm.data.remarks import Excluded

# Folders of their images, relative to the package.
PACKAGES = {"pydicom": "data", "data_store": ".", "nibabel": ".", "dipy": ".", "nilearn": ".", "skimage": "."}
SOURCE = (".py", ".pyi", ".pyc", ".pyx", ".pxd", ".so", ".typed")
# GDCM 3.2 swaps the bytes of run-length encoded colours of more than 8 bits; the same pictures are there uncompressed.
SIBLINGS = {
    "SC_rgb_rle_16bit.dcm": "SC_rgb_16bit.dcm",
    "SC_rgb_rle_16bit_2frame.dcm": "SC_rgb_16bit_2frame.dcm",
    "SC_rgb_rle_32bit.dcm": "SC_rgb_32bit.dcm",
    "SC_rgb_rle_32bit_2frame.dcm": "SC_rgb_32bit_2frame.dcm",
}


def simple_itk(path, tmp_path):
    """Frames in the modality's units, as GDCM gives them."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        path = tmp_path / "unpacked.dcm"
        path.write_bytes(gzip.decompress(content))
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    return [frame.astype(np.float64) for frame in array]


def gdcm_values(path, frames, theirs):
    """Our frames in GDCM's form: it inverts MONOCHROME1, and truncates plain palettes to 8 bits."""
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    if header.get("PhotometricInterpretation") == "PALETTE COLOR" and max(frame.max() for frame in theirs) < 256:
        return [np.floor(frame / 256) if frame.max() > 255 else frame for frame in frames]
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        top = 2**header.BitsStored - 1
        return [(top - (frame - intercept) / slope) * slope + intercept for frame in frames]
    return frames


def modality_table(path):
    """The frames of a file with a modality table, computed by NumPy."""
    data = pydicom.dcmread(path)
    table = data.ModalityLUTSequence[0]
    count, first, _ = table.LUTDescriptor
    return [np.array(table.LUTData)[np.clip(data.pixel_array.astype(int) - first, 0, count - 1)]]


def volume(path):
    """Axial slices, anterior up, the patient's right on the left."""
    image = nib.as_closest_canonical(nib.load(path))
    voxels = np.asarray(image.dataobj)
    if voxels.dtype.names:
        voxels = np.stack([voxels[name] for name in "RGB"], -1)[:, :, :, None]
    voxels = voxels.reshape(*voxels.shape[:3], *[n for n in voxels.shape[3:] if n > 1])
    while voxels.ndim < 4:
        voxels = voxels[..., None]
    return [np.flip(np.swapaxes(voxels[:, :, z, t], 0, 1), (0, 1)) for t in range(voxels.shape[3])
            for z in range(voxels.shape[2])]  # fmt: skip


def picture(path):
    """The picture decoded by imagecodecs, with transparent pixels over black."""
    codecs = pytest.importorskip("imagecodecs")
    decode = {".png": codecs.png_decode, ".jpg": codecs.jpeg8_decode, ".gif": codecs.gif_decode}[path.suffix]
    array = decode(path.read_bytes())
    if array.ndim == 3 and array.shape[-1] in (2, 4):
        alpha = array[..., -1:] / 255
        array = np.rint(array[..., :-1] * alpha).squeeze()
    return list(array) if path.suffix == ".gif" and array.ndim == 4 else [array]


def tiff_pages(path):
    """The pages decoded by libtiff."""
    codecs = pytest.importorskip("imagecodecs")
    content, pages = path.read_bytes(), []
    while True:
        try:
            page = codecs.tiff_decode(content, index=len(pages))
            pages.append(np.moveaxis(page, 0, -1) if page.ndim == 3 and page.shape[0] == 3 else page)
        except (codecs.TiffError, IndexError):
            return pages


def is_lossy(path):
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    syntax = header.file_meta.get("TransferSyntaxUID")
    return syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)


def independent(path, kind, tmp_path):
    if path.name in SIBLINGS:
        path = Path(get_testdata_file(SIBLINGS[path.name], download=False))
    if kind == "DICOM":
        return modality_table(path) if path.name.startswith("mlut_") else simple_itk(path, tmp_path)
    if kind in ("NIfTI", "FreeSurfer"):
        return volume(path)
    if kind == "NumPy":
        array = np.load(path)
        return [array] if array.ndim == 2 or array.shape[2] == 3 else list(array)
    return tiff_pages(path) if kind == "TIFF" else picture(path)


def agree(ours, theirs, path, kind):
    if kind == "DICOM" and not path.name.startswith("mlut_"):
        ours = gdcm_values(path, ours, theirs)
    if len(ours) != len(theirs):
        return f"{len(ours)} frames, not {len(theirs)}"
    lossy = kind == "DICOM" and is_lossy(path)
    for number, (a, b) in enumerate(zip(ours, theirs)):
        b = np.asarray(b, np.float64)
        if a.shape != b.shape:
            return f"frame {number} is {a.shape}, not {b.shape}"
        known = np.isfinite(a) & np.isfinite(b)
        # float32 holds 24 bits; Pillow rounds when it composites over black.
        allowed = 2e-6 * max(1, np.abs(b[known]).max(initial=0)) + (
            1 if kind == "an image" and path.suffix == ".png" else 0
        )
        if lossy:  # decoders of JPEG round differently, and so do conversions from luminance and chrominance
            allowed = 5
            if (mean := np.abs(a - b)[known].mean()) > 0.5:
                return f"frame {number} differs by {mean:g} on average"
        if (worst := np.abs(a - b)[known].max(initial=0)) > allowed:
            return f"frame {number} differs by {worst:g}"
    return None


def verdict(path, tmp_path):
    """(equal, not a picture, refused, unclear, wrong or alone; reason)."""
    config = DataConfig(normalize="full")
    try:
        with open_regular(path) as file:
            kind = kind_of(file, path.name)
    except DataError as error:
        return "refused", str(error)
    try:
        ours = [plane.pixels for plane in read_file(path, config)]
    except Excluded as error:
        return "not a picture", str(error)
    except DataError as error:
        ours, reason = None, str(error)
    try:
        theirs = independent(path, kind, tmp_path)
    except Exception as error:
        theirs, failure = None, str(error)
    if ours is None:
        clear = theirs is None or not reason.startswith("cannot be read as")
        return ("refused" if clear else "unclear"), reason
    if theirs is None:
        return "alone", failure
    difference = agree(ours, theirs, path, kind)
    return ("equal", "") if difference is None else ("wrong", difference)


def files_of(package):
    """The folder of a package, and its files that are not programs."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; `make nightly` installs it")
    root = Path(next(iter(spec.submodule_search_locations))) / PACKAGES[package]
    return root, [p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix not in SOURCE and p.name[0] != "."]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_real_image_is_read_as_another_library_reads_it_or_refused_clearly(package, tmp_path, capsys):
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    root, files = files_of(package)
    read = set(find(DataConfig(root=str(root))).files)
    table, failures = Counter(), []
    for path in files:
        outcome, reason = verdict(path, tmp_path) if path in read else ("not an image by name", "")
        table[outcome] += 1
        if outcome in ("wrong", "unclear", "alone"):
            failures.append(f"{outcome}: {path.relative_to(root)}: {reason}")
    with capsys.disabled():
        print(f"\n{package}: {len(files)} files: " + ", ".join(f"{count} {what}" for what, count in table.items()))
    assert not failures, "\n".join(failures)
    assert table["equal"]


@pytest.mark.slow
def test_the_window_of_every_real_file_is_pydicoms():
    """Our black and white levels against pydicom's tables, windows and output range, for files with a window."""
    compared = 0
    for package in ("pydicom", "data_store"):
        for path in files_of(package)[1]:
            try:
                planes = list(read_file(path, DataConfig(normalize="window")))
                data = pydicom.dcmread(path, force=True)
                values = apply_modality_lut(data.pixel_array, data)
                shown = apply_voi_lut(np.rint(values).astype(int) if "VOILUTSequence" in data else values, data)
            except (DataError, AttributeError, ValueError, RuntimeError, NotImplementedError):
                continue
            if len(planes) != 1:
                continue
            (one,) = planes
            low, high = sorted((one.black, one.white))
            ours = np.clip((one.pixels - low) / (high - low), 0, 1)
            known = np.isfinite(ours)
            if table := data.get("VOILUTSequence"):
                least, most = 0, 2 ** table[0].LUTDescriptor[2] - 1
            else:
                ends = apply_windowing(np.array([-1e30, 1e30]), data)
                least, most = ends.min(), ends.max()
            theirs = (shown - least) / (most - least)
            np.testing.assert_allclose(ours[known], theirs[known], atol=2e-5, err_msg=str(path))
            compared += 1
    assert compared > 20
