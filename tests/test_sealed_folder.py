"""Sealed folders: written whole or not at all, and verified to the bit."""

import errno
import os
import random

import numpy as np
import pytest

from lucid import sealed_folder
from lucid.errors import FormatError
from lucid.sealed_folder import MANIFEST, HashedFile, remove, seal, sweep, verify


def make(target, **facts):
    with seal(target) as new:
        with new.open("a.bin") as file:
            file.write(b"some ")
            file.write(np.arange(100, dtype=np.float32))
        with new.open("empty"):
            pass
        new.facts = {"n": 3, **facts}
    return target


def test_it_is_there_and_verifies(tmp_path):
    folder = make(tmp_path / "sub" / "x", text="ü", number=0.1)
    assert verify(folder) == {"n": 3, "text": "ü", "number": 0.1}
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "empty", MANIFEST]
    assert (folder / "a.bin").read_bytes() == b"some " + np.arange(100, dtype="<f4").tobytes()
    assert [path.name for path in folder.parent.iterdir()] == ["x"]


def test_nothing_is_overwritten(tmp_path):
    folder = make(tmp_path / "x")
    with pytest.raises(FileExistsError):
        make(tmp_path / "x", n=4)
    assert verify(folder)["n"] == 3 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError):
        HashedFile(folder / "a.bin")


def test_what_raises_inside_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="in the middle"), seal(tmp_path / "x") as new:
        with new.open("a") as file:
            file.write(b"x")
        raise RuntimeError("in the middle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.bin", "empty", MANIFEST])
def test_every_change_is_noticed(tmp_path, name):
    folder = make(tmp_path / "x", words="and blanks in text")
    path = folder / name
    data = path.read_bytes()
    for i in range(len(data)):
        for flipped in (data[:i] + bytes([data[i] ^ 1 << random.Random(i).randrange(8)]) + data[i + 1 :], data[:i]):
            path.write_bytes(flipped)
            with pytest.raises(FormatError):
                verify(folder)
    for wrong in (data + b"\n", data + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(FormatError):
            verify(folder)
    path.unlink()
    with pytest.raises(FormatError, match="is missing" if name != MANIFEST else f"has no {MANIFEST}"):
        verify(folder)
    path.write_bytes(data)
    assert verify(folder)["n"] == 3


def test_a_disk_that_loses_what_it_took(tmp_path, monkeypatch):
    """A write that says it wrote and did not is noticed before the folder gets its name."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) if len(data) == 400 else real(fd, data))
    with pytest.raises(OSError, match="what was written is not what is there") as caught:
        make(tmp_path / "x")
    assert caught.value.errno == errno.EIO and list(tmp_path.iterdir()) == []


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    assert verify(make(tmp_path / "x"))["n"] == 3
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with pytest.raises(OSError, match="nothing was written"):
        make(tmp_path / "y")


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_disk_that_refuses(tmp_path, monkeypatch, call):
    make(tmp_path / "old")

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sealed_folder.os, call, refuse)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "x")
    assert verify(tmp_path / "old")["n"] == 3 and [path.name for path in tmp_path.iterdir()] == ["old"]


def test_sweep_and_remove(tmp_path):
    kept = make(tmp_path / "kept")
    (tmp_path / "tmp-x-1").mkdir()
    (tmp_path / "tmp-x-1" / "half").write_text("x")
    (tmp_path / "tmp-a-file").write_text("not a folder")
    remove(make(tmp_path / "gone"))
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "tmp-a-file"] and verify(kept)
    sweep(tmp_path / "nowhere")
