"""Adapt the built-in model to a text file: python adapt_to_text.py FILE.

The last third of the paragraphs is kept aside to measure by. All files go to the folder `adapted`, the model to `adapted/run/model`.
"""

import sys
from pathlib import Path

import lucid.models as models
from lucid.training import PretrainOptions, pretrain

out = Path("adapted")
if len(sys.argv) != 2 or out.exists():
    sys.exit(f"{out} exists: remove it first" if out.exists() else __doc__)
text = Path(sys.argv[1]).read_text(encoding="utf-8")
paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
n_training = len(paragraphs) * 2 // 3
if not n_training:
    sys.exit(f"{sys.argv[1]} has fewer than two paragraphs, with empty lines between them")
out.mkdir()
(out / "training.txt").write_text("\n".join(paragraphs[:n_training]), encoding="utf-8")
(out / "held-out.txt").write_text("\n".join(paragraphs[n_training:]), encoding="utf-8")

outcome = pretrain(
    PretrainOptions(
        data=(f"{out}/training.txt",),
        validation=(f"{out}/held-out.txt",),
        from_checkpoint="builtin",
        out=f"{out}/run",
        steps=40,
        eval_every=40,
        batch_tokens=1024,
        lr=3e-4,
    )
)
masked = "You may reproduce and [MASK] copies of the work."
for name, model in (("before", models.from_builtin()), ("after", models.BERTForMaskedLM.from_pretrained(outcome.folder))):
    print(name, [guess.token_str for guess in model.fill_mask(masked)[0]])
