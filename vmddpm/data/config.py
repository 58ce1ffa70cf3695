"""The configuration of a data set: one field for every choice that the paper leaves open."""

import math
from dataclasses import dataclass, field

from vmddpm.errors import VmddpmError
from vmddpm.numbers import check_numbers

AXES = ("axial", "coronal", "sagittal")
MIN_SPACING = 1e-4  # millimetres; typical of electron microscopes, not of patients
MAX_SIZE = 8192  # pixels per side; 8192^2 is the default `max_pixels`


class DataError(VmddpmError, ValueError):
    """Data that cannot be used; the message names the file or option, what is wrong, and how to fix it."""


@dataclass
class DataConfig:
    """Selection and preprocessing of the images.

    Quoted sentences are from the paper, sections IV-A "Datasets" and "Implementation"; the field implements a reading
    of the sentence.

    Attributes:
        root: a folder, an image file, or a store made by `vmddpm prepare`. A store keeps its own options (`size` and
            `channels` must be the same, `split` and `limit` select from it); a folder is searched recursively in sorted
            order (hidden files and folders are skipped, links are followed). Files are NIfTI and Analyze (.nii, .hdr
            with .img), FreeSurfer (.mgh, .mgz), MetaImage and NRRD (.mha, .nrrd, with the extra [itk]), DICOM (.dcm,
            .dicom, .ima, and files of any other name with DICOM content), pictures (PNG, JPEG, TIFF, BMP, PGM, WebP,
            JPEG 2000, GIF), or arrays (.npy). NIfTI and DICOM may be compressed by gzip.
        split: which split of a store, "train", "test" or "all". Other folders have no splits: all images are "train".
        pattern: shell pattern that a file's path below root must match, such as `*_flair.nii.gz`. It selects the
            modality and excludes label maps. The paper does not name the modality: "we use 6528 2D brain images under a
            single modality".
        modality: shell pattern for the Modality of DICOM files, such as `MR`; other files are left out, including all
            that are not DICOM. The same holds for the next two.
        series: shell pattern for the Series Description, or the Series Instance UID.
        image_type: shell pattern for the Image Type, with its values joined by backslashes: `ORIGINAL\\PRIMARY*`.
        limit: keep only the first `limit` slices, in sorted order of the paths. Null keeps all. "We use the first
            34,999 images for experiments".
        spatial_dims: 2 makes images from slices, 3 makes volumes. These are crops of NIfTI, FreeSurfer, MetaImage and
            NRRD volumes and of DICOM series, (depth, size, size) voxels from inferior to superior, anterior to
            posterior, and the patient's right to left. `model.spatial_dims` must be the same.
        spacing: voxel size of volumes in millimetres, one number or three for depth, height and width. Every volume is
            resampled to it, with antialiasing, along its own axes: oblique scans are not rotated.
        depth: depth of volumes in voxels; null for the same as `size`.
        stride: voxels from one crop of a volume to the next along every axis, up to the volume's ends; null for the
            centred crop alone.
        size: side of the images in pixels, or of volumes in voxels. The largest centred square of a slice, in
            millimetres if the file has a pixel spacing, is resized with antialiasing: "we uniformly scaled the image
            center to 128 × 128 resolution".
        channels: channels of the images, 1 (grey) or 3 (colour). Colour becomes grey by luminance, grey becomes colour
            by repetition.
        axes: slice directions of a NIfTI volume: axial, coronal and sagittal. DICOM and raster images are used as
            stored. "The 2D axial slices were then separated to form a training dataset".
        frames: which frames of a 4-D file: "all", only the "first", or a frame number from 0, such as one of several
            modalities along the last axis. With `spatial_dims` 3, "all" would mix them, and is refused. The paper does
            not name the cardiac phases: "1798 2D cardiac MRIs images from 3DMR scans".
        normalize: how intensities are mapped to [-1, 1]. "percentile" maps the two
            `percentiles` of each volume (a 3-D frame, or a DICOM or raster file); "window" maps `window`, or
            the file's own first VOI window or VOI table; "full" maps the whole range of the bit depth of a
            raster or colour image (12 bits if a 16-bit file uses no more), and the smallest to the largest value
            of other files. "auto" is "window" if there is a window, given here or in the file, else "full" if
            there is a bit depth, else "percentile"; so MR volumes use percentiles, CT files their window,
            photographs their full range. "regular normalization".
        normalize_by: scope of the range, "file" or "series": DICOM files of one series that have no window share their
            percentiles, or their smallest and largest value.
        percentiles: the lower and upper percentile, of the finite voxels of a volume.
        window: (centre, width) in the units of the rescaled values, such as (40, 400) in Hounsfield units for
            soft tissue in CT. It is used for every file.
        min_foreground: slices with a smaller share of foreground pixels are left out; 0 keeps all. A pixel is
            foreground if it is above 5 % of the normalised range. "we use 6528 2D brain images" is 22.9 per patient
            for 285 patients; the paper does not say which.
        on_error: handling of files that cannot be read: "fail" stops at the first and names it, "skip" leaves them out,
            counts them by reason, and lists them in a file.
        max_pixels: a larger picture or slice is refused by its header, before it is decoded.
        max_voxels: the same limit for the values in memory at once: a 3-D frame of a NIfTI volume, a whole DICOM file.
            Reading that many takes up to 6 GiB, or up to 10 GiB if the file stores 32 or 64 bits per value.
        max_members: an archive with more members is refused.
        cache_dir: folder of the decoded slices; by default `vmddpm` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        DataError: if a field has an invalid value.
    """

    root: str = ""
    split: str = "train"
    pattern: str = "*"
    modality: str | None = None
    series: str | None = None
    image_type: str | None = None
    limit: int | None = None
    spatial_dims: int = 2
    spacing: float | tuple[float, float, float] | None = None
    depth: int | None = None
    stride: int | None = None
    size: int = 128
    channels: int = 1
    axes: list[str] = field(default_factory=lambda: ["axial"])
    frames: str | int = "all"
    normalize: str = "auto"
    normalize_by: str = "file"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    min_foreground: float = 0.1
    on_error: str = "fail"
    max_pixels: int = 2**26
    max_voxels: int = 400_000_000
    max_members: int = 1_000_000
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("percentiles", "window"):  # JSON and YAML have lists only
            value = getattr(self, name)
            setattr(self, name, None if value is None else tuple(value))
        if isinstance(self.spacing, list):
            self.spacing = tuple(self.spacing)
        check_numbers(self, limits={"size": MAX_SIZE, "depth": MAX_SIZE}, error=DataError)
        self._check_volumes()
        _require(self.split in ("train", "test", "all"), "split", self.split, '"train", "test" or "all"')
        _require(self.size >= 1, "size", self.size, "at least 1")
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or null for all")
        _require(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        _require(
            0 < len(self.axes) == len(set(self.axes)) and set(self.axes) <= set(AXES),
            "axes",
            self.axes,
            f"a list of one or more of {', '.join(AXES)}, each once",
        )
        _require(
            self.frames in ("all", "first") or str(self.frames).isdecimal(),
            "frames",
            self.frames,
            '"all", "first", or a number from 0',
        )
        for name in ("max_pixels", "max_voxels", "max_members"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        modes = ("auto", "percentile", "window", "full")
        _require(self.normalize in modes, "normalize", self.normalize, f"one of {', '.join(modes)}")
        _require(self.normalize_by in ("file", "series"), "normalize_by", self.normalize_by, '"file" or "series"')
        _require(
            len(self.percentiles) == 2 and 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
            "percentiles",
            self.percentiles,
            "two increasing numbers from 0 to 100",
        )
        _require(
            self.window is None
            or (len(self.window) == 2 and all(map(math.isfinite, self.window)) and self.window[1] > 0),
            "window",
            self.window,
            "(centre, width) with a width above 0, or null",
        )
        _require(
            self.window is None or self.normalize in ("auto", "window"),
            "normalize",
            self.normalize,
            '"window" or "auto" when window is set',
        )
        _require(0 <= self.min_foreground <= 1, "min_foreground", self.min_foreground, "a share from 0 to 1")
        _require(self.on_error in ("fail", "skip"), "on_error", self.on_error, '"fail" or "skip"')

    def _check_volumes(self) -> None:
        _require(self.spatial_dims in (2, 3), "spatial_dims", self.spatial_dims, "2, for slices, or 3, for volumes")
        for name in ("spacing", "depth", "stride"):
            value = getattr(self, name)
            _require(self.spatial_dims == 3 or value is None, name, value, "null when spatial_dims is 2")
        for name in ("depth", "stride"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1, or null")
        if self.spatial_dims == 2:
            return
        _require(self.channels == 1, "channels", self.channels, "1 when spatial_dims is 3: volumes are grey")
        if self.spacing is not None:
            sides = self.voxel_sizes
            _require(
                len(sides) == 3 and all(MIN_SPACING <= side <= 1e3 for side in sides),
                "spacing", self.spacing, f"one or three numbers of mm from {MIN_SPACING:g} to 1000",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, size, size) for images, (channels, depth, size, size) for volumes."""
        depth = (self.depth or self.size,) if self.spatial_dims == 3 else ()
        return (self.channels, *depth, self.size, self.size)

    @property
    def voxel_sizes(self) -> tuple[float, ...]:
        """Voxel size of volumes in millimetres: depth, height and width.

        Raises:
            DataError: if `spacing` is None.
        """
        if self.spacing is None:
            raise DataError("spacing is None; volumes (spatial_dims 3) need the voxel size in millimetres, such as 1")
        return self.spacing if isinstance(self.spacing, tuple) else (self.spacing,) * 3


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise DataError(f"{name} is {value!r}; it must be {allowed}")
