"""transformers loads the model that comes with lucid, and gives the same logits."""

import numpy as np
import pytest

import lucid.models as models
from lucid.hub import BUILTIN, checkpoint_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["The [MASK] rises in the east.", "Water boils at a high [MASK], and freezes at a low one.", "Unaffable, isn't it?"]


def test_logits_and_ids_are_equal():
    folder = checkpoint_folder(BUILTIN)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = models.from_builtin()
    inputs = model.tokenizer.encode_batch(TEXTS)
    theirs_in = their_tokenizer(TEXTS, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(theirs_in["input_ids"].numpy(), inputs["input_ids"])
    with torch.no_grad():
        expected = theirs(**theirs_in).logits.numpy()
    is_real = inputs["attention_mask"] == 1
    found = np.asarray(model(**inputs))
    assert np.abs(found - expected)[is_real].max() < 4e-6 * np.abs(expected).max()
