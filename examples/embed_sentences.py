"""Embed sentences: a vector for each, and the nearest ones to a question."""

import numpy as np

import lucid.models as models

SENTENCES = [
    "The heart pumps blood through the arteries.",
    "The senate passed the bill in the spring.",
    "Cells divide to replace damaged tissue.",
    "The president may veto an act of congress.",
    "Prices rise when demand exceeds supply.",
    "She walked slowly along the river.",
]

encoder = models.BERT.from_pretrained("builtin")
vectors = np.asarray(encoder.embed(SENTENCES, normalize=True))  # means over the tokens, of length 1
for question in ("How do the lungs and the blood vessels work?", "Who makes the laws?"):
    similarities = vectors @ np.asarray(encoder.embed([question], normalize=True))[0]
    print(question)
    for i in np.argsort(-similarities)[:2]:
        print(f"  {similarities[i]:.3f}  {SENTENCES[i]}")
