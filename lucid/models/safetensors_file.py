"""Reading safetensors files without mapping them into memory.

A mapped file that is cut short while it is read kills the process; `pread` raises. So the header, a few
lines of JSON, is parsed here; the safetensors library does the writing. Whatever is read here the library
reads too, with the same values. What the library reads is read here, except a file with

- a name that stands twice in its header, where the library takes the last one;
- more than 65,536 tensors, or a header of more than 8 MiB, or one with more brackets or commas than that many take;
- a tensor of a type that is not in `_DTYPES`, or of more than 32 axes;
- an empty tensor whose other lengths make a product of 2**62 bytes or more: no array can have its shape;
- a tensor that is described by more than dtype, shape and data_offsets, or by a list of the three.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from lucid.errors import FormatError

_MOST_HEADER_BYTES = 8 << 20
_MOST_TENSORS = 65_536
_MOST_BRACKETS = 4 * _MOST_TENSORS  # a tensor takes three
_MOST_COMMAS = 16 * _MOST_TENSORS
_MOST_AXES = 32
_MOST_TENSOR_BYTES = 1 << 62
_MOST_DIGITS = 20  # of 2**64 - 1
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a tensor is and where in its file it lies.

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

    @property
    def is_float(self) -> bool:
        """Whether `read_into` can read it."""
        return self.dtype in _FLOATS


def open_regular_file(path: Path) -> tuple[int, int]:
    """Open a file for reading; return its descriptor and its size in bytes.

    Raises
    ------
    FormatError
        It is a folder, a pipe or a device. Nothing was read, and the call did not wait.
    OSError
        It cannot be opened.

    Notes
    -----
    Links are followed: the folders of the hub's cache consist of them.
    """
    # Not blocking: opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FormatError(f"{path.name} is not a regular file")
    return descriptor, status.st_size


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
        self._descriptor, self.n_bytes = open_regular_file(self.path)
        try:
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
        start = self._read_bytes(0, 8)
        n_header = int.from_bytes(start, "little")
        if n_header > self.n_bytes - 8:
            if start == b"version ":
                raise FormatError(f"{self.path.name} is a pointer of Git LFS, not the file that it stands for: run `git lfs pull`")
            raise self._error(f"claims a header of {n_header} bytes in a file of {self.n_bytes}")
        if n_header > _MOST_HEADER_BYTES:
            raise self._error(f"has a header of {n_header} bytes, more than {_MOST_HEADER_BYTES}")
        header = self._parse(self._read_bytes(8, n_header))
        if not isinstance(header, dict):
            raise self._error("has a header that is not a JSON object")
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not (isinstance(metadata, dict) and all(map(_is_text, metadata.values()))):
            raise self._error("has metadata that is not text")
        if len(header) > _MOST_TENSORS:
            raise self._error(f"has {len(header)} tensors, more than {_MOST_TENSORS}")
        entries = {name: self._entry(name, fields, 8 + n_header) for name, fields in header.items()}
        end = 8 + n_header
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
            if entry.offset != end:
                raise self._error(f"has a gap or an overlap before tensor {name!r:.100}")
            end += entry.n_bytes
        if end != self.n_bytes:
            raise self._error(f"has {self.n_bytes} bytes, its tensors end at {end}")
        return entries

    def _parse(self, raw: bytearray) -> Any:
        """Return the header's JSON: objects without doubles, text that is Unicode, integers from 0."""
        # 8 MiB of "[]," would take a second and 200 MB before the first of them could be looked at.
        if raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS or raw.count(b",") > _MOST_COMMAS:
            raise self._error(f"has a header with more brackets or commas than {_MOST_TENSORS} tensors take")
        try:
            return json.loads(
                raw.decode(), object_pairs_hook=self._pairs, parse_int=self._size, parse_float=self._refuse, parse_constant=self._refuse
            )
        except FormatError:
            raise
        except (ValueError, RecursionError) as error:
            raise self._error("has a header that is not JSON") from error

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise self._error("has a header that names something twice")
        if not all(map(_is_text, members)):
            raise self._error("has a name in its header that is not Unicode text")
        return members

    def _size(self, digits: str) -> int:
        # A size is never negative; "-0" would pass for 0. Python refuses thousands of digits in its own way.
        return self._refuse(digits) if digits.startswith("-") or len(digits) > _MOST_DIGITS else int(digits)

    def _refuse(self, number: str) -> NoReturn:
        raise self._error(f"has the number {number:.30} in its header, where only sizes belong")

    def _entry(self, name: str, fields: Any, data_begin: int) -> TensorEntry:
        def are_sizes(values: Any, least: int, most: int) -> bool:
            return isinstance(values, list) and least <= len(values) <= most and all(type(x) is int for x in values)

        if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"describes tensor {name!r:.100} by other things than dtype, shape and data_offsets")
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise FormatError(f"{self.path.name} has tensor {name!r:.100} of type {dtype!r:.100}; lucid knows {', '.join(_DTYPES)}")
        if not are_sizes(shape, 0, _MOST_AXES):
            raise self._error(f"has tensor {name!r:.100} of shape {shape!r:.100}")
        if not are_sizes(offsets, 2, 2):
            raise self._error(f"has tensor {name!r:.100} at offsets {offsets!r:.100}")
        n_item = np.dtype(_DTYPES[dtype]).itemsize
        if math.prod(max(1, length) for length in shape) * n_item >= _MOST_TENSOR_BYTES:
            raise self._error(f"has tensor {name!r:.100} of shape {shape!r:.100}, which no array can have")
        n_bytes = math.prod(shape) * n_item
        if offsets[1] - offsets[0] != n_bytes or data_begin + offsets[1] > self.n_bytes:
            raise self._error(f"has tensor {name!r:.100} at offsets {offsets}, which do not fit its shape {shape!r:.100} or the file")
        return TensorEntry(dtype, tuple(shape), data_begin + offsets[0], n_bytes)

    def read_into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Fill `out`, float32, C-contiguous and of the tensor's shape, converting halves and doubles.

        Raises
        ------
        FormatError
            The tensor does not hold floating-point numbers, or the file was cut short.

        Notes
        -----
        A double beyond float32's range becomes infinite.
        """
        shape = self.entries[name].shape
        if out.shape != shape:
            raise ValueError(f"tensor {name!r:.100} wants a contiguous float32 array of shape {shape}")
        self._read_numbers(name, out, 0)

    def read_rows_into(self, name: str, first: int, out: np.ndarray[Any, Any]) -> None:
        """Fill `out`, (n, columns), with rows `first` to `first + n` of a matrix, as `read_into` does."""
        shape = self.entries[name].shape
        if out.ndim != 2 or len(shape) != 2 or out.shape[1] != shape[1] or not 0 <= first <= shape[0] - len(out):
            raise ValueError(f"rows {first} to {first + len(out)} of tensor {name!r:.100}, whose shape is {shape}, do not fill {out.shape}")
        self._read_numbers(name, out, first * shape[1])

    def _read_numbers(self, name: str, out: np.ndarray[Any, Any], first: int) -> None:
        """Fill `out` with a tensor's numbers from its `first` on."""
        entry = self.entries[name]
        if not entry.is_float:
            raise FormatError(f"{self.path.name} has tensor {name!r:.100} of type {entry.dtype}, wanted one of {', '.join(_FLOATS)}")
        if out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"tensor {name!r:.100} wants a contiguous float32 array of shape {out.shape}")
        dtype = np.dtype(_DTYPES[entry.dtype])
        offset = entry.offset + first * dtype.itemsize
        if entry.dtype == "F32":
            self._fill(out, offset, name)
            return
        raw = np.empty(out.shape, dtype)
        self._fill(raw, offset, name)
        if entry.dtype == "BF16":  # the upper half of a float32
            np.left_shift(raw, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
            return
        with np.errstate(over="ignore", invalid="ignore"):  # invalid: a signalling NaN becomes a quiet one
            out[...] = raw

    def _fill(self, out: np.ndarray[Any, Any], offset: int, name: str) -> None:
        view = out.reshape(-1).view(np.uint8).data
        if self._read(view, offset) < len(view):
            raise self._error(f"was cut short while tensor {name!r:.100} was read")

    def _read_bytes(self, offset: int, n_bytes: int) -> bytearray:
        buffer = bytearray(n_bytes)
        if self._read(memoryview(buffer), offset) < n_bytes:
            raise self._error("was cut short while its header was read")
        return buffer

    def _read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from the file at `offset`; return how many bytes there were."""
        done = 0
        while done < len(view):
            n = os.preadv(self._descriptor, [view[done:]], offset + done)  # one call reads 2 GiB at most
            if n == 0:
                break
            done += n
        return done


def write_safetensors(file: Any, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write float32 arrays in the format to a file that has ``write``, one after the other and without a copy of them all.

    Parameters
    ----------
    file : open for writing bytes
    tensors : name -> array, float32, C-contiguous
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise TypeError(f"tensor {name} must be a contiguous float32 array, not {array.dtype}")
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the values begin at a multiple of 8
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in tensors.values():
        file.write(array)


def _is_text(value: Any) -> bool:
    """Return whether a value is a str, and not one with half of a surrogate pair: JSON can write that, no file of text can."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
