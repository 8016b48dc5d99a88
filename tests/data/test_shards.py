"""A corpus in shards: what is in it, that it is used again, and that nothing half-made or damaged is."""

import warnings

import numpy as np
import pytest
import texts

from lucid.data import Corpus, find_sources, prepare_corpus, shards
from lucid.errors import FormatError

TOKENIZER = texts.tokenizer()


def read_back(corpus: Corpus) -> list[list[list[int]]]:
    """Return documents of lines of ids."""
    found = []
    for shard in corpus.shards:
        lines = [part.tolist() for part in np.split(np.asarray(shard.pieces), shard.line_ends[:-1])]
        first = 0
        for end in shard.document_ends.tolist():
            found.append(lines[first:end])
            first = end
    return found


def ids_of(found):
    return [[TOKENIZER.encode(line, add_special_tokens=False) for line in lines] for lines in found]


def prepare(tmp_path, *paths, **settings) -> Corpus:
    return prepare_corpus(find_sources(paths), TOKENIZER, tmp_path / "cache", **settings)


def test_it_holds_the_pieces_of_every_line(tmp_path):
    first, second = texts.documents(1, 30), texts.documents(2, 20)
    corpus = prepare(tmp_path, texts.write(tmp_path / "a.txt", first), texts.write(tmp_path / "b.txt", second))
    wanted = ids_of(first + second)
    assert read_back(corpus) == wanted
    assert (corpus.n_documents, corpus.n_lines) == (50, sum(map(len, wanted)))
    assert corpus.n_pieces == sum(len(line) for lines in wanted for line in lines)
    assert corpus.shards[0].pieces.dtype == np.uint16


def test_blocks_and_shards_make_no_difference(tmp_path, monkeypatch):
    found = texts.documents(3, 60)
    path = texts.write(tmp_path / "a.txt", found)
    wanted = read_back(prepare(tmp_path, path))
    monkeypatch.setattr(shards, "_BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(shards, "_SHARD_PIECES", 200)
    reported = []
    corpus = prepare_corpus(find_sources([path]), TOKENIZER, tmp_path / "other", progress=lambda *n: reported.append(n))
    assert len(corpus.shards) > 5 and read_back(corpus) == wanted == ids_of(found)
    assert [sum(values) for values in zip(*reported, strict=True)] == [path.stat().st_size, corpus.n_pieces]


def test_lines_without_a_token_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("the sun\n\x01\n\n\x02\n\nthe moon\n")
    assert read_back(prepare(tmp_path, tmp_path / "a.txt")) == ids_of([["the sun"], ["the moon"]])


def test_it_is_used_again(tmp_path, monkeypatch):
    path = texts.write(tmp_path / "a.txt", texts.documents(1, 10))
    corpus = prepare(tmp_path, path)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_shards", None)  # nothing is tokenised
        (tmp_path / "moved.txt").write_bytes(path.read_bytes())  # the name does not count
        assert read_back(prepare(tmp_path, tmp_path / "moved.txt")) == read_back(corpus)
    other = prepare_corpus(find_sources([path]), type(TOKENIZER)(vocab=[*texts.VOCAB, "x"]), tmp_path / "cache")
    path.write_text("the sun walks home\n")
    changed = prepare(tmp_path, path)
    assert len({corpus.key, other.key, changed.key}) == 3 and changed.n_lines == 1


def test_two_orders_are_two_corpora(tmp_path):
    a, b = texts.write(tmp_path / "a.txt", texts.documents(1, 3)), texts.write(tmp_path / "b.txt", texts.documents(2, 3))
    assert prepare(tmp_path, a, b).key != prepare(tmp_path, b, a).key


@pytest.mark.parametrize("suffix", [".pieces", ".lines", ".documents"])
def test_damage_is_noticed(tmp_path, suffix):
    path = texts.write(tmp_path / "a.txt", texts.documents(1, 10))
    prepare(tmp_path, path)
    (shard,) = (tmp_path / "cache").rglob(f"*{suffix}")
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=rf"00000{suffix} was damaged: .*; remove .*corpus-.*, and it is made again"):
        prepare(tmp_path, path)


def test_a_pass_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"the sun\n" * 10 + b"\xff\n")
    with pytest.raises(FormatError, match="line 11 is not UTF-8"):
        prepare(tmp_path, path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_text_that_changes_meanwhile(tmp_path):
    path = texts.write(tmp_path / "a.txt", texts.documents(1, 10))
    with pytest.raises(FormatError, match=r"a\.txt changed while it was read: start again"):
        prepare(tmp_path, path, progress=lambda *_: path.write_text("the moon\n"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_document_longer_than_a_token(tmp_path):
    (tmp_path / "a.txt").write_text("sun\n\nmoon\n\nriver\n")
    with warnings.catch_warnings(), pytest.raises(FormatError, match="no document has more than one token"):
        warnings.simplefilter("error")
        prepare(tmp_path, tmp_path / "a.txt")


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    vocab = [*texts.VOCAB, *(f"w{i}" for i in range(1 << 16))]
    large = type(TOKENIZER)(vocab=vocab)
    (tmp_path / "a.txt").write_text("sun w65535 w3\n")
    corpus = prepare_corpus(find_sources([tmp_path / "a.txt"]), large, tmp_path / "cache")
    assert corpus.shards[0].pieces.tolist() == large.convert_tokens_to_ids(["sun", "w65535", "w3"])
