"""The reader of safetensors files: what it refuses and in which words, and that it agrees with the safetensors library."""

import json
import math
import os
import signal
import struct
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lucid import FormatError
from lucid.models import safetensors_file
from lucid.models.safetensors_file import SafetensorsFile

BYTES_OF = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
KNOWN = "F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, F8_E4M3, F8_E5M2"
REMEDY = ". It should be a whole safetensors file: fetch or save it again."
NO_JSON = "has a header that is not JSON"
TWICE = "has a header that names something twice"
TOO_MANY = "has a header with more brackets or commas than 65536 tensors take"
OTHER_FIELDS = "describes tensor 'a' by other things than dtype, shape and data_offsets"


def file_of(header: str | bytes | dict[str, Any], data: bytes = b"", n_header: int | None = None) -> bytes:
    """Return the bytes of a file: a header as it stands, whatever it is, then the data."""
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if n_header is None else n_header) + raw + data


def tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(text: str, data: bytes = bytes(4)) -> bytes:
    """Return a file with a tensor "a" whose description is this JSON."""
    return file_of(f'{{"a":{text}}}', data)


A = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def with_a(header: str) -> bytes:
    """Return a file with this header, in which "@" stands for the description of a tensor of one number."""
    return file_of(header.replace("@", A), bytes(4))


def shaped(shape: str, offsets: str = "[0,4]", data: bytes = bytes(4)) -> bytes:
    return one(f'{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}', data)


def number(text: str) -> str:
    return f"has the number {text} in its header, where only sizes belong"


def misfit(offsets: str, shape: str = "[1]") -> str:
    return f"has tensor 'a' at offsets {offsets}, which do not fit its shape {shape} or the file"


def claims(start: bytes, n_bytes: int) -> str:
    return f"claims a header of {int.from_bytes(start, 'little')} bytes in a file of {n_bytes}"


