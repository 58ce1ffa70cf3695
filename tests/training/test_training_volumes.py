"""A run over volumes from end to end: training, sampling, reading by other libraries, comparison with real ones."""

import json
import random
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from vmddpm.cli import main
from vmddpm.errors import InputError
from vmddpm.evaluation import VolumeSlices
from vmddpm.nifti import nifti_bytes, read_nifti_voxels
from vmddpm.samples import read_samples
from vmddpm.training.pictures import three_planes

SMALL = {
    "model.spatial_dims": 3, "model.base_channels": 8, "model.channel_multipliers": "[1,2]", "model.sampling": "[2,2]",
    "model.layers_per_stage": 1, "model.norm_groups": 4, "model.d_state": 2, "diffusion.timesteps": 8,
    "data.spatial_dims": 3, "data.spacing": "[3,2,2]", "data.size": 8, "data.depth": 4, "data.stride": 4,
    "data.min_foreground": 0, "training.steps": 2, "training.batch_size": 3, "training.sample_every": 2,
    "training.sample_count": 2, "training.sample_steps": 2, "training.log_every": 1, "training.device": "cpu",
}  # fmt: skip


def options(**changes):
    return [word for name, value in {**SMALL, **changes}.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    generator = np.random.default_rng(0)
    for name in "ab":
        voxels = generator.random((24, 20, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.5, 1.0])), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    cache = tmp_path_factory.mktemp("cache")
    assert main(["train", *options(**{"data.root": scans, "data.cache_dir": cache}), "--run", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def samples(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples") / "out"
    command = ["sample", "--run", str(run), "--out", str(out), "--images", "3", "--batch-size", "2", "--sampler",
               "ddim", "--steps", "2"]  # fmt: skip
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == before
    return out


def test_samples_are_read_by_nibabel_and_SimpleITK_where_they_belong(samples):
    names = [path.name for path in sorted(samples.glob("*.nii.gz"))]
    assert names == ["000000.nii.gz", "000001.nii.gz", "000002.nii.gz"]
    read = np.concatenate(list(read_samples(samples)))[..., 0]
    assert (read.shape, read.dtype) == ((3, 4, 8, 8), np.uint8)
    for name, voxels in zip(names, read):
        theirs = nib.load(samples / name)
        assert nib.aff2axcodes(theirs.affine) == ("L", "P", "S")
        np.testing.assert_allclose(theirs.header.get_zooms(), (2, 2, 3))
        np.testing.assert_allclose(nib.affines.apply_affine(theirs.affine, [3.5, 3.5, 1.5]), 0, atol=1e-6)
        assert theirs.header["sform_code"] == theirs.header["qform_code"] == 1
        np.testing.assert_allclose(theirs.get_qform(), theirs.get_sform(), atol=1e-5)
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), voxels.transpose(2, 1, 0))
        image = SimpleITK.ReadImage(str(samples / name))
        assert image.GetSpacing() == (2.0, 2.0, 3.0)
        assert image.GetDirection() == (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)  # to left, posterior and superior
        np.testing.assert_allclose(image.GetOrigin(), (-7, -7, -4.5))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), voxels)
    assert json.loads((samples / "manifest.json").read_text()) == {
        "images": 3, "shape": [4, 8, 8, 1], "format": "nifti"}  # fmt: skip
    assert Image.open(samples / "grid.png").size == (24, 8 * 3 + 2 * 2)


def test_the_picture_of_a_run_shows_three_planes(run):
    assert Image.open(run / "samples" / "step-00000002.png").size == (24, 18)


