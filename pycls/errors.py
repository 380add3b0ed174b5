"""What a user can do wrong, and what can go wrong while a run is under way.

Every package raises these two; only the command line catches them. An :class:`InputError` ends the process with exit
code 2 before anything was written, a :class:`RunError` with exit code 1. Both are shown as one line, never a traceback.
"""


class InputError(ValueError):
    """The user's input cannot work: an option, a file, a combination. The message says what, where and what would do."""


class RunError(RuntimeError):
    """A run that had started cannot go on: a disk is full, the loss is not finite, another rank died."""


class DamagedFile(InputError):
    """The file is not, or no longer, what was written."""
