"""`vmddpm evaluate`."""

from pathlib import Path
from typing import Any

COMMON = ("extractor.path",)
SUMMARY = "compare samples with real images"
HELP = """Compare the images that `vmddpm sample` drew with real ones: Fréchet distance (FID), KID, precision and
recall, copies of training images, and with --metrics.radiomics 1000 the Fréchet Radiomic Distance of 1,000 images of
each side. The result is evaluation.json and closest.png in --out. The extractor's file is a program that runs with your
rights; take it from whom you would take a program.

example:
  vmddpm evaluate --run runs/brats --samples samples --extractor.path inception-2015-12-05.pt --out results/brats"""


def build(new_parser: Any) -> Any:
    from vmddpm.evaluation import ExtractorConfig, MetricsConfig

    parser = new_parser(description=HELP)
    parser.add_argument("--run", type=str, required=True, help="the run folder; its training images are the real ones")
    parser.add_argument("--samples", type=str, required=True, help="folder of 000000.png, 000001.png ...")
    parser.add_argument("--out", type=str, required=True, help="folder for the result")
    parser.add_argument("--root", type=str, default=None, help="where the training images lie now, if elsewhere")
    parser.add_argument("--held-out", type=str, default=None, help="folder of real images the run has not seen; "
                        "by default the test split, if the training images are a store that has one")  # fmt: skip
    parser.add_argument("--images", type=int, default=None, help="the first so many samples only")
    parser.add_class_arguments(ExtractorConfig, "extractor")
    parser.add_class_arguments(MetricsConfig, "metrics")
    return parser


def run(parser: Any, options: Any) -> None:
    from dataclasses import replace

    from vmddpm.data import DataError, SliceDataset, held_out_images
    from vmddpm.devices import choose_device
    from vmddpm.evaluation import (
        SampleFolder,
        check_images,
        describe_real,
        describe_result,
        evaluate,
        load_extractor,
        load_radiomics,
    )
    from vmddpm.samples import check_drawn
    from vmddpm.training import RunFolder

    parts = parser.instantiate(options)
    choose_device(parts.metrics.device)  # an unusable one is told before images are decoded
    if parts.metrics.radiomics:
        load_radiomics()  # so are missing packages
    extractor = load_extractor(parts.extractor)
    samples, folder = SampleFolder(parts.samples, parts.images), RunFolder(parts.run)
    data = folder.load_config().data
    check_drawn(parts.samples, folder)
    data = replace(data, root=parts.root) if parts.root else data
    if not data.root:
        raise DataError(f"{parts.run} was trained on images that lie in no folder, such as the demo's brain; name a "
                        "folder of real images by --root")  # fmt: skip
    check_images(samples, "samples", (data.channels, data.size, data.size), parts.metrics)  # before any is decoded
    training, doubts = SliceDataset(data, progress=True), []
    if told := folder.difference(training):
        told = f"{data.root} does not hold the images that {parts.run} was trained on: {told}"
        if not parts.root:
            raise DataError(f"{told}; name the folder where they lie now by --root, which may be another on purpose")
        doubts.append(told)
    real = describe_real(training, extractor, parts.metrics, held_out_images(data, parts.held_out))
    result = evaluate(real, samples, extractor, parts.metrics, Path(parts.out), doubts=doubts)
    print(describe_result(result))
    print(f"written to {Path(parts.out) / 'evaluation.json'}; look at {Path(parts.out) / 'closest.png'}")
