"""Lines in, records out: from a file or a pipe, in batches, with progress."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import typer

from lucid.cli.errors import ERROR, say

# Read at once: some thousands of tokens, enough to keep the kernels busy; results come after each.
_BYTES_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a stream.

    Attributes
    ----------
    number : int. From 1.
    text : str. Bytes that are not UTF-8 are replaced.
    error : str or None. What is wrong with it.
    """

    number: int
    text: str
    error: str | None = None


def read_batches(stream: BinaryIO) -> Iterator[tuple[list[Line], int]]:
    """Yield the lines that are there and the number of bytes read for them; wait only where there are none.

    Parameters
    ----------
    stream : binary file that can ``read1``

    Notes
    -----
    Lines end with a line feed, or carriage return and line feed. Blank ones are counted but not yielded.
    """
    number, n_bytes = 0, 0
    unfinished: list[bytes] = []
    while chunk := stream.read1(_BYTES_AT_ONCE):  # type: ignore[attr-defined]
        n_bytes += len(chunk)
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*unfinished, whole[0]])
            unfinished = []
            lines = _lines(whole, number)
            number += len(whole)
            yield lines, n_bytes
            n_bytes = 0
        unfinished.append(rest)
    if rest := b"".join(unfinished):
        yield _lines([rest], number), n_bytes


def _lines(raw: list[bytes], number: int) -> list[Line]:
    lines = []
    for i, line in enumerate(raw, number + 1):
        try:
            text, error = line.decode("utf-8"), None
        except UnicodeDecodeError as cause:
            text = line.decode("utf-8", "replace")
            error = f"not UTF-8: byte 0x{line[cause.start]:02x} at offset {cause.start} of the line"
        if text := text.rstrip("\r\n"):
            if not text.isspace():
                lines.append(Line(i, text, error))
    return lines


def to_json(record: dict[str, Any]) -> str:
    """Return a record as a line of JSON, plain where standard output cannot hold every character."""
    return json.dumps(record, ensure_ascii=sys.stdout.encoding.lower() not in ("utf-8", "utf8"))


def answer_each(texts: list[str], answer: Callable[[list[str]], list[Any]]) -> list[Any]:
    """Return answer(texts), with the message of the exception, a str, in the place of a text that has no answer.

    Parameters
    ----------
    texts : list of str
    answer : function of a list of texts; raises ValueError or IndexError if one of them is wrong
    """
    if not texts:
        return []
    try:
        return answer(texts)
    except (ValueError, IndexError) as error:
        if len(texts) == 1:
            return [str(error)]
    half = len(texts) // 2
    return answer_each(texts[:half], answer) + answer_each(texts[half:], answer)


@contextmanager
def open_lines(path: Path | None) -> Iterator[BinaryIO | None]:
    """Open a file, or standard input for "-", for `run_stream`; None gives None.

    Raises
    ------
    OSError
        It cannot be read.
    """
    if path is None:
        yield None
    elif str(path) == "-":
        yield sys.stdin.buffer
    else:
        with path.open("rb") as stream:
            yield stream


def run_stream(
    stream: BinaryIO,
    answer: Callable[[list[str]], list[Any]],
    to_record: Callable[[Line, Any], str | None],
    is_likely: Callable[[str], bool] = lambda text: True,
) -> None:
    """Answer every line of a stream, in order; a line that has no answer gets its error, and the stream goes on.

    Parameters
    ----------
    stream : from `open_lines`
    answer : function from texts to an answer each; raises ValueError or IndexError if one of them is wrong
    is_likely : function of a text, optional. Texts for which it is false are asked about one by one, so that others need not
        be asked again without them.
    to_record : function from a line and its answer, or a str that says why there is none, to what is printed: text, or None

    Raises
    ------
    typer.Exit
        With code 1 at the end, if lines had no answer.
    """
    n_lines = n_wrong = 0
    with ExitStack() as stack:
        advance = _progress(stack, stream)
        for lines, n_bytes in read_batches(stream):
            results: dict[int, Any] = {line.number: line.error for line in lines if line.error is not None}
            likely = [line for line in lines if line.error is None and is_likely(line.text)]
            for line, result in zip(likely, answer_each([line.text for line in likely], answer), strict=True):
                results[line.number] = result
            records = []
            for line in lines:
                if line.number not in results:
                    (results[line.number],) = answer_each([line.text], answer)
                n_wrong += isinstance(results[line.number], str)
                records.append(to_record(line, results[line.number]))
            sys.stdout.write("".join([f"{record}\n" for record in records if record]))
            sys.stdout.flush()
            n_lines += len(lines)
            advance(n_bytes, len(lines))
    if n_wrong:
        say(f"{n_wrong} of {n_lines} lines could not be answered")
        raise typer.Exit(ERROR)


def _progress(stack: ExitStack, stream: BinaryIO) -> Callable[[int, int], None]:
    """Return what to call with bytes and lines done: it moves a bar on stderr if that is a terminal and stdout is not."""
    if not sys.stderr.isatty() or sys.stdout.isatty() or stream.isatty():
        return lambda n_bytes, n_lines: None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.fields['lines'] / max(task.elapsed or 0, 1e-3):,.0f}/s")

    status = os.fstat(stream.fileno())
    size = status.st_size - stream.tell() if stat.S_ISREG(status.st_mode) else None
    columns = [TextColumn("{task.fields[lines]:,} lines"), Rate(), TimeElapsedColumn()]
    if size is not None:
        columns = [BarColumn(), TaskProgressColumn(), *columns, TextColumn("left"), TimeRemainingColumn()]
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), redirect_stdout=False))
    task = bar.add_task("", total=size, lines=0)

    def advance(n_bytes: int, n_lines: int) -> None:
        bar.update(task, advance=n_bytes, lines=bar.tasks[0].fields["lines"] + n_lines)

    return advance
