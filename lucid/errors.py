"""Errors of lucid's own; everything else is a built-in TypeError, ValueError, IndexError, KeyError or OSError."""


class FormatError(ValueError):
    """A file that is not what it should be. The message names the file, what is wrong and what to do."""
