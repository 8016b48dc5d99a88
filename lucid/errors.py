"""Errors of lucid's own; everything else is a built-in TypeError, ValueError, IndexError, KeyError or OSError."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FormatError(ValueError):
    """A file that is not what it should be. The message names the file, what is wrong and what to do."""


@contextmanager
def of_folder(folder: Path) -> Iterator[None]:
    """Note on a FormatError, which names a file, the folder that the file is in: the last line of a traceback."""
    try:
        yield
    except FormatError as error:
        note = f"The folder is {folder}"
        if note not in getattr(error, "__notes__", []):
            error.add_note(note)
        raise
