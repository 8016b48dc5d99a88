"""Guess the words behind [MASK]: the most probable ones, words that you name, and several masks together."""

import lucid.models as models

model = models.from_builtin()

for text in ("The [MASK] pumps blood through the body.", "World War [MASK] ended in 1945.", "He opened the [MASK] and went in."):
    guesses = model.fill_mask(text, top_k=3)[0]  # one list for each mask
    print(text, *(f"{guess.token_str} {guess.score:.2f}" for guess in guesses), sep="  ")

# Words that you name, of any number of pieces.
for guess in model.fill_mask("The patient was given [MASK].", targets=["medication", "water", "the Roman Empire"])[0]:
    print(f"{guess.log_prob:6.1f}  {guess.target}")

# Two masks that have to go together.
for filling in model.fill_mask("The [MASK] of the United [MASK] was elected.", joint=True, top_k=2):
    print(f"{filling.log_prob:6.1f}  {filling.sequence}")
