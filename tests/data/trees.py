"""Small copies of the paper's data sets: the owners' layouts and names, filled with real scans from other packages."""

import io
import tarfile

import nibabel as nib
import numpy as np
import pydicom
from nibabel.testing import data_path
from PIL import Image
from pydicom.data import get_testdata_file


def acdc(root, patients):
    """training/patient001/ with Info.cfg, the cine, the ED and ES frames and their label maps, made from an EPI series
    whose brain is shifted a little for each patient. ED is the first frame, ES the second."""
    series = nib.load(data_path / "example4d.nii.gz")
    voxels = np.asarray(series.dataobj)  # (128, 96, 24, 2)
    for number in range(1, patients + 1):
        folder = root / "training" / f"patient{number:03d}"
        folder.mkdir(parents=True)
        cine = np.roll(voxels, (3 * number, number), (0, 1)) + 5 * number
        nib.save(nib.Nifti1Image(cine.astype(np.int16), series.affine), folder / f"{folder.name}_4d.nii.gz")
        for frame in (1, 2):
            name = folder / f"{folder.name}_frame{frame:02d}"
            nib.save(nib.Nifti1Image(cine[..., frame - 1].astype(np.int16), series.affine), f"{name}.nii.gz")
            nib.save(nib.Nifti1Image((cine[..., 0] > 500).astype(np.uint8), series.affine), f"{name}_gt.nii.gz")
        (folder / "Info.cfg").write_text("ED: 1\nES: 2\nGroup: DCM\nHeight: 184.0\nNbFrame: 2\nWeight: 95.0\n")
    (root / "training" / "MANDATORY_CITATION.md").write_text("O. Bernard et al., 2018\n")
    return root


def brats2018(root, names):
    """HGG/ and LGG/ in turn, a folder per name, with four modalities and the label map from the MNI152 template."""
    from nilearn.datasets import load_mni152_template

    brain = load_mni152_template(resolution=4)
    voxels = np.asarray(brain.dataobj)
    for number, name in enumerate(names):
        folder = root / ("HGG", "LGG")[number % 2] / name
        folder.mkdir(parents=True)
        for contrast, modality in enumerate(("flair", "t1", "t1ce", "t2", "seg"), 1):
            scan = np.roll(voxels, number, 1) ** (1 / contrast) * 1000
            nib.save(nib.Nifti1Image(scan.astype(np.int16), brain.affine), folder / f"{name}_{modality}.nii.gz")
    (root / "survival_data.csv").write_text("Brats18ID,Age,Survival\n")
    return root


def xray(number, size=1024):
    """An 8-bit picture of 1024 x 1024, as the NIH ships them: a slice through a body, different for each number."""
    pixels = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(np.float32)
    pixels = np.roll(pixels - pixels.min(), (7 * number, 11 * number), (0, 1))
    picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    grey = np.asarray(picture) * (0.08 + 0.01 * (number % 7))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def chestxray(root, images_of_patients, archives=0, size=1024):
    """images_001/images/00000001_000.png ..., or the same in archives, and Data_Entry_2017.csv."""
    names = [f"{p:08d}_{i:03d}.png" for p, count in enumerate(images_of_patients, 1) for i in range(count)]
    parts = archives or 1
    for part in range(parts):
        mine = list(enumerate(names))[part * len(names) // parts : (part + 1) * len(names) // parts]
        if archives:
            root.mkdir(exist_ok=True)
            with tarfile.open(root / f"images_{part + 1:03d}.tar.gz", "w:gz") as archive:
                for number, name in mine:
                    file = io.BytesIO()
                    xray(number, size).save(file, "png")
                    member = tarfile.TarInfo(f"images/{name}")
                    member.size = file.tell()
                    file.seek(0)
                    archive.addfile(member, file)
        else:
            folder = root / f"images_{part + 1:03d}" / "images"
            folder.mkdir(parents=True)
            for number, name in mine:
                xray(number, size).save(folder / name)
    rows = [f"{name},No Finding,{name[9:12]},{int(name[:8])},58,M,PA,2682,2749,0.143,0.143" for name in names]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    (root / "Data_Entry_2017.csv").write_text("\n".join([f"{header},W,H,x,y", *rows]) + "\n")
    return root
