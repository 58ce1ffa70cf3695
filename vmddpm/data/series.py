"""DICOM series with one file per slice: a common normalisation of the files, or one volume."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom import Ranges, modality_values, series_uid
from vmddpm.data.files import inflated, open_regular
from vmddpm.data.limits import check_voxels
from vmddpm.data.readers import kind_of
from vmddpm.data.transforms import display_range


def series_ranges(
    paths: Iterable[Path], config: DataConfig, in_order: Callable[[Any, Iterable[Any]], Iterator[Any]] = map
) -> Ranges:
    """Black and white of each series, by its UID, if `normalize_by` is "series"; otherwise empty.

    Every file is decoded once here, and again when its slices are read. Each process holds one series in memory.

    Args:
        in_order: like the builtin `map`; may use several processes.

    Raises:
        DataError: if a series has more values than `max_voxels`.
    """
    if config.normalize_by == "file":
        return {}
    series = _by_series(list(paths), config, in_order)
    found = in_order(partial(_range, config=config), series.values())
    return {uid: limits for uid, limits in zip(series, found) if limits is not None}


def volume_series(
    paths: Iterable[Path], config: DataConfig, in_order: Callable[[Any, Iterable[Any]], Iterator[Any]] = map
) -> dict[Path, list[Path]]:
    """The files of each DICOM series with several files, by the first file; empty if `spatial_dims` is 2.

    Args:
        in_order: as in `series_ranges`.
    """
    if config.spatial_dims == 2:
        return {}
    return {members[0]: members for members in _by_series(list(paths), config, in_order).values() if len(members) > 1}


def without_members(paths: Iterable[Path], series: Mapping[Path, Sequence[Path]]) -> list[Path]:
    """The paths without all but the first file of each series, which represents the series."""
    further = {path for members in series.values() for path in members[1:]}
    return [path for path in paths if path not in further]


def _by_series(
    paths: list[Path], config: DataConfig, in_order: Callable[[Any, Iterable[Any]], Iterator[Any]]
) -> dict[str, list[Path]]:
    series = defaultdict(list)
    for path, uid in zip(paths, in_order(partial(_uid, config=config), paths)):
        if uid:
            series[uid].append(path)
    return series


def _uid(path: Path, config: DataConfig) -> str | None:
    try:
        with open_regular(path) as file:
            return series_uid(inflated(file, config)) if kind_of(file, path.name) == "DICOM" else None
    except Exception:  # damage is reported when the file is read
        return None


def _range(paths: list[Path], config: DataConfig) -> tuple[float, float] | None:
    values: list[np.ndarray] = []
    for path in paths:
        try:
            with open_regular(path) as file:
                found = modality_values(inflated(file, config), config)
        except Exception:  # damage is reported when the file is read
            continue
        if found is not None:
            values.append(found.ravel())
            try:
                check_voxels([sum(map(len, values))], config)
            except DataError as error:
                raise DataError(f"{path}: its series {error}; or set normalize_by to file") from error
    mode = "full" if config.normalize == "full" else "percentile"
    return display_range(np.concatenate(values), mode, config) if values else None
