"""The README's picture: 6 x 6 real and 6 x 6 synthetic slices of a demo run.

    make demo MINUTES=10
    python -m benchmarks.demo_picture runs/demo --out docs/demo.png

It draws new images from the run's averaged weights, which takes half a minute, prints their figures of merit, and
writes the picture with the current titles of the demo.
"""

import argparse
from pathlib import Path

from vmddpm.demo import draw_images, halves, mni152_slices, progress, titles
from vmddpm.demo.picture import save_comparison
from vmddpm.errors import VmddpmError
from vmddpm.evaluation import figures_of_merit
from vmddpm.training import RunFolder


def picture(run: Path, out: Path, images: int = 36) -> None:
    """Raises RunError if there is no run with weights in `run`."""
    folder = RunFolder(run)
    config, model = folder.load_config(), folder.load_model("ema")
    real, others = halves(mni152_slices(config.data), images)
    synthetic = draw_images(model, config, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_comparison(real, synthetic, out, titles(progress(folder)[0]))
    for name, shown in (("synthetic", synthetic), ("real", real)):
        print(f"{name}: {figures_of_merit(shown, others)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a demo run")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.png"))
    parser.add_argument("--images", type=int, default=36, help="images of each kind")
    options = parser.parse_args()
    try:
        picture(options.run, options.out, options.images)
    except VmddpmError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
