"""A corpus as the model reads it: the pieces of every line, in files that are mapped into memory.

`prepare_corpus` makes one pass over the text and leaves a sealed folder (`lucid.sealed_folder`) of shards, three files each:

- ``00000.pieces``: ids of pieces, one line after the other; 2 bytes each, or 4 for a large vocabulary
- ``00000.lines``: number of pieces of each line, uint32
- ``00000.documents``: number of lines of each document, uint32

The folder's name comes from the hashes of tokenizer and text, so what is there already is used again, and nothing else is.
All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid.data.sources import Line, Source, open_lines
from lucid.errors import FormatError
from lucid.sealed_folder import HashedFile, NewFolder, seal, sha256_of, verify
from lucid.text import BERTTokenizerFast

FORMAT = 1
_SHARD_PIECES = 1 << 27
_BLOCK_CHARACTERS = 1 << 20

Progress = Callable[[int, int], None]
"""Called with bytes of the sources that were read, and pieces that were made, since the last call."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some documents of a corpus.

    Attributes
    ----------
    pieces : array, uint16 or uint32, shape (any,), mapped
    line_ends : array, int64. Where each line's pieces end.
    document_ends : array, int64. Where each document's lines end.
    """

    pieces: Any
    line_ends: Any
    document_ends: Any


@dataclass(frozen=True, slots=True)
class Corpus:
    """A tokenised text.

    Attributes
    ----------
    key : str. Hash of the tokenizer and of the text, in hexadecimal.
    shards : list of Shard
    n_documents, n_lines, n_pieces : int
    """

    key: str
    shards: list[Shard]
    n_documents: int
    n_lines: int
    n_pieces: int


def prepare_corpus(
    sources: Sequence[Source],
    tokenizer: BERTTokenizerFast,
    folder: str | Path,
    *,
    field: str = "text",
    progress: Progress | None = None,
) -> Corpus:
    """Tokenise a text into `folder`, or find there what was made of the same text before.

    Parameters
    ----------
    sources : from `find_sources`
    tokenizer : BERTTokenizerFast. Its library uses every CPU.
    folder : path. Gets a folder of shards for each text and tokenizer.
    field : str. Of JSON lines, the text.
    progress : function, optional

    Raises
    ------
    FormatError
        What is read is no text, changed while it was read, or has no document of two tokens; or shards are damaged.
    OSError
        A file cannot be read or written. No half a corpus is left under its name.
    """
    stamps = [_stamp(source.path) for source in sources]
    hashes = [sha256_of(source.path) for source in sources]
    what = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, "sources": hashes, "field": field}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    target = Path(folder) / f"corpus-{key[:16]}"
    if not target.exists():
        with seal(target) as new:
            new.facts = {"key": key, **_write_shards(new, sources, tokenizer, field, progress or (lambda n_bytes, n_pieces: None))}
            for source, stamp in zip(sources, stamps, strict=True):
                if _stamp(source.path) != stamp:
                    raise FormatError(f"{source.path} changed while it was read: start again")
    return open_corpus(target)


def open_corpus(folder: Path) -> Corpus:
    """Verify and map a folder that `prepare_corpus` made.

    Raises
    ------
    FormatError
        It was damaged, or made by another version.
    """
    try:
        facts = verify(folder)
    except FormatError as error:
        raise FormatError(f"{error}; remove {folder}, and it is made again") from error
    if facts.get("format") != FORMAT:
        raise FormatError(f"{folder} was made by another version of lucid: remove it, and it is made again")
    dtype = np.dtype(facts["dtype"])
    shards = [_open_shard(folder / f"{i:05}", dtype) for i in range(facts["n_shards"])]
    return Corpus(facts["key"], shards, facts["n_documents"], facts["n_lines"], facts["n_pieces"])


def _open_shard(stem: Path, dtype: np.dtype[Any]) -> Shard:
    def ends(suffix: str) -> Any:
        return np.cumsum(np.fromfile(stem.with_suffix(suffix), "<u4"), dtype=np.int64)

    return Shard(np.memmap(stem.with_suffix(".pieces"), dtype, "r"), ends(".lines"), ends(".documents"))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _write_shards(
    new: NewFolder, sources: Sequence[Source], tokenizer: BERTTokenizerFast, field: str, progress: Progress
) -> dict[str, Any]:
    """Make one pass over the text; return what the manifest is to hold."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    documents = _Documents(new, dtype)
    for source in sources:
        n_read = 0
        with open_lines(source, field) as (lines, file):
            documents.end_document()
            for block in _blocks(lines):
                rows = tokenizer.encode_pieces([line.text for line in block])
                for line, row in zip(block, rows, strict=True):
                    if line.is_first:
                        documents.end_document()
                    documents.add_line(row)
                documents.flush()
                progress(file.tell() - n_read, sum(map(len, rows)))
                n_read = file.tell()
    documents.close()
    if documents.longest < 2:
        raise FormatError("no document has more than one token: there is nothing to learn from")
    return {
        "format": FORMAT,
        "dtype": dtype.str,
        "n_shards": documents.n_shards,
        "n_documents": documents.n_documents,
        "n_lines": documents.n_lines,
        "n_pieces": documents.n_pieces,
    }


def _blocks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    block, n_characters = [], 0
    for line in lines:
        block.append(line)
        n_characters += len(line.text)
        if n_characters >= _BLOCK_CHARACTERS:
            yield block
            block, n_characters = [], 0
    if block:
        yield block


class _Documents:
    """Writes documents line by line; a shard ends with the document that fills it."""

    def __init__(self, new: NewFolder, dtype: np.dtype[Any]) -> None:
        self._new, self._dtype = new, dtype
        self._files: list[Any] = []
        self._pieces: list[list[int]] = []
        self._lines: list[int] = []
        self._documents: list[int] = []
        self._shard_pieces = self._document_pieces = self._document_lines = 0
        self.n_shards = self.n_documents = self.n_lines = self.n_pieces = self.longest = 0

    def add_line(self, row: list[int]) -> None:
        """Add the pieces of a line; one without any is none."""
        if not row:
            return
        self._pieces.append(row)
        self._lines.append(len(row))
        self._document_lines += 1
        self._document_pieces += len(row)

    def end_document(self) -> None:
        """End the document that the lines so far make up, if there are any."""
        if not self._document_lines:
            return
        self._documents.append(self._document_lines)
        self.n_documents += 1
        self.n_lines += self._document_lines
        self.n_pieces += self._document_pieces
        self.longest = max(self.longest, self._document_pieces)
        self._shard_pieces += self._document_pieces
        self._document_lines = self._document_pieces = 0
        if self._shard_pieces >= _SHARD_PIECES:
            self._end_shard()

    def flush(self) -> None:
        """Write what is waiting."""
        if not (self._pieces or self._documents):
            return
        if not self._files:
            names = [f"{self.n_shards:05}{suffix}" for suffix in (".pieces", ".lines", ".documents")]
            self._files = [self._new.open(name) for name in names]
            self._open: list[HashedFile] = [file.__enter__() for file in self._files]
        pieces = np.array([piece for row in self._pieces for piece in row], self._dtype)
        for file, values in zip(self._open, (pieces, np.array(self._lines, "<u4"), np.array(self._documents, "<u4")), strict=True):
            file.write(values)
        self._pieces, self._lines, self._documents = [], [], []

    def _end_shard(self) -> None:
        self.flush()
        for file in self._files:
            file.__exit__(None, None, None)
        self.n_shards += bool(self._files)
        self._files, self._shard_pieces = [], 0

    def close(self) -> None:
        """End the last document and the last shard."""
        self.end_document()
        self._end_shard()
