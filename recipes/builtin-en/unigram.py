"""What guessing by frequency alone would reach on the masks of `lucid evaluate`: unigram.py TOKENIZER TOKENS, after train.sh."""

import sys
from pathlib import Path

import numpy as np

from lucid.data import Masking, Place
from lucid.data.shards import open_corpus
from lucid.models import BERTTokenizerFast
from lucid.training.run import evaluation_batches

tokenizer = BERTTokenizerFast.from_pretrained(sys.argv[1])
corpora = [open_corpus(folder) for folder in Path(sys.argv[2]).glob("corpus-*")]
validation, training = sorted(corpora, key=lambda corpus: corpus.n_pieces)
counts = sum(np.bincount(shard.pieces, minlength=tokenizer.vocab_size) for shard in training.shards)
log_probabilities = np.log((counts + 1) / (counts + 1).sum())  # no word is impossible

batches, place, labels = evaluation_batches(validation, tokenizer, 128, Masking()), Place(), []
while place.epoch == 0:
    batch = batches.at(place)
    labels.append(batch.labels[batch.labels != -100])
    place = batch.end
masked = np.concatenate(labels)
print(f"{len(masked):,} masked words, guessed by frequency")
print(f"perplexity {np.exp(-log_probabilities[masked].mean()):.2f}, accuracy {(masked == log_probabilities.argmax()).mean():.4f}")
