"""Reading safetensors files without mapping them into memory.

A mapped file that is cut short while it is read kills the process; `pread` raises. So the header, a few
lines of JSON, is parsed here; the checks are those of the safetensors library, which also does the
writing.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lucid.errors import FormatError

_MOST_HEADER_BYTES = 8 << 20
_MOST_TENSORS = 65_536
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in a file.

    Attributes
    ----------
    dtype : str. The format's name, such as "F32".
    shape : tuple of int
    offset, n_bytes : int. From the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class SafetensorsFile:
    """An open safetensors file: names, shapes, and `read_into`.

    Parameters
    ----------
    path : path of a regular file

    Raises
    ------
    FormatError
        It is no valid safetensors file.
    OSError
        It cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._error("is not a regular file")
            self.n_bytes = status.st_size
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _error(self, what: str) -> FormatError:
        return FormatError(f"{self.path.name} {what}. It should be a whole safetensors file: fetch or save it again.")

    def _read_header(self) -> dict[str, TensorEntry]:
        if self.n_bytes < 8:
            raise self._error(f"has {self.n_bytes} bytes, too few for a header")
        n_header = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if n_header > min(_MOST_HEADER_BYTES, self.n_bytes - 8):
            raise self._error(f"claims a header of {n_header} bytes in a file of {self.n_bytes}")
        try:
            header = json.loads(os.pread(self._descriptor, n_header, 8).decode(), object_pairs_hook=self._pairs, parse_constant=self._constant)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise self._error("has a header that is not JSON") from error
        if not isinstance(header, dict):
            raise self._error("has a header that is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._error("has metadata that is not text")
        if len(header) > _MOST_TENSORS:
            raise self._error(f"has {len(header)} tensors, more than {_MOST_TENSORS}")
        entries = {name: self._entry(name, fields, 8 + n_header) for name, fields in header.items()}
        end = 8 + n_header
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
            if entry.offset != end:
                raise self._error(f"has a gap or an overlap before tensor {name!r}")
            end += entry.n_bytes
        if end != self.n_bytes:
            raise self._error(f"has {self.n_bytes} bytes, its tensors end at {end}")
        return entries

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise self._error("has a header that names something twice")
        return dict(pairs)

    def _constant(self, name: str) -> None:
        raise self._error(f"has {name} in its header")

    def _entry(self, name: str, fields: Any, data_begin: int) -> TensorEntry:
        def is_size(x: Any) -> bool:
            return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 62

        if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"describes tensor {name!r} wrongly")
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self._error(f"has tensor {name!r} of type {dtype!r}, which lucid does not read")
        if not isinstance(shape, list) or len(shape) > 32 or not all(map(is_size, shape)):
            raise self._error(f"has tensor {name!r} of shape {shape!r}")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
            raise self._error(f"has tensor {name!r} at offsets {offsets!r}")
        n_bytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if offsets[1] - offsets[0] != n_bytes or data_begin + offsets[1] > self.n_bytes:
            raise self._error(f"has tensor {name!r} at offsets {offsets!r}, which do not fit its shape {shape} or the file")
        return TensorEntry(dtype, tuple(shape), data_begin + offsets[0], n_bytes)

    def want_floats(self, name: str) -> TensorEntry:
        """Return where a tensor lies.

        Raises
        ------
        FormatError
            It does not hold floating-point numbers.
        """
        entry = self.entries[name]
        if entry.dtype not in _FLOATS:
            raise self._error(f"has tensor {name!r} of type {entry.dtype}, where floating-point numbers are wanted")
        return entry

    def read_into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Fill `out`, float32, C-contiguous and of the tensor's shape, converting halves and doubles.

        Raises
        ------
        FormatError
            The tensor does not hold floating-point numbers, or the file was cut short.
        """
        entry = self.want_floats(name)
        if entry.dtype == "F32":
            self._read_bytes(name, entry, out)
            return
        raw = np.empty(entry.shape, _DTYPES[entry.dtype])
        self._read_bytes(name, entry, raw)
        if entry.dtype == "BF16":  # the upper half of a float32
            np.left_shift(raw, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
        else:
            out[...] = raw

    def _read_bytes(self, name: str, entry: TensorEntry, out: np.ndarray[Any, Any]) -> None:
        view, done = memoryview(out.reshape(-1).view(np.uint8)), 0
        while done < entry.n_bytes:
            n = os.preadv(self._descriptor, [view[done:]], entry.offset + done)
            if n == 0:
                raise self._error(f"was cut short while tensor {name!r} was read")
            done += n
