"""The errors a user can cause, each saying what was expected, what was found, where, and what to do."""

from __future__ import annotations


class AHNetError(Exception):
    """An error that a user can mend.

    Args:
      where: the file, case, setting or address at fault.
      expected: what would have been right.
      found: what was there instead.
      remedy: what to do about it; may be empty where `expected` says it all.
    """

    def __init__(self, where: object, expected: str, found: object, remedy: str = ""):
        super().__init__(where, expected, found, remedy)
        self.where = str(where)
        self.expected = expected
        self.found = str(found)
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.where}: expected {self.expected}, found {self.found}"
        line = f"{line}. {self.remedy}" if self.remedy else line
        return " ".join(line.split())


class InputError(AHNetError):
    """A volume, label map, record or folder is missing, damaged or inconsistent."""


class SettingsError(AHNetError):
    """A command-line option, a setting or a combination of them is not possible."""


class ModelError(AHNetError):
    """A network, checkpoint, weight file or SavedModel does not fit what is asked of it."""


class ServingError(AHNetError):
    """A model server can't be reached or refuses a request."""


class PipelineError(AHNetError):
    """A pipeline can't be launched, or one of its components stopped it."""


class Stopped(Exception):  # noqa: N818
    """A signal ended the work before its end; what was done is saved, and can be gone on with.

    Args:
      signal: its number; the command exits with 128 more.
      message: what stopped where, and how to go on.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(signal, message)
        self.signal = signal
        self.message = message

    def __str__(self) -> str:
        return self.message
