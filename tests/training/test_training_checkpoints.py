"""Checkpoints: damaged, of another version, or malicious; the number kept; a full disk."""

import os
import subprocess
import warnings

import pytest
import torch

from vmddpm.training import RunError
from vmddpm.training.checkpoints import Checkpoints


def state(value):
    return {"model": {"weight": torch.full((50,), float(value))}, "seconds": 1.5}


@pytest.fixture
def store(tmp_path):
    """Three checkpoints saved, two kept: steps 2 and 3."""
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        store.save(step, state(step))
    return store


def steps(store):
    return [int(path.name[5:13]) for path in store.paths()]


def test_the_last_few_stay_and_the_newest_is_found(store):
    assert steps(store) == [2, 3]
    found = store.newest()
    assert found["step"] == 3
    assert found["seconds"] == 1.5
    assert torch.equal(found["model"]["weight"], torch.full((50,), 3.0))
    one = Checkpoints(store.folder, keep=1)
    one.save(4, state(4))
    assert steps(one) == [4]
    assert Checkpoints(store.folder / "nowhere").newest() is None


def test_a_checkpoint_cut_at_any_byte_is_passed_over(store):
    newest = store.paths()[-1]
    content = newest.read_bytes()
    for length in {*range(0, len(content), len(content) // 60), len(content) - 1}:
        newest.write_bytes(content[:length])
        message = rf"{newest.name} is damaged: {length} bytes, which differ from those written; it is skipped"
        with pytest.warns(UserWarning, match=message):
            assert store.newest()["step"] == 2


def test_a_flipped_bit_anywhere_is_found(store):
    newest = store.paths()[-1]
    content = newest.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        newest.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="it is skipped"):
            assert store.newest()["step"] == 2


def test_a_run_continues_past_a_damaged_checkpoint(store):
    """Damaged checkpoints of later steps are removed at the next save, so they cannot be loaded again."""
    store.paths()[-1].write_bytes(b"x")
    store.save(3, state(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.newest()["step"] == 3
    assert steps(store) == [2, 3]


def test_all_damaged_is_an_error_with_the_fix(store):
    for path in store.paths():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="it is skipped"),
        pytest.raises(RunError, match=r"no checkpoint can be read .* remove them to start"),
    ):
        store.newest()


def renamed(store, content):
    """Rename a file to a checkpoint of step 9, with the right checksum."""
    partial = store.folder / "new"
    torch.save(content, partial)
    digest = subprocess.run(["sha256sum", partial], capture_output=True, text=True, check=True).stdout[:32]
    os.rename(partial, store.folder / f"step-00000009-{digest}.pt")


def test_another_version_is_named_and_left_alone(store):
    renamed(store, {"schema": 99, "step": 9})
    with pytest.raises(RunError, match=r"another version of vmddpm \(format 99, this one reads 3\)"):
        store.newest()
    assert steps(store) == [2, 3, 9]


def test_a_checkpoint_cannot_run_code(store, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    renamed(store, {"schema": 3, "step": Malicious()})
    with pytest.warns(UserWarning, match="is not a checkpoint: Weights only load failed"):
        assert store.newest()["step"] == 3
    assert not (tmp_path / "owned").exists()
    torch.load(store.paths()[-1], weights_only=False)  # the pickle really executes
    assert (tmp_path / "owned").exists()


def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint(small_disk):
    store = Checkpoints(small_disk / "checkpoints")
    store.save(1, {"weight": torch.ones(500_000)})
    message = r"step 2 cannot be written .* the last one, step-00000001-.*\.pt, is intact. Make room"
    for size in (600_000, 1_000_000, 5_000_000):
        with pytest.raises(RunError, match=message):
            store.save(2, {"weight": torch.ones(size)})
        assert [path.name[:13] for path in store.folder.iterdir()] == ["step-00000001"]
    assert torch.equal(store.newest()["weight"], torch.ones(500_000))
    store.save(2, {"weight": torch.ones(10_000)})
    assert store.newest()["step"] == 2
