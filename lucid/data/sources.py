"""Text as people have it: files, folders and patterns, compressed or not, plain or JSON lines."""

from __future__ import annotations

import glob
import io
import json
import lzma
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from lucid.errors import FormatError

# What files in a folder are taken for text, by the end of their name without .gz, .xz or .zst.
TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson")
_MOST_LINE_BYTES = 1 << 20
_MOST_RECORD_BYTES = 1 << 26
_LOOKED_AT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Source:
    """A file of text.

    Attributes
    ----------
    path : Path
    is_named : bool. Whether it was given by its own name, not found in a folder or by a pattern.
    """

    path: Path
    is_named: bool = True

    @property
    def is_json(self) -> bool:
        """Whether it holds a JSON object a line."""
        return _bare_name(self.path).endswith(JSON_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text that is not blank.

    Attributes
    ----------
    text : str
    is_first : bool. Whether a document begins with it.
    """

    text: str
    is_first: bool


def find_sources(patterns: Iterable[str | Path]) -> list[Source]:
    """Return the files that paths of files, paths of folders, and patterns stand for, each once.

    Parameters
    ----------
    patterns : paths; in a pattern ``*`` stands for anything within a name, ``**`` for folders
        A folder stands for the text files in it and below (.txt, .text, .md, .jsonl, .ndjson, also .gz, .xz and .zst),
        in the order of their names.

    Raises
    ------
    FileNotFoundError
        Nothing is there, a folder holds no text file, or nothing fits a pattern.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_text(p)]
            if not inside:
                raise FileNotFoundError(
                    f"{path} holds no text files: they end in {', '.join(TEXT_SUFFIXES + JSON_SUFFIXES)} (.gz .xz .zst)"
                )
            sources = [Source(p, is_named=False) for p in inside]
        elif path.exists():
            if not path.is_file():
                raise FormatError(f"{path} is neither a file nor a folder")
            sources = [Source(path)]
        elif glob.has_magic(str(pattern)):
            sources = [Source(Path(p), is_named=False) for p in sorted(glob.glob(str(pattern), recursive=True)) if Path(p).is_file()]
            if not sources:
                raise FileNotFoundError(f"no file fits {pattern}")
        else:
            raise FileNotFoundError(f"{path} does not exist")
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def check_sources(sources: Iterable[Source], field: str = "text") -> None:
    """Look at the beginning of every file, so that what is no text is found before time is spent.

    Raises
    ------
    FormatError
        A file is empty, binary, one endless line, or not what its name says; or there is no text at all.

    Warns
    -----
    UserWarning
        A file that a folder or a pattern stands for is empty.
    """
    has_text = False
    for source in sources:
        n_bytes = 0
        with open_lines(source, field) as (lines, _):
            for line in lines:
                n_bytes += len(line.text)
                if n_bytes > _LOOKED_AT_BYTES:
                    break
        has_text |= n_bytes > 0
        if not n_bytes:
            if source.is_named:
                raise FormatError(f"{source.path} is empty: there is no text in it")
            warnings.warn(f"{source.path} is empty", stacklevel=2)
    if not has_text:
        raise FormatError("no text: every file is empty")


@contextmanager
def open_lines(source: Source, field: str = "text") -> Iterator[tuple[Iterator[Line], BinaryIO]]:
    """Open a source: its lines, and the file below them, whose ``tell()`` says how far reading has come.

    Parameters
    ----------
    source : Source
    field : str. Of a JSON object, the text; each object is a document, or several with blank lines between them.

    Raises
    ------
    FormatError
        While lines are read: they are no text, too long, or not what the file's name says.
    ImportError
        zstandard is needed, and not installed.
    """
    with ExitStack() as stack:
        file = stack.enter_context(source.path.open("rb"))
        stream = stack.enter_context(_decompressed(source.path, file))
        raw = _raw_lines(source.path, stream, _MOST_RECORD_BYTES if source.is_json else _MOST_LINE_BYTES)
        texts = _json_lines(source.path, raw, field) if source.is_json else _plain_lines(source.path, raw)
        yield _documents(texts), file


