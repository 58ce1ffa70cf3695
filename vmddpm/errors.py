"""The errors of the user's making, told apart from ours: the command prints the first as a line, the others with their
traceback."""


class VmddpmError(Exception):
    """Something that the user can mend: the message names it, says what is wrong and what to do. Every exception that
    vmddpm raises on purpose is one of these, so any other that it raises is a fault of the program."""


class InputError(VmddpmError, ValueError):
    """An option, an argument, an environment variable or a file that cannot be used."""
