"""Score sentences by how probable each word is, given all the others.

The sum of these log-probabilities is the pseudo-log-likelihood of Salazar et al. 2020, "Masked Language Model Scoring".
It tells natural sentences from odd ones, and ranks what a speech recogniser, an OCR or a translation proposes.
"""

import numpy as np

import lucid.models as models

model = models.from_builtin()


def score(sentence: str) -> float:
    """Return the mean log-probability of the tokens of a sentence."""
    ids = np.array(model.tokenizer.encode(sentence))
    places = np.arange(1, len(ids) - 1)  # all but [CLS] and [SEP]
    rows = np.arange(len(places))
    masked = np.tile(ids, (len(places), 1))  # a copy for each token, with that token masked
    labels = np.full_like(masked, -100)
    labels[rows, places] = masked[rows, places]
    masked[rows, places] = model.tokenizer.mask_token_id
    return -model.get_loss(labels, masked).item()


for sentence in (
    "The children are playing in the garden.",
    "The children is playing in the garden.",
    "The children are playing in the equation.",
    "Garden the in playing are children the.",
):
    print(f"{score(sentence):6.2f}  {sentence}")