class TextLines:
    """The texts of all lines of some sources; they can be iterated again and again.

    Parameters
    ----------
    sources : sequence of Source
    field : str. Of JSON lines, the text.
    """

    def __init__(self, sources: Sequence[Source], field: str = "text") -> None:
        self.sources, self.field = sources, field

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            with open_lines(source, self.field) as (lines, _):
                for line in lines:
                    yield line.text


def _bare_name(path: Path) -> str:
    """Return a file's name without the ending that says how it is compressed, in lower case."""
    name = path.name.lower()
    for suffix in (".gz", ".xz", ".zst"):
        name = name.removesuffix(suffix)
    return name


def _is_text(path: Path) -> bool:
    return not path.name.startswith(".") and _bare_name(path).endswith(TEXT_SUFFIXES + JSON_SUFFIXES)


def _decompressed(path: Path, file: BinaryIO) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        import gzip

        return gzip.open(file)  # type: ignore[return-value]
    if suffix == ".xz":
        return io.BufferedReader(lzma.open(file))
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ImportError(f"{path}: reading .zst needs zstandard: pip install 'lucid-bert[train]', or unpack the file") from None
        return io.BufferedReader(_ZstdReader(file, zstandard.ZstdDecompressor()))
    return file


class _ZstdReader(io.RawIOBase):
    """Reads all frames of a file; the library's own reader takes a file that was cut short for a whole one."""

    def __init__(self, file: BinaryIO, decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        self._unread, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is unpacked; 0 at the end."""
        while not self._ready:
            self._unread = self._unread or self._file.read(1 << 17)
            if not self._unread:
                if self._frame is not None:
                    raise EOFError("the file was cut short")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready, self._unread = memoryview(self._frame.decompress(self._unread)), b""
            if self._frame.eof:
                self._unread, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def _decompression_errors() -> tuple[type[Exception], ...]:
    errors: list[type[Exception]] = [lzma.LZMAError, zlib.error, EOFError, OSError]
    try:
        import zstandard
    except ImportError:
        return tuple(errors)
    return (*errors, zstandard.ZstdError)


def _raw_lines(path: Path, stream: IO[bytes], most: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(most + 1)
        except _decompression_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the format's
            raise FormatError(f"{path}: line {number} cannot be unpacked: {error}") from error
        if not line:
            return
        if len(line) > most:
            raise FormatError(f"{path}: line {number} has more than {most:,} bytes: put each sentence or paragraph on a line of its own")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _decoded(path: Path, number: int, line: bytes) -> str:
    if b"\0" in line:
        raise FormatError(f"{path}: line {number} has a NUL byte: this is no text file, or its text is not UTF-8")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line"
        raise FormatError(f"{path}: line {number} is not UTF-8 ({place}): this is no text file, or it has another encoding") from error


def _plain_lines(path: Path, raw: Iterator[tuple[int, bytes]]) -> Iterator[str]:
    for number, line in raw:
        yield _decoded(path, number, line).strip()


def _json_lines(path: Path, raw: Iterator[tuple[int, bytes]], field: str) -> Iterator[str]:
    for number, line in raw:
        text = _decoded(path, number, line)
        if not text.strip():
            continue
        try:
            record: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            has = f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else f"it is a {type(record).__name__}"
            raise FormatError(f"{path}: line {number} has no text in the field {field!r}: {has:.200}; name the field with --field")
        yield ""
        for part in record[field].split("\n"):
            if len(part) > _MOST_LINE_BYTES:
                raise FormatError(f"{path}: line {number}: a line of its text has more than {_MOST_LINE_BYTES:,} characters: break it up")
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise FormatError(f"{path}: line {number} has a lone surrogate, which is no text") from error
            yield part.strip()


def _documents(texts: Iterator[str]) -> Iterator[Line]:
    """Yield the lines that are not blank; the first of the file, and one after a blank, begins a document."""
    is_first = True
    for text in texts:
        if text:
            yield Line(text, is_first)
        is_first = not text
