"""`vmddpm sample`."""

from typing import Any

SUMMARY = "draw images"
HELP = """Draw synthetic images with a trained model; run the same command again to resume after an interruption.

example:
  vmddpm sample --run runs/brats --images 100 --sampler ddim --steps 50 --out samples
  vmddpm sample --run runs/brats --images 50000 --batch-size 64 --format npy --out fifty-thousand
  vmddpm sample --run runs/lungs --class pneumonia --guidance 2 --images 500 --out pneumonia
  vmddpm sample --run runs/from-masks --condition-images new-masks --images 40 --out from-new-masks
  torchrun --nproc-per-node 4 -m -- vmddpm.cli sample --run runs/brats --images 50000 --out fifty-thousand"""


def build(new_parser: Any) -> Any:
    parser = new_parser(description=HELP)
    parser.add_argument("--run", type=str, required=True, help="the run folder")
    parser.add_argument("--out", type=str, required=True, help="folder for the images; those already there are kept")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--sampler", type=str, default="ddpm", help="sampler: ddpm, ddim or dpm-solver; ignored by "
                        "GANs")  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=None,
        help="denoising steps, at most those of training, with ddim a divisor; default: all",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed: the same seed gives the same images")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time; it affects the images drawn")
    parser.add_argument("--class", dest="class_name", metavar="NAME", type=str, default=None,
                        help="class of the images, for a run with classes; by default each class in turn")  # fmt: skip
    parser.add_argument("--guidance", type=float, default=1.0,
                        help="guidance scale: 0 ignores the condition, 1 is as trained, 2 to 4 exaggerate it, in twice "
                        "the time")  # fmt: skip
    parser.add_argument("--condition-images", type=str, default=None,
                        help="folder of masks or other images to condition on")  # fmt: skip
    parser.add_argument("--weights", type=str, default="ema", help="weights of the run, ema (averaged) or raw")
    parser.add_argument("--ordered", action="store_true", help="scan in order, however the network was trained")
    parser.add_argument("--format", type=str, default=None, help="png, a file per image, nifti, a file per volume, or "
                        "npy, a file per batch; default: png or nifti")  # fmt: skip
    parser.add_argument(
        "--compile", type=str, default="no", help="mode of torch.compile: no, default, reduce-overhead (CUDA graphs)"
    )
    parser.add_argument("--device", type=str, default="auto", help="device: auto, cpu, cuda ...")
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm.data.remarks import counted
    from vmddpm.generate import generate
    from vmddpm.samples import balance

    made = generate(
        options.run, options.out, options.images, sampler=options.sampler, steps=options.steps, seed=options.seed,
        batch_size=options.batch_size, weights=options.weights, ordered=options.ordered, file_format=options.format,
        device=options.device, compile=options.compile, class_name=options.class_name, guidance=options.guidance,
        condition_images=options.condition_images,
    )  # fmt: skip
    print(f"{counted(made, 'image')} written to {options.out}"
          + (f"; the rest of the {options.images} already existed" if made < options.images else ""))  # fmt: skip
    if rows := balance(options.out):
        width = max(len(name) for name, _, _ in rows)
        print(f"{'class':<{width}}  training images  samples")
        print(*(f"{name:<{width}}  {data or '?':>15}  {drawn:>7}" for name, data, drawn in rows), sep="\n")
