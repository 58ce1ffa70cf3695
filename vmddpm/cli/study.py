"""`vmddpm study`; its options and their help come from CreateOptions and DataConfig."""

from typing import Any

SUMMARY = "ask radiologists: real or synthetic?"
HELP = """Show real and synthetic images to readers on a web page, keep their answers, and report on them.

example:
  vmddpm study create --real BraTS2018 --synthetic samples --images 100 --out study
  vmddpm study serve study
  vmddpm study report study"""

CREATE = """Select real and synthetic images, and prepare both in the same way.

example:
  vmddpm study create --real BraTS2018 --real-pattern '*_flair.nii.gz' --synthetic samples --images 100 --out study"""

READERS = """Register readers, or give them new passwords. The passwords are shown once and stored as hashes.

example:
  vmddpm study readers study anna ben"""

SERVE = """Serve the page, to this machine only or, if readers have passwords, to others.

example:
  vmddpm study serve study
  vmddpm study serve study --host 0.0.0.0 --certificate study.pem --private-key study.key"""

REPORT = """Tables and statistics of the answers, as Markdown, CSV, PNG and PDF.

example:
  vmddpm study report study
  vmddpm study report --counts 86 14 81 17 44 28 58 21"""


COMMANDS = {
    "create": "make a study from two folders of images",
    "readers": "register readers and make their passwords",
    "serve": "serve the page",
    "report": "tables and statistics",
}
COMMON = ("data.size", "data.channels")


def build(new_parser: Any, name: str) -> Any:
    builders = {"create": _create_options, "readers": _readers_options, "serve": _serve_options,
                "report": _report_options}  # fmt: skip
    return builders[name](new_parser)


def _create_options(new_parser: Any) -> Any:
    from vmddpm.data import DataConfig
    from vmddpm.study.create import CreateOptions

    create = new_parser(description=CREATE)
    create.add_argument("--config", action="config", help="a YAML file with these options")
    create.add_argument("--real", type=str, required=True, help="folder of real images")
    create.add_argument("--synthetic", type=str, required=True, help="folder of synthetic images")
    create.add_argument("--out", type=str, required=True, help="folder of the study; it must not exist")
    create.add_argument("--real-pattern", type=str, default="*", help="shell pattern of the real images")
    create.add_argument("--synthetic-pattern", type=str, default=None,
                        help="shell pattern of the synthetic images; default: all, or only the numbered images in a "
                             "folder of `vmddpm sample`")  # fmt: skip
    create.add_class_arguments(CreateOptions)
    create.add_class_arguments(DataConfig, "data", skip={"root", "pattern"})
    return create


def _readers_options(new_parser: Any) -> Any:
    readers = new_parser(description=READERS)
    readers.add_argument("study", type=str, help="the folder of the study")
    readers.add_argument("codes", type=str, nargs="+", help="reader codes: letters, digits, - and _")
    return readers


def _serve_options(new_parser: Any) -> Any:
    serve = new_parser(description=SERVE)
    serve.add_argument("study", type=str, help="the folder of the study")
    serve.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0 is all")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on")
    serve.add_argument("--certificate", type=str, default=None, help="certificate for HTTPS, PEM")
    serve.add_argument("--private-key", type=str, default=None, help="its private key, PEM")
    return serve


def _report_options(new_parser: Any) -> Any:
    report = new_parser(description=REPORT)
    report.add_argument("study", type=str, nargs="?", default=None, help="the folder of the study")
    report.add_argument("--key", type=str, default=None, help="path of the key, if it is not in the study's folder")
    report.add_argument("--counts", type=int, nargs="+", default=None,
                        help="printed counts in place of a study, four per reader: real judged real and synthetic, "
                             "then synthetic judged real and synthetic")  # fmt: skip
    report.add_argument("--margin", type=float, default=0.1,
                        help="margin of the equivalence test; choose it before the study")  # fmt: skip
    report.add_argument("--out", type=str, default=None, help="folder for the files; default: `report` in the study")
    return report


def run(parser: Any, options: Any, name: str) -> None:
    {"create": _create, "readers": _readers, "serve": _serve, "report": _report}[name](options)


def _create(options: Any) -> None:
    from dataclasses import fields, replace
    from pathlib import Path

    from vmddpm.data import DataConfig
    from vmddpm.study.create import CreateOptions, create_study

    real = DataConfig(root=options.real, pattern=options.real_pattern, **vars(options.data))
    drawn_here = (Path(options.synthetic) / "sampling.yaml").exists()  # the folder then also holds grid.png
    pattern = options.synthetic_pattern or ("[0-9]*.png" if drawn_here else "*")
    synthetic = replace(real, root=options.synthetic, pattern=pattern, split="all")
    chosen = CreateOptions(**{field.name: options[field.name] for field in fields(CreateOptions)})
    differences = create_study(real, synthetic, options.out, chosen, progress=True)
    print(f"{options.out}: {chosen.images} real and {chosen.images} synthetic images; key.json says which is which; "
          "the server does not need it: move it away from the readers, and pass it to `report --key`")  # fmt: skip
    if differences:
        print("warning: the classes can be told apart without looking at anatomy. Prepare both alike, or report it:")
        print("\n".join(f"  {difference}" for difference in differences))
    print(f"next: vmddpm study serve {options.out}")


def _readers(options: Any) -> None:
    from vmddpm.study.folder import Study
    from vmddpm.study.readers import register

    for code, password in register(Study.open(options.study), options.codes).items():
        print(f"{code}  {password}")


def _serve(options: Any) -> None:
    from vmddpm.study.server import serve

    serve(options.study, options.host, options.port, options.certificate, options.private_key)


def _report(options: Any) -> None:
    from pathlib import Path

    from vmddpm.study.folder import Study, StudyError
    from vmddpm.study.report import report_on, report_on_counts

    if (options.study is None) == (options.counts is None):
        raise StudyError("report needs either the folder of a study or --counts")
    out = Path(options.out) if options.out else None
    if options.counts is not None:
        print(report_on_counts(options.counts, options.margin, out))
    else:
        study = Study.open(options.study)
        out = out or study.path / "report"
        print(report_on(study, options.margin, out, Path(options.key) if options.key else None))
    if out:
        print(f"\nin {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
