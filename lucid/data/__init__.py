"""From text to batches: sources, shards, examples, masks and their order."""

from lucid.data.batches import Batch, Batches, Place
from lucid.data.examples import Examples
from lucid.data.masking import Masker, Masking
from lucid.data.permutation import Permutation
from lucid.data.shards import Corpus, open_corpus, prepare_corpus
from lucid.data.sources import Source, check_sources, find_sources

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "Examples",
    "Masker",
    "Masking",
    "Permutation",
    "Place",
    "Source",
    "check_sources",
    "find_sources",
    "open_corpus",
    "prepare_corpus",
]
