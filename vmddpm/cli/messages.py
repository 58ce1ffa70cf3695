"""Prints the library's `logging` messages on the terminal: information on stdout, warnings and errors on stderr."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Failures to write propagate: the command ends if the reader of its output has exited.
        if record.levelno < logging.WARNING:
            _write(record.getMessage(), sys.stdout)
        else:
            print_message(record.levelname.lower(), record.getMessage())


def print_message(kind: str, text: str) -> None:
    """Print a message on stderr."""
    _write(f"{kind}: {text}", sys.stderr)


def _write(text: str, file: TextIO) -> None:
    """Print on a separate line, above a progress bar if there is one."""
    write = sys.modules["tqdm"].tqdm.write if sys.modules.get("tqdm") else print
    write(text, file=file)
    file.flush()


@contextmanager
def shown() -> Iterator[None]:
    """Show the messages of `vmddpm` and `vmddpm_kernels` within the context."""
    terminal, loggers = _Terminal(), [logging.getLogger(name) for name in ("vmddpm", "vmddpm_kernels")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(terminal)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.removeHandler(terminal)
            logger.setLevel(level)
