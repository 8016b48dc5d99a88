"""Folders that are there whole or not at all, and that say so.

A sealed folder is written under a temporary name beside its place: each file is flushed to the disk, then `manifest.json`
with the size and SHA-256 of every file, then everything is read again, and only then the folder gets its name. Nothing is
ever overwritten. Whatever stops the writer, at any moment, what was sealed before is untouched, and what has a sealed
folder's name verifies; the rest begins with ``tmp-``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from lucid.errors import FormatError

MANIFEST = "manifest.json"
_TEMPORARY = "tmp-"
_AT_ONCE = 1 << 22


class HashedFile:
    """A new file, hashed as it is written and flushed when it is closed.

    Parameters
    ----------
    path : Path. Nothing may be there.

    Raises
    ------
    OSError
        It cannot be written; also from `write` and `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.n_bytes, self._hash = path, 0, hashlib.sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: Any) -> None:
        """Write bytes, or a C-contiguous array."""
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        self._hash.update(view)
        self.n_bytes += len(view)
        while len(view):
            n_written = os.write(self._descriptor, view)
            if n_written <= 0:
                raise OSError(errno.EIO, "nothing was written", str(self.path))
            view = view[n_written:]

    def close(self) -> None:
        """Wait until the file is on the disk, and close it."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewFolder:
    """A folder that is being written; see `seal`.

    Attributes
    ----------
    path : Path. Where it is for the time being.
    facts : dict. What the manifest is to hold beside the files: plain JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self._files: dict[str, dict[str, Any]] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[HashedFile]:
        """Give a new file for writing."""
        with HashedFile(self.path / name) as file:
            yield file
        self._files[name] = {"bytes": file.n_bytes, "sha256": file.sha256}

    def finish(self) -> None:
        """Write the manifest, and read everything again."""
        with HashedFile(self.path / MANIFEST) as file:
            file.write(_manifest_bytes({"files": self._files, "facts": self.facts}))
        flush(self.path)
        try:
            verify(self.path)
        except FormatError as error:
            raise OSError(errno.EIO, f"what was written is not what is there: {error}", str(self.path)) from error


@contextmanager
def seal(target: Path) -> Iterator[NewFolder]:
    """Give a new folder to write into; at the end it stands at `target`, sealed.

    Parameters
    ----------
    target : Path. Nothing may be there. Its parents are made.

    Raises
    ------
    FileExistsError
        Something is there.
    OSError
        Something cannot be written: nothing is at `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = NewFolder(target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}")
    new.path.mkdir()
    try:
        yield new
        new.finish()
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists already", str(target))
        os.rename(new.path, target)
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise
    flush(target.parent)


def verify(folder: Path) -> dict[str, Any]:
    """Read a sealed folder whole, and return its facts.

    Raises
    ------
    FormatError
        A file is missing or is not what was written, or there is no manifest.
    OSError
        A file cannot be read.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FormatError(f"{folder.name} has no {MANIFEST}: it was not written to its end, or by something else") from None
    try:
        manifest = json.loads(data)
        content = {"files": manifest["files"], "facts": manifest["facts"]}
        is_whole = _manifest_bytes(content) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise FormatError(f"{path} was damaged")
    for name, stated in content["files"].items():
        file = folder / name
        try:
            n_bytes = file.stat().st_size
        except FileNotFoundError:
            raise FormatError(f"{file} is missing") from None
        if n_bytes != stated["bytes"]:
            raise FormatError(f"{file} has {n_bytes} bytes, {stated['bytes']} were written")
        if sha256_of(file) != stated["sha256"]:
            raise FormatError(f"{file} was damaged: its SHA-256 is not what {MANIFEST} says")
    facts: dict[str, Any] = content["facts"]
    return facts


def remove(folder: Path) -> None:
    """Remove a sealed folder; stopped halfway, what is left is swept later."""
    doomed = folder.parent / f"{_TEMPORARY}old-{uuid.uuid4().hex}"
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep(parent: Path) -> None:
    """Remove what stopped writers left in a folder. Nobody may be writing there."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_AT_ONCE):
            found.update(chunk)
    return found.hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_bytes(content: dict[str, Any]) -> bytes:
    """Return the one way to write a manifest, which holds the hash of what else it holds."""
    inner = json.dumps(content, sort_keys=True, allow_nan=False)
    whole = {**content, "sha256": hashlib.sha256(inner.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