# Class of damage -> (the file, what is said of it).
MALFORMED: dict[str, tuple[bytes, str]] = {
    # the first eight bytes
    "empty": (b"", "has 0 bytes, too few for a header"),
    "one byte": (b"\x02", "has 1 bytes, too few for a header"),
    "seven bytes": (bytes(7), "has 7 bytes, too few for a header"),
    "no header": (bytes(8), NO_JSON),
    "header of length 0, then data": (bytes(12), NO_JSON),
    "header longer than the file": (file_of("{}", n_header=3), "claims a header of 3 bytes in a file of 10"),
    "header of 2**63 bytes": (file_of("{}", n_header=1 << 63), f"claims a header of {1 << 63} bytes in a file of 10"),
    "header of 2**64 - 1 bytes": (file_of("{}", n_header=(1 << 64) - 1), f"claims a header of {(1 << 64) - 1} bytes in a file of 10"),
    "length in big-endian": (struct.pack(">Q", 2) + b"{}", f"claims a header of {2 << 56} bytes in a file of 10"),
    "header cut short": (file_of('{"a":' + A + "}", bytes(4), n_header=20), NO_JSON),
    "header one byte short": (file_of("{}", n_header=1), NO_JSON),
    "header into the data": (file_of('{"a":' + A + "}", bytes(4), n_header=len(A) + 7), NO_JSON),
    "header above 8 MiB": (file_of(b" " * ((8 << 20) - 1) + b"{}"), f"has a header of {(8 << 20) + 1} bytes, more than {8 << 20}"),
    # other kinds of files
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", claims(b"\x80\x04\x95\x10\x00\x00\x00\x00", 12)),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08 archive", claims(b"PK\x03\x04\x00\x00\x08\x08", 16)),
    "web page": (b"<!DOCTYPE html><html>", claims(b"<!DOCTYP", 21)),
    "JSON alone": (b'{"a":' + A.encode() + b"}", claims(b'{"a":{"d', len(A) + 6)),
    # what is no JSON
    "no UTF-8": (file_of(b'{"\xff":' + A.encode() + b"}", bytes(4)), NO_JSON),
    "UTF-8 of a surrogate": (with_a('{"\ud800":@}'), NO_JSON),
    "byte order mark": (with_a('\ufeff{"a":@}'), NO_JSON),
    "UTF-16": (file_of(('{"a":' + A + "}").encode("utf-16-le"), bytes(4)), NO_JSON),
    "control character in a name": (with_a('{"\x01":@}'), NO_JSON),
    "bad escape": (with_a('{"\\x61":@}'), NO_JSON),
    "bad Unicode escape": (with_a('{"\\u+061":@}'), NO_JSON),
    "trailing comma": (with_a('{"a":@,}'), NO_JSON),
    "comment": (with_a('{"a":@}//'), NO_JSON),
    "single quotes": (with_a("{'a':@}"), NO_JSON),
    "two documents": (with_a('{"a":@}{}'), NO_JSON),
    "padding of NUL": (with_a('{"a":@}\0\0'), NO_JSON),
    "padding that JSON does not know": (with_a('{"a":@}\u00a0'), NO_JSON),
    "leading zero": (shaped("[01]"), NO_JSON),
    "hexadecimal": (shaped("[0x1]"), NO_JSON),
    "100,000 brackets deep": (file_of("[" * 100_000), NO_JSON),
    "100,000 objects deep": (file_of('{"a":' * 100_000), NO_JSON),
    "a million brackets": (file_of("[" * 1_000_000), TOO_MANY),
    "a million objects": (file_of('{"a":' * 1_000_000), TOO_MANY),
    "a million and more commas": (file_of("[" + "1," * 1_100_000 + "1]"), TOO_MANY),
    "metadata of 270,000 brackets": (file_of({"__metadata__": {"k": "[" * 270_000}}), TOO_MANY),
    # JSON of another form
    "a list": (file_of("[]"), "has a header that is not a JSON object"),
    "null": (file_of("null"), "has a header that is not a JSON object"),
    "a text": (file_of('"a"'), "has a header that is not a JSON object"),
    "a number": (file_of("7"), "has a header that is not a JSON object"),
    "a tensor twice": (with_a('{"a":@,"a":@}'), TWICE),
    "a tensor twice, once escaped": (with_a('{"a":@,"\\u0061":@}'), TWICE),
    "a field twice": (one('{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}'), TWICE),
    "metadata twice": (with_a('{"__metadata__":{},"__metadata__":{},"a":@}'), TWICE),
    "a key of the metadata twice": (with_a('{"__metadata__":{"k":"1","k":"2"},"a":@}'), TWICE),
    "half a surrogate pair in a name": (with_a('{"\\ud800":@}'), "has a name in its header that is not Unicode text"),
    "halves in the wrong order": (with_a('{"\\ude00\\ud83d":@}'), "has a name in its header that is not Unicode text"),
    "half a pair in a key of the metadata": (
        file_of('{"__metadata__":{"\\udfff":"v"}}'),
        "has a name in its header that is not Unicode text",
    ),
    "half a pair in the metadata": (file_of('{"__metadata__":{"k":"\\udfff"}}'), "has metadata that is not text"),
    "a number as metadata": (file_of('{"__metadata__":{"k":1}}'), "has metadata that is not text"),
    "null in the metadata": (file_of('{"__metadata__":{"k":null}}'), "has metadata that is not text"),
    "a list of metadata": (file_of('{"__metadata__":[]}'), "has metadata that is not text"),
    "a tensor for metadata": (with_a('{"__metadata__":@}'), "has metadata that is not text"),
    # numbers
    "NaN": (shaped("[NaN]"), number("NaN")),
    "infinity": (shaped("[Infinity]"), number("Infinity")),
    "minus infinity": (shaped("[-Infinity]"), number("-Infinity")),
    "a fraction": (shaped("[1.0]"), number("1.0")),
    "an exponent": (shaped("[1e0]"), number("1e0")),
    "a negative length": (shaped("[-1]"), number("-1")),
    "minus zero": (shaped("[1]", "[-0,4]"), number("-0")),
    "5,000 digits": (shaped("[" + "9" * 5_000 + "]"), number("9" * 30)),
    "a number of 1 MiB": (shaped("[1." + "0" * (1 << 20) + "]"), number("1." + "0" * 28)),
    # descriptions of a tensor
    "null for a tensor": (one("null"), OTHER_FIELDS),
    "a list for a tensor": (one('["F32",[1],[0,4]]'), OTHER_FIELDS),
    "no dtype": (one('{"shape":[1],"data_offsets":[0,4]}'), OTHER_FIELDS),
    "no shape": (one('{"dtype":"F32","data_offsets":[0,4]}'), OTHER_FIELDS),
    "no offsets": (one('{"dtype":"F32","shape":[1]}'), OTHER_FIELDS),
    "another field": (one('{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}'), OTHER_FIELDS),
    "a name of 1,000 letters": (
        file_of({"b" * 1000: {}}),
        f"describes tensor '{'b' * 99} by other things than dtype, shape and data_offsets",
    ),
    "a length as text": (shaped('["1"]'), "has tensor 'a' of shape ['1']"),
    "a length that is true": (shaped("[true]"), "has tensor 'a' of shape [True]"),
    "a length that is null": (shaped("[null]"), "has tensor 'a' of shape [None]"),
    "a shape in a shape": (shaped("[[1]]"), "has tensor 'a' of shape [[1]]"),
    "a number for a shape": (shaped("1"), "has tensor 'a' of shape 1"),
    "33 axes": (shaped(json.dumps([1] * 33)), f"has tensor 'a' of shape {str([1] * 33)[:100]}"),
    "one offset": (shaped("[1]", "[4]"), "has tensor 'a' at offsets [4]"),
    "three offsets": (shaped("[1]", "[0,4,4]"), "has tensor 'a' at offsets [0, 4, 4]"),
    "offsets as an object": (shaped("[1]", '{"0":4}'), "has tensor 'a' at offsets {'0': 4}"),
    "offsets as text": (shaped("[1]", '["0","4"]'), "has tensor 'a' at offsets ['0', '4']"),
    # sizes
    "offsets that fall": (shaped("[1]", "[4,0]"), misfit("[4, 0]")),
    "offsets shorter than the shape": (shaped("[2]"), misfit("[0, 4]", "[2]")),
    "offsets longer than the shape": (shaped("[1]", "[0,8]", bytes(8)), misfit("[0, 8]")),
    "data of an empty tensor": (shaped("[0]"), misfit("[0, 4]", "[0]")),
    "offsets beyond the file": (shaped("[2]", "[0,8]"), misfit("[0, 8]", "[2]")),
    "offsets of 2**64 - 4": (shaped("[1]", f"[{2**64 - 4},{2**64}]"), misfit(f"[{2**64 - 4}, {2**64}]")),
    "a product of 2**64": (shaped(f"[{2**32},{2**32}]"), f"has tensor 'a' of shape [{2**32}, {2**32}], which no array can have"),
    "a product that wraps round to 1": (
        shaped("[6700417,274177,10067]"),
        misfit("[0, 4]", "[6700417, 274177, 10067]"),
    ),
    "an empty tensor as large as 2**62": (
        shaped(f"[0,{2**60}]", "[0,0]", b""),
        f"has tensor 'a' of shape [0, {2**60}], which no array can have",
    ),
    "a gap at the start": (shaped("[1]", "[4,8]", bytes(8)), "has a gap or an overlap before tensor 'a'"),
    "a gap": (
        file_of({"a": tensor(), "b": tensor(offsets=[8, 12])}, bytes(12)),
        "has a gap or an overlap before tensor 'b'",
    ),
    "an overlap": (
        file_of({"a": tensor(shape=[2], offsets=[0, 8]), "b": tensor(offsets=[4, 8])}, bytes(8)),
        "has a gap or an overlap before tensor 'b'",
    ),
    "two tensors at one place": (file_of({"a": tensor(), "b": tensor()}, bytes(4)), "has a gap or an overlap before tensor 'b'"),
    "an empty tensor inside another": (
        file_of({"a": tensor(), "b": tensor(shape=[0], offsets=[2, 2])}, bytes(4)),
        "has a gap or an overlap before tensor 'b'",
    ),
    "bytes after the tensors": (one(A, bytes(5)), f"has {len(A) + 19} bytes, its tensors end at {len(A) + 18}"),
    "bytes and no tensor": (file_of("{}", bytes(4)), "has 14 bytes, its tensors end at 10"),
    "data one byte short": (one(A, bytes(3)), misfit("[0, 4]")),
    "no data": (one(A, b""), misfit("[0, 4]")),
    "65,537 tensors": (
        file_of({str(i): tensor(shape=[0], offsets=[0, 0]) for i in range(65_537)}),
        "has 65537 tensors, more than 65536",
    ),
}
# The same for types: the remedy is another one.
WRONG_TYPES = {
    "a type of a later version": ("F4", "'F4'"),
    "small letters": ("f32", "'f32'"),
    "no name": (None, "None"),
    "a number": (5, "5"),
    "an object": ({"F32": None}, "{'F32': None}"),
    "a list": (["F32"], "['F32']"),
    "a long name": ("F" * 200, "'" + "F" * 99),
}
# What the library reads and lucid does not: all that the module's docstring names, and nothing else.
LUCID_ONLY = (
    "header above 8 MiB", "a tensor twice", "a tensor twice, once escaped", "a key of the metadata twice", "another field",
    "a list for a tensor", "33 axes", "metadata of 270,000 brackets", "an empty tensor as large as 2**62", "65,537 tensors",
)  # fmt: skip


