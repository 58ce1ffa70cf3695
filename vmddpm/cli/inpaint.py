"""`vmddpm inpaint`."""

from typing import Any

SUMMARY = "redraw a region of real images"
HELP = """Redraw the masked region of each image with a model that was trained without masks: RePaint (Lugmayr et al.,
2022). The rest of the image does not change. Masks have the names and sizes of the images; nonzero pixels are redrawn.
Run the same command again to resume after an interruption.

example:
  vmddpm inpaint --run runs/brats --real slices --masks regions --out filled
  vmddpm inpaint --run runs/brats --real scans --pattern '*_t1.nii' --masks scans --mask-pattern '*_seg.nii' --out new
  vmddpm inpaint --run runs/brats --real slices --masks regions --steps 100 --resamplings 5 --out quickly-filled"""


def build(new_parser: Any) -> Any:
    parser = new_parser(description=HELP)
    parser.add_argument("--run", type=str, required=True, help="the run folder")
    parser.add_argument("--real", type=str, required=True, help="folder of the images")
    parser.add_argument("--masks", type=str, required=True, help="folder of the masks")
    parser.add_argument("--out", type=str, required=True, help="folder for the result; images already there are kept")
    parser.add_argument("--pattern", type=str, default="*", help="shell pattern of the images")
    parser.add_argument("--mask-pattern", type=str, default="*", help="shell pattern of the masks; its stars match the "
                        "same text as those of the images' pattern")  # fmt: skip
    parser.add_argument("--sampler", type=str, default="ddpm", help="ddpm or ddim")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps; default: 250, or all if fewer")
    parser.add_argument("--jump", type=int, default=10, help="steps that a resampling goes back")
    parser.add_argument("--resamplings", type=int, default=10, help="how often each stretch of steps is run: 1 is "
                        "fastest, more fit the region better to its surroundings")  # fmt: skip
    parser.add_argument("--class", dest="class_name", metavar="NAME", type=str, default=None,
                        help="class of the drawn region, for a run with classes")  # fmt: skip
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale of the class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn region")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time; it affects the images drawn")
    parser.add_argument("--weights", type=str, default="ema", help="weights of the run, ema (averaged) or raw")
    parser.add_argument("--device", type=str, default="auto", help="device: auto, cpu, cuda ...")
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm.data.remarks import counted
    from vmddpm.inpaint import inpaint_images

    names = ("pattern", "mask_pattern", "sampler", "steps", "jump", "resamplings", "seed", "weights", "device",
             "class_name", "guidance")  # fmt: skip
    made = inpaint_images(options.run, options.real, options.masks, options.out, batch_size=options.batch_size,
                          **{name: options[name] for name in names})  # fmt: skip
    print(f"{counted(made, 'image')} in {options.out}; sources.csv there lists the source of each")
