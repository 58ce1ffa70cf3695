"""`vmddpm sample` writes the same files from a run every time."""

import json
import shutil
import socket
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_training_run import config

from vmddpm.diffusion import sample
from vmddpm.errors import InputError
from vmddpm.files import sha256
from vmddpm.generate import generate
from vmddpm.model import VMDDPM
from vmddpm.samples import check_drawn, read_samples
from vmddpm.training import RunError, RunFolder, train
from vmddpm.training.pictures import grid, to_uint8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("generate") / "run")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    train(config(steps=3, sample_every=0), images, folder, progress=False)
    return folder


OPTIONS = {"sampler": "ddim", "steps": 4, "batch_size": 4, "device": "cpu", "progress": False}


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_seed_same_images_bit_for_bit(run, tmp_path):
    generate(run.path, tmp_path / "a", 6, seed=3, **OPTIONS)
    generate(run.path, tmp_path / "b", 6, seed=3, **OPTIONS)
    generate(run.path, tmp_path / "c", 6, seed=4, **OPTIONS)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert sorted(a) == [*(f"{i:06d}.png" for i in range(6)), "grid.png", "manifest.json", "sampling.yaml"]
    assert a == b
    assert all(a[f"{i:06d}.png"] != c[f"{i:06d}.png"] for i in range(6))


