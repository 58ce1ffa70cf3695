"""From a folder of DICOM files to new images: `python train_on_my_dicom.py FOLDER --size 64 --steps 20000`.

Without a folder it writes one, of small CT slices of eight made-up patients, and trains a tiny network on them. That
takes seconds and shows the way, not good images. A run that was stopped goes on with the same command.
"""

import argparse
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from vmddpm.data import DataConfig, SliceDataset
from vmddpm.diffusion import DiffusionConfig
from vmddpm.generate import generate
from vmddpm.model import ModelConfig
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train


def write_slice(path: Path, patient: str, hounsfield: np.ndarray) -> None:
    """A CT slice (H, W) in Hounsfield units, as a scanner stores it: unsigned, with an intercept and a window."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = CTImageStorage, generate_uid(), "CT"
    file.PatientID, file.PixelSpacing = patient, [1.0, 1.0]
    file.RescaleIntercept, file.RescaleSlope, file.WindowCenter, file.WindowWidth = -1024, 1, 40, 400
    file.set_pixel_data((hounsfield + 1024).astype(np.uint16), "MONOCHROME2", 12)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def write_patients(folder: Path) -> None:
    """An ellipse of soft tissue with two round organs, of another size and place in every slice."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for patient in range(8):
        for number in range(4):
            body = (x / random.uniform(0.7, 0.9)) ** 2 + (y / random.uniform(0.5, 0.7)) ** 2 < 1
            image = np.where(body, 40.0, -1000.0)
            for side in (-0.35, 0.35):
                organ = (x - side) ** 2 + (y - random.uniform(-0.1, 0.1)) ** 2 < random.uniform(0.15, 0.25) ** 2
                image[organ] = random.uniform(80, 160)
            noisy = image + random.normal(0, 10, image.shape)
            write_slice(folder / f"patient{patient}" / f"{number}.dcm", f"made-up-{patient}", noisy.clip(-1024, 3000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="DICOM files, at any depth")
    parser.add_argument("--out", type=Path, default=Path("runs/my-dicom"))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    folder = options.folder
    if folder is None:
        folder = options.out / "dicom"
        write_patients(folder)

    # A file that cannot be read fails by name; on_error="skip" would list and leave out all such files instead.
    data = DataConfig(root=str(folder), size=options.size, cache_dir=str(options.out / "cache"))
    config = RunConfig(
        model=ModelConfig(base_channels=16, channel_multipliers=[1, 2], sampling=[2, 2], layers_per_stage=1, d_state=4,
                          norm_groups=8),
        diffusion=DiffusionConfig(timesteps=1000, prediction_type="v_prediction"),
        data=data,
        training=TrainingConfig(steps=options.steps, batch_size=8, learning_rate=2e-3, ema_decay=0.9, flip=False),
    )  # fmt: skip
    dataset = SliceDataset(data)
    print(f"{len(dataset)} images of {options.size} x {options.size} from {folder}")
    run = RunFolder(options.out / "run")
    run.check(config)  # refuses to continue a run of another configuration
    train(config, dataset, run)
    generate(run.path, options.out / "images", 8, sampler="ddim", steps=20, batch_size=8)
    print(f"new images in {options.out / 'images'}, loss curve in {run.path / 'loss.png'}")


if __name__ == "__main__":
    main()