def say(path: Path) -> str:
    """Open a file that is to be refused; return the message."""
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    return str(caught.value)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the body hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not back after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


class TestMalformed:
    @pytest.mark.parametrize("damage", MALFORMED)
    def test_exact_message(self, path, damage):
        data, text = MALFORMED[damage]
        path.write_bytes(data)
        n_open = len(os.listdir("/proc/self/fd"))
        with within(30):
            assert say(path) == f"model.safetensors {text}{REMEDY}"
        assert len(os.listdir("/proc/self/fd")) == n_open

    @pytest.mark.parametrize("damage", WRONG_TYPES)
    def test_unknown_type(self, path, damage):
        dtype, shown = WRONG_TYPES[damage]
        path.write_bytes(file_of({"a": tensor(dtype)}, bytes(4)))
        assert say(path) == f"model.safetensors has tensor 'a' of type {shown}; lucid knows {KNOWN}"

    def test_git_lfs_pointer(self, path):
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n")
        assert say(path) == "model.safetensors is a pointer of Git LFS, not the file that it stands for: run `git lfs pull`"

    def test_there_are_enough_classes(self):
        assert len(MALFORMED) + len(WRONG_TYPES) >= 66

    @pytest.mark.parametrize("damage", MALFORMED)
    def test_the_library_refuses_it_too(self, damage):
        data, _ = MALFORMED[damage]
        assert (library(data) is not None) == (damage in LUCID_ONLY)

    def test_every_truncation(self, path):
        """A file that ends anywhere before its end is refused: at all boundaries, and between them."""
        whole = file_of({"__metadata__": {"k": "v"}, "a": tensor(), "b": tensor("F16", [2, 3], [4, 16])}, bytes(16))
        path.write_bytes(whole)
        SafetensorsFile(path).close()
        for n_bytes in range(len(whole)):
            path.write_bytes(whole[:n_bytes])
            assert say(path).startswith("model.safetensors ")

    @pytest.mark.parametrize("kind", ["folder", "pipe", "zeros", "null"])
    def test_not_a_regular_file(self, path, kind):
        match kind:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "zeros":
                path.symlink_to("/dev/zero")
            case "null":
                path.symlink_to("/dev/null")
        n_open = len(os.listdir("/proc/self/fd"))
        with within(5):
            assert say(path) == "model.safetensors is not a regular file"
        assert len(os.listdir("/proc/self/fd")) == n_open

    def test_cannot_be_opened(self, path):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            SafetensorsFile(path)
        path.symlink_to(path)
        with pytest.raises(OSError, match="symbolic links"):
            SafetensorsFile(path)


