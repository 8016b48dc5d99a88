"""Adapt the built-in model to a text file: python adapt_to_text.py FILE.

The last third of the paragraphs is kept aside to measure by. The adapted model is left in the folder `adapted/model`.
"""

import sys
from pathlib import Path

import lucid.models as models
from lucid.training import PretrainOptions, pretrain

text = Path(sys.argv[1]).read_text(encoding="utf-8")
paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
n_training = len(paragraphs) * 2 // 3
Path("training.txt").write_text("\n".join(paragraphs[:n_training]))
Path("held-out.txt").write_text("\n".join(paragraphs[n_training:]))

outcome = pretrain(
    PretrainOptions(
        data=("training.txt",),
        validation=("held-out.txt",),
        from_checkpoint="builtin",
        out="adapted",
        steps=40,
        eval_every=40,
        batch_tokens=1024,
        lr=3e-4,
    )
)
text = "You may reproduce and [MASK] copies of the work."
for name, model in (("before", models.from_builtin()), ("after", models.BERTForMaskedLM.from_pretrained(outcome.folder))):
    print(name, [guess.token_str for guess in model.fill_mask(text)[0]])
