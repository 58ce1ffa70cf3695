"""Speed of `vmddpm prepare` on 1024 x 1024 PNG files in the layout of ChestX-ray14, with one or more processes.

    python benchmarks/prepare_speed.py --images 3000 --processes 1 2 --tree /tmp/tree
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file

from vmddpm.data import DataConfig, layouts
from vmddpm.data.prepare import prepare_store

DISTINCT = 100  # distinct pictures; all other files of the tree are copies


def build_tree(root: Path, images: int) -> None:
    """Ten images per patient: a CT slice, shifted from picture to picture."""
    pixels = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(np.float32)
    folder = root / "images_001" / "images"
    folder.mkdir(parents=True)

    def place(number: int) -> Path:
        return folder / f"{number // 10 + 1:08d}_{number % 10:03d}.png"

    for number in range(images):
        if number < DISTINCT:
            moved = Image.fromarray(np.roll(pixels - pixels.min(), (7 * number, 11 * number), (0, 1)))
            grey = np.asarray(moved.resize((1024, 1024), Image.Resampling.BICUBIC)) * (0.08 + 0.0005 * number)
            Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(place(number))
        else:
            shutil.copy(place(number % DISTINCT), place(number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tree", type=Path, default=None, help="folder of the tree; built and kept if missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.tree or Path(folder) / "tree"
        if not root.exists():
            build_tree(root, options.images)
        for processes in options.processes:
            config = DataConfig(root=str(root), min_foreground=0.0)
            layout = layouts.chestxray(root, config)
            began = time.perf_counter()
            made = prepare_store(layout, config, Path(folder) / str(processes),
                                 made_from={"dataset": "chestxray"}, processes=processes, progress=False)  # fmt: skip
            seconds = time.perf_counter() - began
            memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            print(f"{processes} processes: {made['images']} images in {seconds:.1f} s, {made['images'] / seconds:.1f} "
                  f"images/s; most memory of a process so far {memory / 1024:.0f} MiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