def test_planes_are_the_way_up_that_radiologists_read():
    volume = torch.zeros(1, 4, 6, 6, 1, dtype=torch.uint8).numpy()
    volume[0, -1, 0, 0] = 200  # superior, anterior, right
    volume[0, 2], volume[0, :, 3], volume[0, :, :, 3] = 10, 20, 30
    volume[0, -1, 0, 3] = 100  # superior and anterior in the sagittal plane
    volume[0, -1, 3, 0] = 50  # superior and right in the coronal plane
    planes = three_planes(volume)
    assert planes.shape == (1, 6, 18, 1)
    axial, coronal, sagittal = np.split(planes[0, ..., 0], 3, axis=1)
    assert axial[0, 0] == 10
    assert coronal[1, 0] == 50  # the top row, as 4 of 6 are padded by one on each side
    assert sagittal[1, 0] == 100
    assert not coronal[0].any()


def test_volumes_are_evaluated_by_slices_and_as_they_are(run, samples, scans, tmp_path, capsys):
    common = ["evaluate", "--run", str(run), "--samples", str(samples), "--extractor.path", "random",
              "--metrics.neighbours", "1", "--metrics.device", "cpu", "--extractor.size", "32"]  # fmt: skip
    for axis, slices in (("axial", 4), ("coronal", 8)):
        assert main([*common, "--slices", axis, "--out", str(tmp_path / axis)]) == 0
        result = json.loads((tmp_path / axis / "evaluation.json").read_text())
        assert result["n_synthetic"] == 3 * slices
    assert main([*common, "--slices", "none", "--out", str(tmp_path / "no")]) == 1
    assert "extractor.resizer is 'tf1', which resizes images; volumes go" in capsys.readouterr().err
    command = [*common, "--slices", "none", "--extractor.resizer", "none", "--out", str(tmp_path / "whole")]
    assert main(command) == 1
    assert "there are 3 samples" in capsys.readouterr().err  # a KID needs more
    more = [word if word != str(samples) else str(tmp_path / "more") for word in command]
    assert main(["sample", "--run", str(run), "--out", str(tmp_path / "more"), "--images", "6", "--sampler", "ddim",
                 "--steps", "1"]) == 0  # fmt: skip
    assert main(more) == 0
    result = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert (result["n_synthetic"], result["dimensions"]) == (6, 64)
    assert (tmp_path / "whole" / "closest.png").exists()


