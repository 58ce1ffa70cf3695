"""Errors that users can fix. The command prints them as one line, and all other errors with their traceback."""


class VmddpmError(Exception):
    """An error that the user can fix; the message says what is wrong and what to do. Every exception that vmddpm raises
    on purpose is one of these, so any other exception is a bug."""


class InputError(VmddpmError, ValueError):
    """An unusable option, argument, environment variable or file."""
