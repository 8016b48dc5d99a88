"""What goes wrong, in one line on stderr, with the exit codes of Unix."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

ERROR = 1
INTERRUPTED = 128 + 2  # by SIGINT
READER_GONE = 128 + 13  # by SIGPIPE


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions into one line and an exit code; warnings become lines too."""
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # What is still buffered has nowhere to go: Python would complain when it flushes at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE) from None
    except MemoryError as error:
        # lucid's and CuPy's; by name: there may be no need to import them.
        is_gpu = type(error).__name__ in ("DeviceMemoryError", "OutOfMemoryError")
        say(str(error) if is_gpu else "out of memory: give fewer or shorter texts at once, or a smaller --top-k or --beam-width")
        raise typer.Exit(ERROR) from None
    except RuntimeError as error:
        if type(error).__name__ != "DeviceError":
            raise
        say(str(error))
        raise typer.Exit(ERROR) from None
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        raise typer.Exit(ERROR) from error
    except (TypeError, ValueError, IndexError, ImportError, ArithmeticError) as error:
        say(". ".join([str(error).removesuffix("."), *getattr(error, "__notes__", [])]))
        raise typer.Exit(ERROR) from error
    finally:
        warnings.showwarning = before


def say(message: str) -> None:
    """Print one line on stderr."""
    with suppress(OSError):
        print("lucid: " + " ".join(message.split()), file=sys.stderr, flush=True)


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")