class TestValidButOdd:
    @pytest.mark.parametrize(
        "data",
        [
            file_of("{}"),
            file_of('{"__metadata__":{}}'),
            with_a('{"__metadata__":null,"a":@}'),
            with_a(' \t\r\n{"a":\n@}   '),
            with_a('{"":@}'),
            with_a('{"\\u0000":@}'),
            with_a('{"\\ud83d\\ude00":@}'),
            with_a('{"\x7f ä \U0001f600":@}'),
            one('{"\\u0064type":"F32","shape":[1],"data_offsets":[0,4]}'),
            shaped("[]"),
            shaped(json.dumps([1] * 32)),
            shaped("[0]", "[0,0]", b""),
            shaped(f"[0,{2**59}]", "[0,0]", b""),
            file_of({"b": tensor(offsets=[4, 8]), "a": tensor()}, bytes(range(8))),
            file_of({"a": tensor(), "e": tensor("U8", [0, 3], [4, 4]), "b": tensor(offsets=[4, 8])}, bytes(range(8))),
            file_of({str(i): tensor("U8", [2, 2, 2, 0], [0, 0]) for i in range(65_536)}),
            file_of(b" " * ((8 << 20) - 2) + b"{}"),
        ],
    )
    def test_is_read_as_the_library_reads_it(self, path, data):
        path.write_bytes(data)
        assert lucid_reads(path) == library(data) is not None


