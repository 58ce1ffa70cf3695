#!/usr/bin/env bash
# Guess:  SimpleITK reads an RLE-compressed colour DICOM image of 16 bits a sample as it reads the same image uncompressed,
#         as it does at 8 bits, and in grey at 16 bits.
# Really: it returns an image of the right size and type, without a warning, whose samples are put together from the bytes
#         of different samples: the six bytes of a pixel, sent high byte first, lie in memory with their halves exchanged.
# Way out: decode RLE with pydicom, or compare a file of such a set with another reader first.
# Version: SimpleITK 2.5.2 (ITK 5.4, which reads DICOM by GDCM), pydicom 3.0.1, Python 3.11.
# Source: DICOM PS3.5, annex G.2: the segments are the bytes of each sample, the most significant one first. pydicom decodes
#         the file that it wrote to the values that were put in.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet numpy==2.3.5 pydicom==3.0.1 SimpleITK==2.5.2
cd "$scratch"
venv/bin/python -W ignore - <<'EOF_PYTHON' | tee seen
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage


def write(path, pixels, compress):
    image, bits = Dataset(), 8 * pixels.dtype.itemsize
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = SecondaryCaptureImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3.4"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.3", "1.2.3.1", "OT"
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    image.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        image.PlanarConfiguration = 0
    image.BitsAllocated = image.BitsStored = bits
    image.HighBit, image.PixelRepresentation = bits - 1, 0
    image.PixelData = pixels.tobytes()
    if compress:
        image.compress(RLELossless)
    image.save_as(path, enforce_file_format=True)


numbers = np.random.default_rng(0)
for shape, dtype in (((4, 5, 3), np.uint8), ((4, 5), np.uint16), ((4, 5, 3), np.uint16)):
    pixels = numbers.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    for compress in (False, True):
        write("image.dcm", pixels, compress)
        by_pydicom = pydicom.dcmread("image.dcm").pixel_array
        by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("image.dcm")).reshape(shape)
        right = [bool(np.array_equal(found, pixels)) for found in (by_pydicom, by_itk)]
        kind = "colour" if len(shape) == 3 else "grey"
        print(kind, np.dtype(dtype), "RLE" if compress else "plain", "right: pydicom", right[0], "SimpleITK", right[1])
sent = pixels.astype(">u2").tobytes()[:6].hex(" ")
print("first pixel:", sent, "became", by_itk.astype("<u2").tobytes()[:6].hex(" "))
EOF_PYTHON
diff seen - <<'EOF'
colour uint8 plain right: pydicom True SimpleITK True
colour uint8 RLE right: pydicom True SimpleITK True
grey uint16 plain right: pydicom True SimpleITK True
grey uint16 RLE right: pydicom True SimpleITK True
colour uint16 plain right: pydicom True SimpleITK True
colour uint16 RLE right: pydicom True SimpleITK False
first pixel: ac 37 92 4f 41 2d became 4f 41 2d ac 37 92
EOF
