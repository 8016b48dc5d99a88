"""What the model reads at once: a run of consecutive lines of one document, as many as fit."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from lucid.data.shards import Corpus, Shard
from lucid.errors import FormatError


class Examples:
    """The runs of whole lines into which the documents of a corpus fall, by number.

    A run takes lines as long as they fit, and never crosses the end of a document. A line that is too long for a run of its own
    is cut between words, and its rest begins the next run. A run of a single piece is left out: it would have no context.

    Parameters
    ----------
    corpus : Corpus
    most_pieces : int, >= 2. What fits: [CLS] and [SEP] not counted.
    continues_word : array of bool, shape (vocabulary,). Pieces before which no line is cut.

    Attributes
    ----------
    lengths : array, int32. Pieces of each run.

    Raises
    ------
    FormatError
        There is no run, or there are 2**31 of them.
    """

    def __init__(self, corpus: Corpus, most_pieces: int, continues_word: Any) -> None:
        if most_pieces < 2:
            raise ValueError(f"an example needs room for two tokens besides [CLS] and [SEP], not {most_pieces}")
        self._shards = corpus.shards
        starts, lengths = [], []
        for shard in corpus.shards:
            cuts = _cuts(shard, most_pieces, continues_word)
            sizes = np.diff(cuts)
            starts.append(cuts[:-1][sizes > 1])
            lengths.append(sizes[sizes > 1].astype(np.int32))
        self._firsts = np.cumsum([0, *map(len, starts)])  # the first example of each shard
        self._starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)
        if not len(self.lengths):
            raise FormatError("no document has more than one token: there is nothing to learn from")
        if len(self.lengths) >= 1 << 31:
            raise FormatError(f"{len(self.lengths):,} examples are more than can be numbered: split the text into several runs")

    def __len__(self) -> int:
        return len(self.lengths)

    def pieces(self, number: int) -> Any:
        """Return the ids of an example's pieces, without [CLS] and [SEP]: an array, mapped."""
        shard = self._shards[int(np.searchsorted(self._firsts, number, side="right")) - 1]
        start = int(self._starts[number])
        return shard.pieces[start : start + int(self.lengths[number])]


def _cuts(shard: Shard, most: int, continues_word: Any) -> Any:
    """Return where examples begin and end: rising places among the pieces of a shard, from 0 to its end."""
    line_ends = memoryview(shard.line_ends)
    cuts = [0]
    place = 0
    for document_end in shard.line_ends[shard.document_ends - 1].tolist():
        while place < document_end:
            limit = place + most
            if limit >= document_end:
                place = document_end
            else:
                n_ended = bisect_right(line_ends, limit)
                line_end = line_ends[n_ended - 1] if n_ended else 0
                place = line_end if line_end > place else _between_words(shard.pieces, place, limit, continues_word)
            cuts.append(place)
    return np.array(cuts, np.int64)


def _between_words(pieces: Any, start: int, limit: int, continues_word: Any) -> int:
    """Return the last place up to `limit` where a word begins, or `limit` if there is none behind `start`."""
    begins = np.flatnonzero(~continues_word[pieces[start + 1 : limit + 1]])
    return start + 1 + int(begins[-1]) if len(begins) else limit