class TestReading:
    def test_values_exactly(self, path):
        """Every half there is, and doubles and floats of all magnitudes."""
        halves = np.arange(1 << 16, dtype=np.uint16)
        rng = np.random.default_rng(1)
        odd = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45]
        doubles = np.concatenate([rng.standard_normal(500) * 10.0 ** rng.integers(-50, 38, 500), odd])
        floats = rng.integers(0, 1 << 32, 5000, dtype=np.uint32)
        tensors = {
            "half": ("F16", halves),
            "brain": ("BF16", halves),
            "double": ("F64", doubles),
            "float": ("F32", floats),
            "huge": ("F64", np.array([1e39, -1e300])),
            "signalling": ("F64", np.array([0x7FF0000000000001], np.uint64)),
        }
        header, data = {}, b""
        for name, (dtype, array) in tensors.items():
            header[name] = tensor(dtype, list(array.shape), [len(data), len(data) + array.nbytes])
            data += array.tobytes()
        path.write_bytes(file_of(header, data))
        wanted = {
            "half": halves.view(np.float16).astype(np.float32),
            "brain": np.frombuffer(b"".join(b"\0\0" + two.tobytes() for two in halves), np.float32),
            "double": doubles.astype(np.float32),
            "float": floats.view(np.float32),
            "huge": np.array([np.inf, -np.inf], np.float32),
            "signalling": np.array([np.nan], np.float32),
        }
        with SafetensorsFile(path) as file:
            for name, values in wanted.items():
                out = np.zeros(values.shape, np.float32)
                file.read_into(name, out)
                if name in ("brain", "float"):  # to the bit, NaNs too
                    np.testing.assert_array_equal(out.view(np.uint32), values.view(np.uint32))
                else:
                    np.testing.assert_array_equal(out, values)

    @pytest.mark.parametrize("dtype", sorted(BYTES_OF.keys() - set(FLOATS)))
    def test_only_floats(self, path, dtype):
        path.write_bytes(file_of({"a": tensor(dtype, [2], [0, 2 * BYTES_OF[dtype]])}, bytes(2 * BYTES_OF[dtype])))
        with SafetensorsFile(path) as file, pytest.raises(FormatError) as caught:
            file.read_into("a", np.zeros(2, np.float32))
        assert str(caught.value) == f"model.safetensors has tensor 'a' of type {dtype}, wanted one of F64, F32, F16, BF16"

    @pytest.mark.parametrize(
        "out", [np.zeros(5, np.float32), np.zeros((2, 2), np.float32), np.zeros(4), np.zeros(8, np.float32)[::2], np.zeros(3, np.float32)]
    )
    def test_wrong_place_to_read_to(self, path, out):
        path.write_bytes(file_of({"a": tensor(shape=[4], offsets=[0, 16])}, bytes(range(16))))
        with SafetensorsFile(path) as file, pytest.raises(ValueError, match="contiguous float32 array of shape"):
            file.read_into("a", out)
        assert not out.any()

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_rows(self, path, dtype):
        values = (np.arange(7 * 5) % 13).astype(np.float32).reshape(7, 5)
        raw = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values.astype(f"f{BYTES_OF[dtype]}")
        path.write_bytes(file_of({"a": tensor(dtype, [7, 5], [0, raw.nbytes])}, raw.tobytes()))
        with SafetensorsFile(path) as file:
            for first, last in ((0, 7), (0, 1), (2, 5), (6, 7), (3, 3)):
                out = np.full((last - first, 5), np.nan, np.float32)
                file.read_rows_into("a", first, out)
                np.testing.assert_array_equal(out, values[first:last])

    @pytest.mark.parametrize(("first", "shape"), [(-1, (2, 5)), (6, (2, 5)), (0, (8, 5)), (0, (2, 4)), (0, (5,)), (0, (1, 1, 5))])
    def test_rows_that_are_not_there(self, path, first, shape):
        path.write_bytes(file_of({"a": tensor(shape=[7, 5], offsets=[0, 140])}, bytes(range(140))))
        out = np.zeros(shape, np.float32)
        with SafetensorsFile(path) as file, pytest.raises(ValueError, match="do not fill"):
            file.read_rows_into("a", first, out)
        assert not out.any()

    def test_large_reads_come_in_parts(self, path, monkeypatch):
        """One call of the system reads 2 GiB at most; here it reads 7 bytes."""
        values = np.arange(1000, dtype=np.float32)
        safetensors.numpy.save_file({"a": values}, path)
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:7]], at))
        with SafetensorsFile(path) as file:
            out = np.zeros(1000, np.float32)
            file.read_into("a", out)
        np.testing.assert_array_equal(out, values)


