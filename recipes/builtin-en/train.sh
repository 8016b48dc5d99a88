#!/usr/bin/env bash
# Train the built-in model from text, with lucid's environment active: train.sh CORPUS WORK. Some two hours on two cores.
# Stopped by Ctrl-C or SIGTERM, or killed, and started again, it goes on, and ends with the same bits.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 CORPUS WORK: the folder with train-*.txt.xz and validation.txt.xz, and a folder to work in" >&2; exit 2; }
recipe=$(cd "$(dirname "$0")" && pwd)
corpus=$(cd "$1" && pwd)
mkdir -p "$2" && cd "$2"
[ -e corpus ] || ln -s "$corpus" corpus
cp "$recipe"/config.json "$recipe"/*.toml .

# Whoever stops this script means what it runs.
child=
stop() { [ -z "$child" ] || { kill -TERM "$child"; wait "$child" || true; }; exit 143; }
trap stop INT TERM
run() { "$@" & child=$!; wait "$child"; child=; }

[ -e tokenizer/vocab.txt ] || run lucid train-tokenizer 'corpus/train-*.txt.xz' --vocab-size 8000 --out tokenizer
for stage in 1-short 2-middle 3-long; do
    [ -d "$stage/model" ] || run lucid pretrain --config "$stage.toml" --resume
done
python -c 'from lucid.models import BERTForMaskedLM as M; M.from_pretrained("3-long/model").save_pretrained("builtin_en", dtype="float16")'
lucid evaluate builtin_en --data corpus/validation.txt.xz
python "$recipe/unigram.py" tokenizer tokens
