"""Writes the files of a data set to a store, in many processes."""

import ctypes
import hashlib
import multiprocessing
import signal
import sys
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from vmddpm.data.cache import encode
from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom import Ranges
from vmddpm.data.files import open_regular, parts_of
from vmddpm.data.image_file import ImageWriter
from vmddpm.data.layouts import Layout, Source
from vmddpm.data.patients import merge_patients, mixed_patients, patient_of, same_subjects, similar_names
from vmddpm.data.readers import read_content, read_file
from vmddpm.data.remarks import Excluded, Remark, listed, summary
from vmddpm.data.series import series_ranges, volume_series
from vmddpm.data.store import StoredSlice, new_store, split_of, write_records
from vmddpm.data.tally import Tally

Item = TypeVar("Item")
Result = TypeVar("Result")
FILES_IN_FLIGHT = 4  # files in flight per process


@dataclass(frozen=True)
class Prepared:
    """The result of preparing one file: encoded images with their lines of the manifest, remarks, and the study of a
    DICOM file (see `patients.patient_of`)."""

    images: list[np.ndarray]
    slices: list[StoredSlice]
    seen: int
    remarks: list[Remark]
    study: str | None = None


def prepare_store(
    layout: Layout, config: DataConfig, out: Path, *, made_from: dict[str, Any], test_share: float = 0.0,
    processes: int = 1, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write the store `out`; return the content of its store.json, the number of images and patients in each split, and
    the seconds it took.

    Args:
        layout: the files.
        config: preprocessing; the store depends on it, on the files and on `test_share`, not on `processes`.
        made_from: name and options of the data set, to be recorded.
        test_share: approximate share of the patients in the test split.

    Raises:
        DataError: if `out` holds anything but leftovers of an interrupted call, or cannot be written; if a file cannot
            be read (`on_error: fail`); or if no image is left.
    """
    if not 0 <= test_share < 1:
        raise DataError(f"test_share is {test_share}; it must be from 0 to below 1")
    if processes < 1:
        raise DataError(f"processes is {processes}; it must be at least 1")
    slices: list[StoredSlice] = []
    of_studies: dict[str, str] = {}
    remarks = list(layout.left_out)
    began, seen = time.perf_counter(), 0
    try:
        with (
            new_store(out) as store_json,
            ImageWriter(out / "images.npy", config.shape) as writer,
            tqdm(desc="files", total=layout.files, disable=not progress, dynamic_ncols=True) as bar,
        ):
            paths = [source.path for source in layout.sources] if isinstance(layout.sources, list) else []

            def in_processes(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
                return in_order(work, items, processes)

            ranges = series_ranges(paths, config, in_processes)
            series = volume_series(paths, config, in_processes)
            # The first file of a series represents the whole series.
            further = {path for members in series.values() for path in members[1:]}
            sources = (source for source in layout.sources if source.path not in further) if series else layout.sources
            work = partial(prepared, config=config, ranges=ranges, series=series)
            for done in in_order(work, sources, processes):
                bar.update()
                remarks += done.remarks
                if config.on_error == "fail" and (failed := [r for r in done.remarks if r.kind == "error"]):
                    raise DataError(
                        f"{failed[0].source}: {failed[0].reason}. Repair or remove it, or set on_error to skip"
                    )
                left = None if config.limit is None else config.limit - len(slices)
                seen += done.seen
                for image, info in list(zip(done.images, done.slices))[:left]:
                    writer.append(image)
                    slices.append(info)
                    if done.study and info.patient != done.study:
                        of_studies.setdefault(done.study, info.patient)
                if len(slices) == config.limit:
                    break
                bar.set_postfix(images=len(slices), refresh=False)
            patients = merge_patients({info.source: info.patient for info in slices}, of_studies)
            slices = [replace(info, patient=(patient := patients[info.source]),
                              split=info.split or split_of(patient, test_share)) for info in slices]  # fmt: skip
            _warn_of_similar_names(slices)
            if not slices:
                hint = "; lower min_foreground" if seen else ""
                raise DataError(listed(f"none of the {seen} slices is left{hint}", summary(remarks)))
            writer.commit()
            options = asdict(config)
            for name in ("root", "cache_dir", "split"):  # locations do not affect the content
                del options[name]
            made = {**made_from, "options": options, "test_share": test_share, "seen": seen,
                    "remarks": [asdict(remark) for remark in remarks]}  # fmt: skip
            write_records(out, slices, made, store_json)
    except OSError as error:
        raise DataError(f"{out}: the store cannot be written ({error.strerror or error}); make room there") from error
    splits = {split: [info for info in slices if info.split == split] for split in ("train", "test")}
    if test_share:
        for split in (split for split, infos in splits.items() if not infos):
            warnings.warn(
                f"the {split} split is empty: {len({info.patient for info in slices})} patients are too few "
                f"for test_share {test_share:g}; change it, or find more patients in the paths with --patient",
                stacklevel=2,
            )
    counts = {split: (len(infos), len({info.patient for info in infos})) for split, infos in splits.items()}
    return {**made, "remarks": remarks, "images": len(slices), "splits": counts, "seconds": time.perf_counter() - began}


def _warn_of_similar_names(slices: list[StoredSlice]) -> None:
    groups = similar_names({info.source: None for info in slices if info.patient == info.source})
    if groups:
        count = sum(len(group) for group in groups)
        warnings.warn(
            f"{count} files in the folder itself each count as one patient, but names such as "
            f"{groups[0][0]} and {groups[0][1]} look like one patient's: that patient may be in both splits; "
            "--patient finds the patient in the path",
            stacklevel=3,
        )
    patients = {info.source: info.patient for info in slices}
    if mixed := mixed_patients(patients):
        folder, inside = next(iter(mixed.items()))
        warnings.warn(
            f"{len(mixed)} folders such as {folder} each count as one patient, but their contents, such as "
            f"{inside[0]} and {inside[1]}, look like several patients; --patient finds the patient in the path",
            stacklevel=3,
        )
    if groups := same_subjects(patients):
        count = sum(len(group) for group in groups)
        warnings.warn(
            f"{count} files such as {groups[0][0]} and {groups[0][-1]} may be one patient's, but count as several "
            "patients: that patient may be in both splits; --patient finds the patient in the path",
            stacklevel=3,
        )


def prepared(
    source: Source, config: DataConfig, ranges: Ranges, series: Mapping[Path, Sequence[Path]] | None = None
) -> Prepared:
    """Decode one file, or one series of files. Runs in a worker process, independent of all others."""
    images: list[np.ndarray] = []
    slices: list[StoredSlice] = []
    tally = Tally(source.name, config)
    try:
        if source.content is None:
            members = (series or {}).get(source.path, ())
            digest = _sha256(*members or [source.path])
            planes = read_file(source.path, config, ranges, members)
        else:
            digest = hashlib.sha256(source.content).hexdigest()
            planes = read_content(source.content, source.name, config)
        patient, study = (source.patient, None) if source.patient else patient_of(source.path, source.name, config)
        for plane, image in tally.kept(planes):
            images.append(encode(image))
            slices.append(StoredSlice(source=source.name, patient=patient, split=source.split or "",
                                      axis=plane.axis, index=plane.index, frame=plane.frame,
                                      black=float(plane.black), white=float(plane.white),
                                      crc32=zlib.crc32(images[-1].tobytes()), source_sha256=digest))  # fmt: skip
    except (DataError, OSError) as error:
        kind = "class" if isinstance(error, Excluded) else "error"
        return Prepared([], [], 0, [Remark(source.name, kind, str(error))])
    return Prepared(images, slices, tally.seen, tally.remarks(), study)


def _sha256(*paths: Path) -> str:
    """The SHA-256 of the concatenated files; a header is followed by its voxels."""
    digest = hashlib.sha256()
    for part in (part for path in paths for part in parts_of(path)):
        with open_regular(part) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def in_order(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yield work(item) for each item, in order, from many processes that run a few items ahead.

    Raises:
        DataError: if a process is killed.
    """
    if processes == 1:
        yield from map(work, items)
        return
    # fork starts workers at once. It is safe because no threads, which a fork does not copy, were used before.
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(processes, multiprocessing.get_context(method), _initialize_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= FILES_IN_FLIGHT * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps because memory ran out; run it again with fewer processes"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _initialize_worker() -> None:
    """Set up a worker: one thread, Ctrl-C ignored, killed when its parent ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
