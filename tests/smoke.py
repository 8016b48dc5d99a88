"""What a user of the wheel does first, with nothing but the wheel: run by hand or in CI, not collected."""

import json
import os
import subprocess
import sys
import tempfile

import lucid
import lucid.models as models

assert "cupy" not in sys.modules and "typer" not in sys.modules and "rich" not in sys.modules
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sun", "rises", "in", "east", "."]
lucid.manual_seed(0)
model = models.bert_for_masked_lm_tiny(vocab_size=len(words))
model.tokenizer = models.BERTTokenizerFast(vocab=words)
before = model.eval().fill_mask("The [MASK] rises in the east.")
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    assert models.BERTForMaskedLM.from_pretrained(folder).fill_mask("The [MASK] rises in the east.") == before
    lucid_command = [sys.executable, "-m", "lucid.cli"]
    table = subprocess.run(
        [*lucid_command, "fill-mask", "The [MASK] rises.", "--model", folder], check=True, capture_output=True, text=True
    )
    assert "probability" in table.stdout
    wrong = subprocess.run([*lucid_command, "fill-mask", "No mask.", "--model", folder], capture_output=True, text=True)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and "[MASK]" in wrong.stderr
    environment = {name: value for name, value in os.environ.items() if name != "LUCID_MODEL"}
    masked = [*lucid_command, "fill-mask", "The [MASK] rises in the east.", "--json"]
    found = subprocess.run(masked, check=True, capture_output=True, text=True, env=environment, cwd=folder)
guesses = json.loads(found.stdout)["masks"][0]
assert [guess["token_str"] for guess in guesses] == [
    guess.token_str for guess in models.from_builtin().fill_mask("The [MASK] rises in the east.")[0]
]
lucid.show_config()
print("smoke test passed")
