"""Examples and batches: whole lines of one document, every piece once, an order that can be entered anywhere."""

from itertools import pairwise

import numpy as np
import pytest
import texts

from lucid.data import Batches, Examples, Masker, Masking, Place, find_sources, prepare_corpus, shards
from lucid.errors import FormatError

TOKENIZER = texts.tokenizer()
GOES_ON = TOKENIZER.continues_word


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_PIECES", 150)  # several shards
    found = texts.documents(4, 40, n_lines=8, n_words=14)
    return prepare_corpus(find_sources([texts.write(tmp_path / "a.txt", found)]), TOKENIZER, tmp_path / "cache")


def lines_of(corpus):
    """Return documents of lines of ids."""
    found = []
    for shard in corpus.shards:
        lines = [part.tolist() for part in np.split(np.asarray(shard.pieces), shard.line_ends[:-1])]
        starts = [0, *shard.document_ends.tolist()]
        found += [lines[a:b] for a, b in pairwise(starts)]
    return found


def cut(lines, most):
    """Cut a document by a loop over its lines: the specification."""
    runs, run = [], []
    for line in lines:
        if len(run) + len(line) > most and run:
            runs.append(run)
            run = []
        while len(line) > most - len(run):
            at = next((i for i in range(most, 0, -1) if not GOES_ON[line[i]]), most)
            runs.append(line[:at])
            line = line[at:]
        run = run + line
    return [*runs, run]


@pytest.mark.parametrize("most", [2, 3, 7, 20, 64, 10_000])
def test_runs_of_whole_lines(corpus, most):
    examples = Examples(corpus, most, GOES_ON)
    wanted = [run for lines in lines_of(corpus) for run in cut(lines, most) if len(run) > 1]
    assert [examples.pieces(i).tolist() for i in range(len(examples))] == wanted
    assert examples.lengths.tolist() == [len(run) for run in wanted] and examples.lengths.max() <= most


def test_a_long_word_is_cut_where_it_must(tmp_path):
    (tmp_path / "a.txt").write_text("sun" + "s" * 12 + "\n")
    corpus = prepare_corpus(find_sources([tmp_path / "a.txt"]), TOKENIZER, tmp_path / "cache")
    assert Examples(corpus, 5, GOES_ON).lengths.tolist() == [5, 5, 3]


def test_nothing_to_learn_from(tmp_path):
    (tmp_path / "a.txt").write_text("sun moon\n")
    corpus = prepare_corpus(find_sources([tmp_path / "a.txt"]), TOKENIZER, tmp_path / "cache")
    with pytest.raises(ValueError, match="needs room for two tokens"):
        Examples(corpus, 1, GOES_ON)
    object.__setattr__(corpus, "shards", [shards.Shard(corpus.shards[0].pieces[:1], np.array([1]), np.array([1]))])
    with pytest.raises(FormatError, match="no document has more than one token"):
        Examples(corpus, 5, GOES_ON)


@pytest.fixture
def batches(corpus):
    return Batches(Examples(corpus, 18, GOES_ON), TOKENIZER, Masker(Masking(), TOKENIZER), 64, seed=9)


def epoch_of(batches, epoch):
    place, found = Place(epoch), []
    while place.epoch == epoch:
        found.append(batches.at(place))
        place = found[-1].end
    return found


class TestBatches:
    def test_every_example_comes_once_an_epoch(self, batches):
        orders = []
        for epoch in range(3):
            found = epoch_of(batches, epoch)
            numbers = np.concatenate([batch.numbers for batch in found])
            assert sorted(numbers.tolist()) == list(range(len(batches.examples)))
            assert found[-1].end == Place(epoch + 1, 0) and len(found) == batches.n_batches(epoch)
            orders.append(tuple(numbers.tolist()))
        assert len(set(orders)) == 3

    def test_they_are_full_and_well_formed(self, batches):
        found = epoch_of(batches, 0)
        for batch, following in zip(found, [*found[1:], None], strict=True):
            assert batch.n_tokens <= 64
            if following is not None:  # one more would have been too many
                assert batch.n_tokens + batches.examples.lengths[following.numbers[0]] + 2 > 64
            original = np.where(batch.labels != -100, batch.labels, batch.ids)
            for number, start, stop in zip(batch.numbers, batch.starts, batch.starts[1:], strict=False):
                wanted = [TOKENIZER.cls_token_id, *batches.examples.pieces(number), TOKENIZER.sep_token_id]
                assert original[start:stop].tolist() == wanted
        assert sum(batch.n_labels for batch in found) > 50

    def test_any_place_can_be_entered(self, batches):
        for batch in epoch_of(batches, 0)[3:6] + epoch_of(batches, 70_000)[1:3]:
            again = Batches(batches.examples, TOKENIZER, Masker(Masking(), TOKENIZER), 64, seed=9).at(batch.place)
            assert again.end == batch.end and np.array_equal(again.ids, batch.ids) and np.array_equal(again.labels, batch.labels)

    def test_masks_depend_on_seed_epoch_and_example_alone(self, batches):
        def masks(source, epoch):
            rows = {}
            for batch in epoch_of(source, epoch):
                for number, start, stop in zip(batch.numbers.tolist(), batch.starts, batch.starts[1:], strict=False):
                    rows[number] = (batch.ids[start:stop].tolist(), batch.labels[start:stop].tolist())
            return rows

        other_size = Batches(batches.examples, TOKENIZER, Masker(Masking(), TOKENIZER), 40, seed=9)
        other_seed = Batches(batches.examples, TOKENIZER, Masker(Masking(), TOKENIZER), 64, seed=10)
        assert masks(batches, 0) == masks(other_size, 0)
        assert masks(batches, 0) != masks(batches, 1) and masks(batches, 0) != masks(other_seed, 0)

    def test_a_batch_holds_the_longest_example(self, batches):
        longest = int(batches.examples.lengths.max()) + 2
        with pytest.raises(ValueError, match=f"does not hold the longest example, which has {longest}"):
            Batches(batches.examples, TOKENIZER, Masker(Masking(), TOKENIZER), longest - 1, seed=9)
        assert epoch_of(Batches(batches.examples, TOKENIZER, Masker(Masking(), TOKENIZER), longest, seed=9), 0)