def test_slices_of_volumes_leave_out_blank_and_repeated_ones():
    volumes = torch.rand(3, 1, 4, 5, 6) * 2 - 1
    volumes[1, :, 2] = -1
    volumes[2, :, 0] = volumes[0, :, 3]
    assert [len(VolumeSlices(volumes, axis)) for axis in ("axial", "coronal", "sagittal")] == [11, 15, 18]
    distinct = VolumeSlices(volumes, "axial", distinct=True)
    assert len(distinct) == 10
    assert torch.equal(distinct[6], volumes[1, :, 3])
    assert torch.equal(VolumeSlices(volumes, "coronal")[7], volumes[1, :, :, 2].flip(1))
    assert torch.equal(VolumeSlices(volumes, "sagittal")[17], volumes[2, ..., 5].flip(1))
    with pytest.raises(InputError, match="all axial slices of 2 volumes are constant"):
        VolumeSlices(torch.zeros(2, 1, 4, 4, 4), "axial")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--data.spacing", "null"], r"a\.nii\.gz: has voxels of 1\.5 x 1 x 1 mm .* spacing is not set"),
        (["--data.size", "16"], "has 8 x 10 x 12 voxels of 3 x 2 x 2 mm .* less than a crop of 4 x 16 x 16"),
        (["--data.size", "6"], r"data\.size is 6; it must be a multiple of 4"),
        (["--data.depth", "6"], r"data\.depth is 6; it must be a multiple of 4"),
        (["--model.spatial_dims", "2"], r"data\.spatial_dims is 3 but model\.spatial_dims is 2; they must be equal"),
        (["--model.image_channels", "3"], r"data\.channels is 1 but model\.image_channels is 3"),
        (["--data.channels", "3"], "channels is 3; it must be 1 when spatial_dims is 3"),
        (["--system", "unet"], r"data\.spatial_dims is 3, but unet draws images"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(scans, tmp_path, capsys, command, message):
    words = options(**{"data.root": scans, "data.cache_dir": tmp_path / "cache"})
    assert main(["train", *words, *command, "--run", str(tmp_path / "run")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_format_that_does_not_fit_is_refused(run, tmp_path, capsys):
    command = ["sample", "--run", str(run), "--out", str(tmp_path / "out"), "--format", "png"]
    assert main(command) == 1
    assert "draws volumes; it must be nifti or npy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_of_images_alone_is_refused(run, scans, tmp_path, capsys):
    inpaint = ["inpaint", "--run", str(run), "--real", str(scans), "--masks", str(scans), "--out",
               str(tmp_path / "out")]  # fmt: skip
    assert main(inpaint) == 1
    assert "draws volumes, but only regions of images can be redrawn" in capsys.readouterr().err
    study = ["study", "create", "--real", str(scans), "--synthetic", str(scans), "--images", "2", "--out",
             str(tmp_path / "study"), "--data.spatial_dims", "3", "--data.spacing", "1"]  # fmt: skip
    assert main(study) == 1
    assert "a study shows images, but spatial_dims is 3; set it to 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_volumes_in_blocks(run, tmp_path):
    command = ["sample", "--run", str(run), "--out", str(tmp_path), "--images", "3", "--sampler", "ddim", "--steps",
               "1", "--batch-size", "2", "--format", "npy"]  # fmt: skip
    assert main(command) == 0
    assert [block.shape for block in read_samples(tmp_path)] == [(2, 4, 8, 8, 1), (1, 4, 8, 8, 1)]


def test_damaged_samples_are_reported(tmp_path):
    voxels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = nifti_bytes(voxels, (1.0, 2.0, 3.0))
    assert content == nifti_bytes(voxels, (1.0, 2.0, 3.0))
    path = tmp_path / "000000.nii.gz"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_nifti_voxels(path), voxels)
    chance = random.Random(0)
    for _ in range(50):
        damaged = bytearray(content)
        damaged[chance.randrange(10, len(content))] ^= 1 << chance.randrange(8)  # after the gzip header
        path.write_bytes(damaged[: chance.randrange(10, len(content) - 8)])
        with pytest.raises(InputError, match=r"000000\.nii\.gz cannot be read .* draw it again"):
            read_nifti_voxels(path)


def test_volumes_with_classes_and_masks(scans, tmp_path, capsys):
    """Each volume has a class (its folder) and a mask under the same name; crops and masks are cut alike."""
    for name, kind in (("a", "healthy"), ("b", "ill")):
        for folder in (tmp_path / "data" / kind, tmp_path / "masks" / kind):
            folder.mkdir(parents=True)
        volume = nib.load(scans / f"{name}.nii.gz")
        nib.save(volume, tmp_path / "data" / kind / f"{name}.nii.gz")
        bright = (np.asarray(volume.dataobj) > 0.5).astype(np.uint8)
        nib.save(nib.Nifti1Image(bright, volume.affine), tmp_path / "masks" / kind / f"{name}.nii.gz")
    given = {"data.root": tmp_path / "data", "data.cache_dir": tmp_path / "cache", "condition.labels": "folder",
             "condition.image": tmp_path / "masks"}  # fmt: skip
    path = tmp_path / "run"
    assert main(["train", *options(**given), "--run", str(path)]) == 0
    assert (path / "classes.csv").read_text().split() == ["class,images", "healthy,8", "ill,8"]
    command = ["sample", "--run", str(path), "--images", "2", "--sampler", "ddim", "--steps", "2", "--class", "ill",
               "--guidance", "2", "--condition-images", str(tmp_path / "masks")]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    read = np.concatenate(list(read_samples(tmp_path / "out")))
    assert read.shape[:4] == (2, 4, 8, 8)
    capsys.readouterr()
    shifted = nib.load(scans / "a.nii.gz").slicer[:, :, :8]
    nib.save(shifted, tmp_path / "masks" / "healthy" / "a.nii.gz")
    assert main(["train", *options(**given), "--run", str(tmp_path / "other")]) == 1
    assert "a.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
