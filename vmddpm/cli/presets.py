"""Configurations in the package, which --config accepts by name."""

from importlib.resources import files

PRESETS = sorted(path.name[:-5] for path in files("vmddpm.presets").iterdir() if path.name.endswith(".yaml"))


def with_preset_files(argv: list[str]) -> list[str]:
    """Replace --config NAME of a preset by --config FILE."""
    expanded: list[str] = []
    for word in argv:
        name = word.removeprefix("--config=")
        after_config = bool(expanded) and expanded[-1] == "--config"
        if name in PRESETS and (after_config or word.startswith("--config=")):
            word = word[: len(word) - len(name)] + str(files("vmddpm.presets") / f"{name}.yaml")
        expanded.append(word)
    return expanded
