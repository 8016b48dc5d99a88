"""Text files, compressed files, JSON lines, and what is no text."""

import gzip
import json
import lzma
import warnings

import pytest

from lucid.data import check_sources, find_sources
from lucid.data.sources import Source, open_lines
from lucid.errors import FormatError

TEXT = "One line.\nAnother.\n\n  \nA second document.\r\nIts end, äöü.\n"
LINES = [("One line.", True), ("Another.", False), ("A second document.", True), ("Its end, äöü.", False)]


def lines_of(path, field="text"):
    with open_lines(Source(path), field) as (lines, _):
        return [(line.text, line.is_first) for line in lines]


class TestReading:
    def test_plain(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())  # with a byte-order mark
        assert lines_of(path) == LINES

    @pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
    def test_compressed(self, tmp_path, suffix):
        path = tmp_path / f"a.txt{suffix}"
        if suffix == ".zst":
            zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
            compress = zstandard.ZstdCompressor().compress
        else:
            compress = {".gz": gzip.compress, ".xz": lzma.compress}[suffix]
        half = TEXT.encode()[:20], TEXT.encode()[20:]
        path.write_bytes(compress(half[0]) + compress(half[1]))  # several streams make one text
        assert lines_of(path) == LINES
        path.write_bytes(compress(TEXT.encode() * 10_000))
        assert len(lines_of(path)) == 40_000
        path.write_bytes(compress(TEXT.encode() * 100)[:-30])
        with pytest.raises(FormatError, match=rf"a.txt{suffix}: line \d+ cannot be unpacked"):
            lines_of(path)
        path.write_bytes(b"this is not compressed at all, whatever its name says")
        with pytest.raises(FormatError, match="line 1 cannot be unpacked"):
            lines_of(path)

    def test_zst_without_zstandard(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
        (tmp_path / "a.txt.zst").write_bytes(b"anything")
        with pytest.raises(ImportError, match=r"needs zstandard: pip install 'lucid-bert\[train\]'"):
            lines_of(tmp_path / "a.txt.zst")

    def test_json_lines(self, tmp_path):
        path = tmp_path / "a.jsonl"
        records = [{"body": "One line.\nAnother.", "n": 1}, {"body": "A second document.\nIts end, äöü."}]
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
        assert lines_of(path, "body") == LINES
        gz = tmp_path / "b.JSONL.gz"
        gz.write_bytes(gzip.compress(path.read_bytes()))
        assert lines_of(gz, "body") == LINES
        with pytest.raises(FormatError, match=r"line 1 has no text in the field 'text': it has body, n; name the field with --field"):
            lines_of(path)
        path.write_text('{"text": "a"}\n{"text": ["b"]}\n')
        with pytest.raises(FormatError, match="line 2 has no text in the field 'text'"):
            lines_of(path)
        path.write_text('{"text": "a"}\nnot json\n')
        with pytest.raises(FormatError, match="line 2 is not JSON"):
            lines_of(path)
        path.write_text('{"text": "a \\ud800"}\n')
        with pytest.raises(FormatError, match="lone surrogate"):
            lines_of(path)


class TestFinding:
    def test_files_folders_patterns(self, tmp_path):
        for name in ("b.txt", "a.txt", "sub/c.md", "sub/d.jsonl.gz", "sub/e.bin", ".hidden.txt"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
        found = find_sources([tmp_path / "b.txt", tmp_path])  # each once, at its first place
        assert [source.path.name for source in found] == ["b.txt", "a.txt", "c.md", "d.jsonl.gz"]
        assert [source.is_named for source in found] == [True, False, False, False]
        assert [source.path.name for source in find_sources([str(tmp_path / "**" / "*.md")])] == ["c.md"]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
            find_sources([tmp_path / "nowhere.txt"])
        with pytest.raises(FileNotFoundError, match="no file fits"):
            find_sources([str(tmp_path / "*.txt")])
        with pytest.raises(FileNotFoundError, match=r"holds no text files: they end in \.txt"):
            find_sources([tmp_path])
        with pytest.raises(FormatError, match="neither a file nor a folder"):
            find_sources(["/dev/null"])


class TestBadData:
    def test_empty(self, tmp_path):
        (tmp_path / "a.txt").write_text("")
        (tmp_path / "b.txt").write_text("text\n")
        with pytest.raises(FormatError, match=r"a\.txt is empty: there is no text in it"):
            check_sources(find_sources([tmp_path / "a.txt", tmp_path / "b.txt"]))
        with pytest.warns(UserWarning, match=r"a\.txt is empty"):  # found in a folder: the others will do
            check_sources(find_sources([tmp_path]))
        (tmp_path / "b.txt").write_text(" \n\n")
        with warnings.catch_warnings(), pytest.raises(FormatError, match="no text: every file is empty"):
            warnings.simplefilter("ignore")
            check_sources(find_sources([tmp_path]))

    def test_one_endless_line(self, tmp_path):
        (tmp_path / "a.txt").write_text("fine\n" + "word " * 300_000)
        with pytest.raises(FormatError, match=r"a\.txt: line 2 has more than 1,048,576 bytes: put each sentence or paragraph on a line"):
            check_sources(find_sources([tmp_path / "a.txt"]))

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1 is not UTF-8 .*: this is no text file"),
            (b"\x7fELF\2\1\1\0\0\0", "line 1 has a NUL byte: this is no text file"),
            ("Grün\n".encode("utf-16-le"), "NUL byte: this is no text file, or its text is not UTF-8"),
            ("fine\nGrün\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte 0xfc at offset 2 of the line\)"),
        ],
    )
    def test_binary(self, tmp_path, data, match):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(FormatError, match=match):
            check_sources(find_sources([tmp_path / "a.txt"]))

    def test_it_is_quick(self, tmp_path):
        """Only the beginning is read: what comes after 64 KiB is not looked at."""
        (tmp_path / "a.txt").write_bytes(b"a good line of text\n" * 4000 + b"\xff\xfe\n")
        check_sources(find_sources([tmp_path / "a.txt"]))
        with pytest.raises(FormatError, match="line 4001 is not UTF-8"):
            lines_of(tmp_path / "a.txt")