class TestChangedWhileOpen:
    def test_cut_short_between_open_and_read(self, path):
        """A thousand times, at any place: a typed error, never a signal, and no error where nothing is missing."""
        rng = np.random.default_rng(2)
        arrays = {f"t{i}": rng.standard_normal((i % 5, 40)).astype(("f4", "f2", "f8")[i % 3]) for i in range(9)}
        safetensors.numpy.save_file(arrays, path)
        whole = path.read_bytes()
        seen: Counter[str] = Counter()
        for _ in range(1000):
            path.write_bytes(whole)
            with SafetensorsFile(path) as file:
                n_bytes = int(rng.integers(0, len(whole) + 1))
                os.truncate(path, n_bytes)
                for name, array in arrays.items():
                    out = np.zeros(array.shape, np.float32)
                    try:
                        file.read_into(name, out)
                    except FormatError as error:
                        assert str(error) == f"model.safetensors was cut short while tensor {name!r} was read{REMEDY}"
                        seen["short"] += 1
                        assert file.entries[name].offset + file.entries[name].n_bytes > n_bytes
                    else:
                        np.testing.assert_array_equal(out, array.astype(np.float32))
                        seen["whole"] += 1
        assert min(seen["short"], seen["whole"]) > 1000

    def test_cut_short_before_the_header_is_read(self, path, monkeypatch):
        path.write_bytes(struct.pack("<Q", 20) + b'{"a":')
        monkeypatch.setattr(safetensors_file, "open_regular_file", lambda path: (os.open(path, os.O_RDONLY), 100))
        assert say(path) == f"model.safetensors was cut short while its header was read{REMEDY}"

    def test_rewritten_by_another_thread(self, path):
        """While one thread writes the file anew all the time, reading gives numbers or a FormatError."""
        files = [file_of({"a": tensor(shape=[n], offsets=[0, 4 * n])}, np.full(n, n, "<f4").tobytes()) for n in (1, 100, 5000)]
        is_over = threading.Event()

        def rewrite() -> None:
            while not is_over.is_set():
                for data in files:
                    path.write_bytes(data)

        path.write_bytes(files[0])
        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            for _ in range(500):
                try:
                    with SafetensorsFile(path) as file:
                        for name, entry in file.entries.items():
                            file.read_into(name, np.empty(entry.shape, np.float32))
                except FormatError:
                    pass
        finally:
            is_over.set()
            writer.join()


