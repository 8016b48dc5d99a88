#!/usr/bin/env bash
# Train the built-in model from text: train.sh CORPUS WORK. About two hours on two cores; stopped at any moment and started again, it goes on.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 CORPUS WORK: the folder with train-*.txt.xz and validation.txt.xz, and a folder to work in" >&2; exit 2; }
recipe=$(cd "$(dirname "$0")" && pwd)
corpus=$(cd "$1" && pwd)
mkdir -p "$2" && cd "$2"
ln -sfn "$corpus" corpus
cp "$recipe"/config.json "$recipe"/*.toml .

[ -e tokenizer/vocab.txt ] || lucid train-tokenizer 'corpus/train-*.txt.xz' --vocab-size 8000 --out tokenizer
for stage in 1-short 2-middle 3-long; do
    [ -d "$stage/model" ] || lucid pretrain --config "$stage.toml" --resume
done
python - <<'PYTHON'
from lucid.models import BERTForMaskedLM

BERTForMaskedLM.from_pretrained("3-long/model").save_pretrained("builtin_en", dtype="float16")
PYTHON
lucid evaluate builtin_en --data corpus/validation.txt.xz