def test_files_hold_what_the_sampler_returns(run, tmp_path):
    generate(run.path, tmp_path, 4, seed=1, weights="raw", **OPTIONS)
    images = sample(run.load_model("raw"), range(4), (1, 8, 8), config=run.load_config().diffusion, sampler="ddim",
                    steps=4, seed=1, batch_size=4)  # fmt: skip
    for i, pixels in enumerate(to_uint8(images)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{i:06d}.png")), pixels[..., 0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid(images)[..., 0])


def test_an_interrupted_call_is_continued(run, tmp_path):
    generate(run.path, tmp_path / "whole", 10, **OPTIONS)
    generate(run.path, tmp_path / "parts", 4, **OPTIONS)
    (tmp_path / "parts" / "000001.png").unlink()
    generate(run.path, tmp_path / "parts", 10, **OPTIONS)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_blocks_in_files_are_the_images_of_the_pngs(run, tmp_path):
    generate(run.path, tmp_path / "png", 10, **OPTIONS)
    generate(run.path, tmp_path / "npy", 10, file_format="npy", **OPTIONS)
    names = [f"images-{first:08d}.npy" for first in (0, 4, 8)]
    assert sorted(contents(tmp_path / "npy")) == ["grid.png", *names, "manifest.json", "sampling.yaml"]
    blocks = [np.load(tmp_path / "npy" / name) for name in names]
    assert [block.shape for block in blocks] == [(4, 8, 8, 1), (4, 8, 8, 1), (2, 8, 8, 1)]
    pngs = [np.asarray(Image.open(tmp_path / "png" / f"{i:06d}.png")) for i in range(10)]
    assert np.array_equal(np.concatenate(blocks)[..., 0], np.stack(pngs))
    for form in ("png", "npy"):
        assert np.array_equal(np.concatenate(list(read_samples(tmp_path / form))), np.concatenate(blocks))
    assert (tmp_path / "npy" / "grid.png").read_bytes() == (tmp_path / "png" / "grid.png").read_bytes()


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_fewer_images_than_are_stored_are_reported_and_counted(run, tmp_path, file_format):
    """The manifest and an evaluation count the files in the folder, whatever number was requested last."""
    generate(run.path, tmp_path / "out", 9, file_format=file_format, **OPTIONS)
    before = contents(tmp_path / "out")
    with pytest.warns(UserWarning, match="out already holds 9 images; the first 3 are the requested ones"):
        generate(run.path, tmp_path / "out", 3, file_format=file_format, **OPTIONS)
    assert contents(tmp_path / "out") == before
    assert sum(len(block) for block in read_samples(tmp_path / "out")) == 9
    (tmp_path / "out" / "manifest.json").unlink()  # as after a call that was stopped after its first blocks
    name = "000004.png" if file_format == "png" else "images-00000004.npy"
    (tmp_path / "out" / name).unlink()
    with pytest.warns(UserWarning, match="already holds 4 images; the first 3"):
        generate(run.path, tmp_path / "out", 3, file_format=file_format, **OPTIONS)
    with pytest.raises(RunError, match=r"does not hold the 4 images of its manifest\.json"):
        check_drawn(tmp_path / "out", run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_draw_nothing(run, tmp_path, value):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    model = copy.load_model("ema")
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] = value
    copy.save_weights("ema", model)
    with pytest.raises(RunError, match="holds weights that are NaN or infinite"):
        generate(copy.path, tmp_path / "out", 4, **OPTIONS)
    assert not (tmp_path / "out").exists()
    generate(copy.path, tmp_path / "out", 4, weights="raw", **OPTIONS)


def test_damaged_blocks_are_made_again_or_named(run, tmp_path):
    generate(run.path, tmp_path, 10, file_format="npy", **OPTIONS)
    whole = contents(tmp_path)
    (tmp_path / "images-00000000.npy").write_bytes(b"")
    (tmp_path / "images-00000004.npy").write_bytes(whole["images-00000004.npy"][:-1])
    (tmp_path / ".images-00000008.npy.7.tmp.npy").write_bytes(b"half")
    generate(run.path, tmp_path, 10, file_format="npy", **OPTIONS)
    assert contents(tmp_path) == whole
    (tmp_path / "images-00000004.npy").write_bytes(whole["images-00000008.npy"])
    with pytest.raises(RunError, match=r"images-00000004\.npy is damaged; remove it"):
        list(read_samples(tmp_path))
    generate(run.path, tmp_path, 6, file_format="npy", **OPTIONS)  # fewer: existing files stay
    assert (tmp_path / "images-00000008.npy").exists()
    assert sum(len(block) for block in read_samples(tmp_path)) == 6
    with pytest.raises(RunError, match="no finished samples"):
        list(read_samples(run.path))


@pytest.mark.parametrize("ranks", [2, 3])
def test_many_processes_make_the_same_images(run, tmp_path, monkeypatch, ranks):
    """In any order, with one process stopped and another started late."""
    generate(run.path, tmp_path / "one", 18, file_format="npy", **OPTIONS)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for rank in (1, 0, *range(2, ranks)):
        monkeypatch.setenv("RANK", str(rank))
        generate(run.path, tmp_path / "many", 18, file_format="npy", **OPTIONS)
        finished = (tmp_path / "many" / "manifest.json").exists()
        assert finished == (rank == (0 if ranks == 2 else ranks - 1))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_makes_the_same_images(run, tmp_path, mode):
    """"reduce-overhead" replays CUDA graphs on a GPU only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, compile in (("eager", "no"), ("compiled", mode)):
        generate(run.path, tmp_path / name, 6, **{**OPTIONS, "device": device, "compile": compile})
    eager, compiled = (np.concatenate(list(read_samples(tmp_path / n))).astype(int) for n in ("eager", "compiled"))
    assert np.abs(eager - compiled).max() <= 1


def test_ordered_is_a_model_without_shuffles(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    model = folder.load_model("ema")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # zero-initialised layers would hide the scan
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    folder.save_weights("ema", model)
    for name, ordered in (("shuffled", False), ("ordered", True)):
        generate(folder.path, tmp_path / name, 4, ordered=ordered, **OPTIONS)
    model.config = replace(model.config, regeneration=False)
    images = sample(model, range(4), (1, 8, 8), config=folder.load_config().diffusion, sampler="ddim", steps=4,
                    batch_size=4)  # fmt: skip
    drawn = [np.asarray(Image.open(tmp_path / "ordered" / f"{i:06d}.png")) for i in range(4)]
    assert np.array_equal(drawn, to_uint8(images)[..., 0])
    assert (tmp_path / "shuffled" / "000000.png").read_bytes() != (tmp_path / "ordered" / "000000.png").read_bytes()


def test_nothing_is_overwritten(run, tmp_path):
    generate(run.path, tmp_path / "out", 2, **OPTIONS)
    with pytest.raises(RunError, match="seed was 0 and is now 9"):
        generate(run.path, tmp_path / "out", 2, seed=9, **OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "000000.png").write_bytes(b"mine")
    with pytest.raises(RunError, match="choose another folder"):
        generate(run.path, tmp_path / "other", 2, **OPTIONS)


def test_nothing_asks_the_network(run, tmp_path, monkeypatch):
    """A run and its samples, while every connection and name lookup fails."""
    def refuse(*arguments):
        raise AssertionError(f"asks the network: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    train(config(steps=1), images, RunFolder(tmp_path / "run"), progress=False)
    generate(tmp_path / "run", tmp_path / "out", 2, **OPTIONS)


def test_errors(run, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        generate(tmp_path / "nowhere", tmp_path / "out", 2)
    for options, words in [
        ({"weights": "old"}, "weights is 'old'"),
        ({"steps": 3}, "divisor of the 20 steps"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"sampler": "dpm-solver", "steps": 21}, "from 1 to the 20 steps"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"file_format": "jpg"}, "format is 'jpg'"),
        ({"compile": "yes"}, "compile is 'yes'"),
    ]:
        with pytest.raises(ValueError, match=words):
            generate(run.path, tmp_path / "out", 2, **{**OPTIONS, **options})
    with pytest.raises(ValueError, match="images is 0"):
        generate(run.path, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_levels():
    """-1 is black, 1 is white; values between are rounded to the nearest of 256 levels."""
    levels = to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5]).view(1, 1, 1, 5))
    assert levels.flatten().tolist() == [0, 0, 128, 255, 255]


def test_sample_and_evaluate_check_that_weights_and_configuration_belong_together(run, tmp_path):
    generate(run.path, tmp_path / "out", 4, file_format="npy", **OPTIONS)
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_drawn(tmp_path / "out", copy)
    config = copy.weights("ema") / "config.json"
    config.write_text(config.read_text().replace('"regeneration": true', '"regeneration": false'))
    for use in (lambda: generate(copy.path, tmp_path / "new", 4, **OPTIONS),
                lambda: check_drawn(tmp_path / "out", copy)):  # fmt: skip
        with pytest.raises(RunError, match=r"holds no ema weights of this run .*config\.json does not belong to"):
            use()
    shutil.rmtree(copy.weights("ema"))
    shutil.copytree(copy.weights("raw"), copy.weights("ema"))
    with pytest.warns(UserWarning, match="drawn with other ema weights than"):
        check_drawn(tmp_path / "out", copy)


def test_sample_and_evaluate_compare_the_checksum_of_the_weights(run, tmp_path):
    """One bit of one weight is flipped; the file still loads."""
    generate(run.path, tmp_path / "out", 4, file_format="npy", **OPTIONS)
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    weights = copy.weights("ema") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for use in (lambda: generate(copy.path, tmp_path / "new", 4, **OPTIONS),
                lambda: check_drawn(tmp_path / "out", copy)):  # fmt: skip
        with pytest.raises(RunError, match=r"model\.safetensors does not match its checksum"):
            use()
    with pytest.raises(InputError, match="does not match its checksum"):
        VMDDPM.from_pretrained(copy.weights("ema"))
    (copy.weights("ema") / "model.sha256").unlink()  # weights of an older version have none
    assert VMDDPM.from_pretrained(copy.weights("ema"))


def test_weights_that_were_being_exchanged_are_used_as_they_were(run, tmp_path):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    copy.weights("ema").rename(copy.path / "weights" / ".ema.before")
    generate(run.path, tmp_path / "a", 4, **OPTIONS)
    generate(copy.path, tmp_path / "b", 4, **OPTIONS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert VMDDPM.from_pretrained(tmp_path / "run" / "weights" / "ema")


def test_an_evaluation_is_of_samples_that_are_finished_and_undamaged(run, tmp_path):
    generate(run.path, tmp_path, 8, file_format="npy", **OPTIONS)
    whole = (tmp_path / "images-00000004.npy").read_bytes()
    (tmp_path / "images-00000004.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match=r"images-00000004\.npy is damaged; remove it"):
        check_drawn(tmp_path, run)
    (tmp_path / "images-00000004.npy").write_bytes(whole)
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.bak")
    with pytest.raises(RunError, match="holds no finished samples"):
        check_drawn(tmp_path, run)
    (tmp_path / "loose").mkdir()
    check_drawn(tmp_path / "loose", run)  # not made by this program


@pytest.mark.parametrize(
    "name", ["../outside.npy", "/etc/hostname", "images-1.npy", "images-00000000.npy/../x.npy", ""]
)
def test_a_manifest_names_files_inside_its_folder_only(run, tmp_path, name):
    generate(run.path, tmp_path / "out", 4, file_format="npy", **OPTIONS)
    path = tmp_path / "out" / "manifest.json"
    np.save(tmp_path / "outside.npy", np.zeros((4, 8, 8, 1), np.uint8))
    manifest = json.loads(path.read_text())
    place = tmp_path / "out" / name
    digest = sha256(place) if place.is_file() else "0" * 64
    path.write_text(json.dumps({**manifest, "files": {name: digest}}))
    with pytest.raises(RunError, match="which is not a file of samples"):
        list(read_samples(tmp_path / "out"))
    with pytest.raises(RunError, match="which is not a file of samples"):
        check_drawn(tmp_path / "out", run)


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "{}", '{"images": true, "format": "png"}', '{"images": 4, "format": "npy"}',
     '{"images": "4", "format": "npy", "files": {}}', '{"images": 4, "format": "gif"}', "[" * 100_000, "\xff"],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error(run, tmp_path, manifest):
    generate(run.path, tmp_path, 4, file_format="npy", **OPTIONS)
    (tmp_path / "manifest.json").write_text(manifest, encoding="latin1")
    with pytest.raises(RunError, match=r"manifest\.json .*run its `vmddpm sample` command again"):
        list(read_samples(tmp_path))


def test_a_manifest_that_counts_more_than_it_names_is_an_error(run, tmp_path):
    generate(run.path, tmp_path, 4, file_format="npy", **OPTIONS)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"images": 4', '"images": 5'))
    with pytest.raises(RunError, match="lists 1 fewer images than it counts"):
        list(read_samples(tmp_path))