class TestCost:
    def measure(self, path: Path) -> tuple[float, int]:
        """Return the seconds of work that the refusal of a file takes, and the most bytes that it holds meanwhile."""
        seconds = []
        for _ in range(3):
            begin = time.thread_time()
            say(path)
            seconds.append(time.thread_time() - begin)
        tracemalloc.start()
        say(path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return min(seconds), most

    def test_header_of_13_megabytes(self, path):
        header = {f"encoder.layer.{i}": tensor(shape=[0], offsets=[0, 0]) for i in range(200_000)}
        path.write_bytes(file_of(header))
        assert path.stat().st_size > 13e6
        seconds, most = self.measure(path)
        assert seconds < 0.01
        assert most < 1 << 20

    @pytest.mark.parametrize("part", ["[],", "{},", '"",', "1,", "[{}],", '{"b":[[],1]},', "9999999999,", '"long enough a text",'])
    def test_header_of_8_megabytes_of_anything(self, path, part):
        """The worst that fits under the limits costs a bounded time and a bounded multiple of the file."""
        n_parts = min(((8 << 20) - 100) // len(part), 260_000 // max(1, part.count("[") + part.count("{")), 1_040_000 // part.count(","))
        header = ('{"a":[' + part * n_parts + "0]}").encode()
        path.write_bytes(file_of(header + b" " * ((8 << 20) - len(header))))
        seconds, most = self.measure(path)
        assert seconds < 2
        assert most < 2 * path.stat().st_size + (48 << 20)


# ------------------------------------------------------------------------------ beside the library

Contents = dict[str, tuple[str, tuple[int, ...], bytes]]


def library(data: bytes) -> Contents | None:
    """Return what the safetensors library reads, or None where it refuses."""
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in entries}


def lucid_reads(path: Path) -> Contents:
    """Return what lucid finds in a file; check the floats that it makes of it."""
    contents = {}
    raw = path.read_bytes()
    with SafetensorsFile(path) as file:
        for name, entry in file.entries.items():
            data = raw[entry.offset : entry.offset + entry.n_bytes]
            contents[name] = (entry.dtype, entry.shape, data)
            if entry.dtype in FLOATS:
                out = np.empty(entry.shape, np.float32)
                file.read_into(name, out)
                np.testing.assert_array_equal(out, as_float32(entry.dtype, data).reshape(entry.shape))
    return contents


def as_float32(dtype: str, data: bytes) -> np.ndarray[Any, Any]:
    if dtype == "BF16":
        return np.frombuffer(b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2)), "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def excuse(data: bytes) -> str | None:
    """Return why lucid may refuse a file that the library reads, from the file alone; None if there is no reason."""
    n_header = struct.unpack("<Q", data[:8])[0]
    if n_header > 8 << 20:
        return "header above 8 MiB"
    header = json.loads(data[8 : 8 + n_header], object_pairs_hook=list)
    names = [name for name, _ in header]
    metadata = dict(header).get("__metadata__") or []
    if len(set(names)) < len(names) or len(dict(metadata)) < len(metadata):
        return "a name twice"
    if len(names) > 65_536:
        return "too many tensors"
    for name, pairs in header:
        if name == "__metadata__":
            continue
        if not pairs or not isinstance(pairs[0], tuple) or {key for key, _ in pairs} != {"dtype", "shape", "data_offsets"}:
            return "other fields"
        fields = dict(pairs)
        if not isinstance(fields["dtype"], str) or fields["dtype"] not in BYTES_OF:
            return "a type that lucid does not know"
        if len(fields["shape"]) > 32:
            return "too many axes"
        if math.prod(max(1, n) for n in fields["shape"]) * BYTES_OF[fields["dtype"]] >= 1 << 62:
            return "no array can have this shape"
    return None


def compare(path: Path, data: bytes) -> str:
    """Read a file with both; return "both", "neither", or the excuse where only the library reads it."""
    path.write_bytes(data)
    expected = library(data)
    try:
        found = lucid_reads(path)
    except FormatError:
        if expected is None:
            return "neither"
        reason = excuse(data)
        assert reason is not None, f"the library reads this file, lucid does not: {data!r}"
        return reason
    assert found == expected, f"lucid reads this file, the library does not, or not so: {data!r}"
    return "both"


NAMES = ("a", "b", "bert.embeddings.word_embeddings.weight", "", "ä ", "\U0001f600", '"', "\\", "\n", "\0", "__metadata_", "{", "x" * 300)


def chosen(rng: np.random.Generator, n: int) -> list[str]:
    return [NAMES[i] for i in rng.permutation(len(NAMES))[:n]]


def valid_file(rng: np.random.Generator) -> bytes:
    """Return a file as some writer might write it: any order, any spacing, any types, empty tensors among them."""
    parts: list[tuple[str, Any]] = []
    data, end = b"", 0
    for name in chosen(rng, int(rng.integers(0, 5))):
        dtype = str(rng.choice(list(BYTES_OF)))
        shape = rng.integers(0 if rng.random() < 0.2 else 1, 5, rng.integers(0, 4)).tolist()
        n_bytes = math.prod(shape) * BYTES_OF[dtype]
        parts.append((name, tensor(dtype, shape, [end, end + n_bytes])))
        data, end = data + rng.bytes(n_bytes), end + n_bytes
    if rng.random() < 0.5:
        parts.append(("__metadata__", {key: chosen(rng, 1)[0] for key in chosen(rng, int(rng.integers(0, 3)))}))
    parts = [parts[i] for i in rng.permutation(len(parts))]
    indent, separators = [(None, (",", ":")), (None, (", ", ": ")), (1, (",", ":"))][rng.integers(3)]
    text = json.dumps(dict(parts), ensure_ascii=bool(rng.integers(2)), indent=indent, separators=separators)
    return file_of(text + " " * (-len(text.encode()) % 8 if rng.integers(2) else 0), data)


