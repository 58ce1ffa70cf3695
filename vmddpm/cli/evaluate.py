"""`vmddpm evaluate`."""

from pathlib import Path
from typing import Any, Literal

COMMON = ("extractor.path",)
SUMMARY = "compare samples with real images"
HELP = """Compare images drawn by `vmddpm sample` with real ones: Fréchet distance (FID), KID, precision and recall,
copies of training images, and with --metrics.radiomics 1000 the Fréchet Radiomic Distance of 1,000 images of each set.
The result is evaluation.json and closest.png in --out. The extractor's file is a program that runs with your rights;
use only files from sources you trust. Volumes are compared by their slices, or, with --slices none, whole, by a network
for volumes.

example:
  vmddpm evaluate --run runs/brats --samples samples --extractor.path inception-2015-12-05.pt --out results/brats
  vmddpm evaluate --run runs/lungs --samples drawn --extractor.path random --per-class --out results/lungs"""


def build(new_parser: Any) -> Any:
    from vmddpm.evaluation import ExtractorConfig, MetricsConfig

    parser = new_parser(description=HELP)
    parser.add_argument("--run", type=str, required=True, help="the run folder; its training images are the real ones")
    parser.add_argument("--samples", type=str, required=True, help="folder of 000000.png, 000001.png ...")
    parser.add_argument("--out", type=str, required=True, help="folder for the result")
    parser.add_argument("--root", type=str, default=None, help="present folder of the training images, if moved")
    parser.add_argument("--held-out", type=str, default=None, help="folder of real images the run has not seen; "
                        "by default the test split, if the training images are in a store with one")  # fmt: skip
    parser.add_argument("--slices", type=Literal["axial", "coronal", "sagittal", "none"], default="axial",
                        help="slices of volumes to compare; none compares whole volumes")  # fmt: skip
    parser.add_argument("--images", type=int, default=None, help="use only this many samples, the first ones")
    parser.add_argument("--per-class", action="store_true", help="also compare class by class, and train classifiers "
                        "on real images and on samples and test each on the other; for a run with classes")  # fmt: skip
    parser.add_argument("--classifier-steps", type=int, default=400, help="training steps of these classifiers, or 0")
    parser.add_class_arguments(ExtractorConfig, "extractor")
    parser.add_class_arguments(MetricsConfig, "metrics")
    return parser


def run(parser: Any, options: Any) -> None:
    from dataclasses import replace

    from vmddpm.data import DataError, SliceDataset, held_out_images
    from vmddpm.data.conditioned import ConditionReader
    from vmddpm.devices import choose_device
    from vmddpm.errors import InputError
    from vmddpm.evaluation import (
        Images,
        Labelled,
        SampleFolder,
        VolumeSlices,
        check_images,
        describe_classes,
        describe_real,
        describe_result,
        evaluate,
        evaluate_classes,
        load_extractor,
        load_radiomics,
    )
    from vmddpm.samples import check_drawn, sample_labels
    from vmddpm.training import RunFolder
    from vmddpm.training.conditions import separator_of

    parts = parser.instantiate(options)
    choose_device(parts.metrics.device)  # report an unusable device before decoding images
    if parts.metrics.radiomics:
        load_radiomics()  # report missing packages before decoding images
    samples, folder = SampleFolder(parts.samples, parts.images), RunFolder(parts.run)
    config = folder.load_config()
    data, classes, labels = config.data, config.model.classes, None
    whole = data.spatial_dims == 3 and parts.slices == "none"
    if whole and parts.metrics.radiomics:
        raise DataError("metrics.radiomics needs slices; set it to 0, or --slices to axial, coronal or sagittal")
    extractor = load_extractor(parts.extractor, axes=3 if whole else 2)
    if parts.per_class and data.spatial_dims == 3:
        raise InputError(f"{parts.run} draws volumes, which are not compared class by class; leave per-class out")
    if parts.per_class:
        if not classes:
            raise InputError(f"{parts.run} was trained without classes; leave per-class out")
        labels = sample_labels(parts.samples, len(samples), classes, separator_of(config))
    check_drawn(parts.samples, folder)
    data = replace(data, root=parts.root) if parts.root else data
    if not data.root:
        raise DataError(f"{parts.run} was trained on images that are in no folder, such as the demo's brain; give a "
                        "folder of real images with --root")  # fmt: skip
    least = 1 if data.spatial_dims == 3 and not whole else None  # volumes have more slices
    check_images(samples, "samples", data.shape, parts.metrics, least)  # before decoding any
    conditions = ConditionReader(config.condition, data) if config.condition.is_set else None
    training, data_warnings = SliceDataset(data, progress=True), []
    conditioned = None if conditions is None else conditions.read(training, classes, progress=True)
    if reason := folder.difference(conditioned or training):
        reason = f"{data.root} does not hold the images that {parts.run} was trained on: {reason}"
        if not parts.root:
            raise DataError(f"{reason}; give the folder of real images with --root")
        data_warnings.append(reason)
    others = held_out_images(data, parts.held_out)
    held_out_labelled = None
    if labels is not None and others is not None:
        held_out = ConditionReader(replace(config.condition, image=None), others.config).read(others, classes)
        held_out_labelled = Labelled(others, held_out.labels)
    drawn: Images = samples
    real_images: Images = training
    unseen: Images | None = others
    if data.spatial_dims == 3 and not whole:
        drawn, real_images = VolumeSlices(samples, parts.slices), VolumeSlices(training, parts.slices, distinct=True)
        unseen = None if others is None else VolumeSlices(others, parts.slices, distinct=True)
        print(f"{len(drawn):,} {parts.slices} slices of {len(samples):,} samples, {len(real_images):,} different ones "
              f"of {len(training):,} training volumes")  # fmt: skip
    real = describe_real(real_images, extractor, parts.metrics, unseen)
    result = evaluate(real, drawn, extractor, parts.metrics, Path(parts.out), extra_warnings=data_warnings)
    print(describe_result(result))
    if labels is not None and conditioned is not None:
        found = evaluate_classes(
            real, Labelled(training, conditioned.labels), Labelled(samples, labels), held_out_labelled, classes,
            extractor, parts.metrics, Path(parts.out), classifier_steps=parts.classifier_steps,
        )  # fmt: skip
        print(describe_classes(found))
        print(f"written to {Path(parts.out) / 'per_class.json'}")
    print(f"written to {Path(parts.out) / 'evaluation.json'}; look at {Path(parts.out) / 'closest.png'}")
