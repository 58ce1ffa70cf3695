"""Reads damaged images: each is read, or refused with our own error, in bounded time and memory.

    python fuzz_images.py FOLDER FIRST COUNT

damages real and generated files with the seeds FIRST ... FIRST + COUNT - 1, and prints the outcomes as JSON. It runs in
its own process, so that a library's crash is seen and memory is measured for it alone.
"""

import gzip
import json
import logging
import random
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from vmddpm.data import DataConfig, DataError
from vmddpm.data.layouts import Source
from vmddpm.data.prepare import prepared

SECONDS = 10  # per file
CONFIG = DataConfig(size=16, min_foreground=0, max_pixels=2**22, max_voxels=2**23)
DICOM = (
    "CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "image_dfl.dcm",
    "emri_small.dcm", "examples_palette.dcm", "SC_rgb_small_odd.dcm", "mlut_18.dcm", "MR_small_jp2klossless.dcm",
    "SC_rgb_jpeg.dcm", "JPEG-LL.dcm", "MR_small_jpeg_ls_lossless.dcm",
)  # fmt: skip
EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\1")


def bases(folder):
    """Intact small files of every kind, by name."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 60000, (24, 32), np.uint16)
    found = {}
    for name in DICOM:
        path = get_testdata_file(name, download=False)
        if path is not None and Path(path).stat().st_size < 1_000_000:
            found[name] = Path(path).read_bytes()
    volume = rng.integers(-1000, 1000, (12, 10, 4, 2), np.int16)
    for name, kind in (("one.nii", nib.Nifti1Image), ("two.nii", nib.Nifti2Image), ("mgh.mgh", nib.MGHImage)):
        kind(volume.astype(np.int32) if kind is nib.MGHImage else volume, np.eye(4)).to_filename(folder / name)
        found[name] = (folder / name).read_bytes()
    found["one.nii.gz"] = gzip.compress(found["one.nii"])
    tiffs = {
        "a.tif": {"data": grey}, "deflate.tif": {"data": grey, "compression": "zlib"},
        "lzw.tif": {"data": grey, "compression": "lzw"}, "tiles.tif": {"data": np.stack([grey] * 3), "tile": (16, 16)},
        "planes.tif": {"data": np.stack([grey] * 3), "photometric": "rgb", "planarconfig": "separate"},
        "imagej.tif": {"data": np.stack([grey] * 3), "imagej": True}, "big.tif": {"data": grey, "bigtiff": True},
        "jpeg.tif": {"data": (grey >> 8).astype(np.uint8), "compression": "jpeg"},
    }  # fmt: skip
    for name, options in tiffs.items():
        tifffile.imwrite(folder / name, **options)
        found[name] = (folder / name).read_bytes()
    colours = rng.integers(0, 256, (24, 32, 3), np.uint8)
    for name, array in (
        ("grey.png", grey), ("rgb.png", colours), ("a.jpg", colours), ("a.bmp", colours), ("a.ppm", colours),
        ("a.webp", colours), ("a.jp2", colours), ("a.gif", colours),
    ):  # fmt: skip
        Image.fromarray(array).save(folder / name)
        found[name] = (folder / name).read_bytes()
    np.save(folder / "a.npy", grey)
    found["a.npy"] = (folder / "a.npy").read_bytes()
    return found


def damaged(content, chance):
    """A copy with some bytes changed (mostly early ones), truncated, or with a part repeated or removed."""
    data = bytearray(content)
    header = min(len(data), chance.choice((64, 400, 2000, len(data))))
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(header)
        how = chance.randrange(5)
        if how == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            data[at] = chance.randrange(256)
        elif how == 2:
            width = chance.choice((1, 2, 4, 8))
            data[at : at + width] = chance.choice(EXTREMES) * width
        elif how == 3:
            width = chance.choice((2, 4))
            value = chance.choice((0, 1, 2, 3, 7, 16, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**32 - 1)) % 256**width
            data[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
        elif chance.random() < 0.3:
            data = data[: chance.randrange(1, len(data))]
            header = min(header, len(data))
        else:
            end = min(len(data), at + chance.randrange(1, 40))
            data[at:end] = data[at:end] * chance.choice((0, 2)) or b"\0"
            header = min(header, len(data))
    return bytes(data)


def peak_memory():
    """Peak memory in MiB; getrusage would include the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main(folder, first, count):
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", "invalid value encountered in cast")  # NaN, which a store's integers would hide
    files = bases(folder)
    names, table, unclear = sorted(files), Counter(), []

    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    for seed in range(first, first + count):
        chance = random.Random(seed)
        name = chance.choice(names)
        path = folder / f"{seed}-{name}"
        path.write_bytes(damaged(files[name], chance))
        signal.alarm(SECONDS)
        try:
            done = prepared(Source(path.name, None, path), CONFIG, {})
        except TimeoutError:
            unclear.append(f"{seed} {name}: more than {SECONDS} s")
        except DataError as error:
            unclear.append(f"{seed} {name}: a DataError escapes: {error}")
        except Exception as error:
            unclear.append(f"{seed} {name}: {type(error).__name__}: {error}")
        else:
            kinds = {remark.kind for remark in done.remarks}
            table["refused" if "error" in kinds else "no picture" if "class" in kinds else "read"] += 1
        finally:
            signal.alarm(0)
        path.unlink()
    print(json.dumps({"table": table, "unclear": unclear, "MiB": peak_memory()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