TOKENS = (
    b"-0", b"-1", b"1.0", b"1e0", b"NaN", b"null", b"true", b"[]", b"{}", b"[0]", b"[[1]]", b'"F32"', b'"F16"', b'"F4"', b'"f32"', b'""',
    b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xff"', b"4294967296", b"4611686018427387904", b"18446744073709551615", b"18446744073709551616",
    b"9" * 40, b'"a":', b'"dtype":"F32",', b'"__metadata__":{},', b'"__metadata__":null,', b"[0,0]", b",", b"}", b"]", b"[", b"\0", b" ",
    b'"x":1,', b"00", b"1,", b"0,",
)  # fmt: skip
Mutation = Callable[[bytearray, np.random.Generator], None]


def flip(data: bytearray, rng: np.random.Generator) -> None:
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def cut(data: bytearray, rng: np.random.Generator) -> None:
    begin = rng.integers(len(data))
    del data[begin : begin + rng.integers(1, 9)]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    at = rng.integers(len(data) + 1)
    data[at:at] = rng.bytes(int(rng.integers(1, 9)))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def new_length(data: bytearray, rng: np.random.Generator) -> None:
    data[:8] = struct.pack("<Q", (0, 1, 2, 8, len(data) - 8, len(data), 1 << 20, (1 << 64) - 1)[rng.integers(8)])


def in_header(change: Callable[[bytearray, np.random.Generator], None]) -> Mutation:
    """Return a mutation of the header's text that keeps its length right, so that what is meant is looked at."""

    def mutate(data: bytearray, rng: np.random.Generator) -> None:
        n_header = min(struct.unpack("<Q", data[:8])[0], len(data) - 8)
        header = data[8 : 8 + n_header]
        if header:
            change(header, rng)
        data[: 8 + n_header] = struct.pack("<Q", len(header)) + header

    return mutate


def put_token(header: bytearray, rng: np.random.Generator) -> None:
    """Replace a number, a text or a mark by another one."""
    token = TOKENS[rng.integers(len(TOKENS))]
    begin = int(rng.integers(len(header)))
    while begin and header[begin - 1 : begin] not in (b",", b":", b"[", b"{"):
        begin -= 1
    end = begin
    if rng.random() < 0.6:
        while end < len(header) and header[end : end + 1] not in (b",", b"]", b"}"):
            end += 1
    header[begin:end] = token


def repeat(header: bytearray, rng: np.random.Generator) -> None:
    """Write a part of the header twice: names and fields come twice."""
    begin = int(rng.integers(len(header)))
    end = min(len(header), begin + int(rng.integers(1, 80)))
    header[end:end] = (b"," if rng.integers(2) else b"") + header[begin:end]


def change_digit(header: bytearray, rng: np.random.Generator) -> None:
    digits = [i for i, c in enumerate(header) if 48 <= c <= 57]
    if digits:
        header[digits[rng.integers(len(digits))]] = int(rng.integers(48, 58))


MUTATIONS: dict[str, Mutation] = {
    "flip": flip,
    "cut": cut,
    "insert": insert,
    "truncate": truncate,
    "new length": new_length,
    "flip in the header": in_header(flip),
    "cut in the header": in_header(cut),
    "token": in_header(put_token),
    "token and token": in_header(lambda header, rng: (put_token(header, rng), put_token(header, rng))),  # type: ignore[func-returns-value]
    "repeat": in_header(repeat),
    "digit": in_header(change_digit),
}


class TestBesideTheLibrary:
    def test_valid_files(self, path):
        rng = np.random.default_rng(3)
        for _ in range(500):
            assert compare(path, valid_file(rng)) == "both"

    def test_mutated_files(self, path, request):
        is_slow = request.config.getoption("--slow", default=False)
        n_files = 200_000 if is_slow else 2_000
        rng = np.random.default_rng(4)
        names = list(MUTATIONS)
        verdicts: Counter[str] = Counter()
        with within(3600 if is_slow else 120):
            for i in range(n_files):
                data = bytearray(valid_file(rng))
                MUTATIONS[names[i % len(names)]](data, rng)
                verdicts[compare(path, bytes(data))] += 1
        # The comparison is one only if both verdicts are frequent.
        assert verdicts["both"] > n_files / 20
        assert verdicts["neither"] > n_files / 3
        if is_slow:
            print(dict(verdicts))
            assert {"a name twice", "other fields", "a type that lucid does not know", "no array can have this shape"} <= verdicts.keys()
