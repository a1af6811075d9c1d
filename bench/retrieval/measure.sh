#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Line retrieval from end to end: fine-tunes the model, trains controllers on what its answers need, and
# compares policies on cases that neither has seen.
#
#     measure.sh BUILD MODEL.gguf FOLDER
#
# BUILD holds bench/compare and bench/encode_cases; FOLDER takes all that is made: models, controllers,
# tables as JSON. Python needs torch, numpy, gguf and safetensors. The variables below may be set
# outside, e.g. for a small run without a GPU: DEVICE=cpu CASES=8 LINES=3 STEPS=2 ...
set -eu
build=$1 model=$2 folder=$3
here=$(dirname "$0")
: "${PYTHON:=python3}" "${DEVICE:=cuda}" "${LINES:=20}" "${TRAINING_CASES:=6000}" "${CASES:=200}"
: "${TUNE_STEPS:=600}" "${TUNE_SECONDS:=100}" "${TUNE_BATCH:=32}" "${TUNE_LR:=0.001}"
: "${STEPS:=2000}" "${OTHER_STEPS:=800}" "${BATCH:=32}" "${HIDDEN:=128}" "${BUDGETS:=50%,25%}" "${TOGETHER:=100}"
: "${ATTENTION_CASES:=2000}" "${NAMES:=}" "${QUERIES:=64}" "${RECORD:=0}" "${REPEATS:=6}" "${BEFORE:=3}" "${AFTER:=10}" "${K:=20}" "${RECENT:=64}"
start=$(date +%s)
say() { echo "== $(($(date +%s) - start)) s: $*"; }
mkdir -p "$folder"

make_cases() {  # NAME SEED CASES [option]
  name=$1 seed=$2 cases=$3; shift 3
  "$PYTHON" "$here/make_lines.py" --lines "$LINES" --cases "$cases" --seed "$seed" --out "$folder/$name.jsonl" "$@"
  "$build/bench/encode_cases" "$model" "$folder/$name.jsonl" "$folder/$name.tokens.jsonl"
}
label() {  # KIND CASES.jsonl MODEL
  mkdir -p "$folder/$1"
  "$PYTHON" "$here/label_lines.py" --device "$DEVICE" --model "$3" --cases "$folder/$2.jsonl" --tokens "$folder/$2.tokens.jsonl" \
    --labels "$1" --queries "$QUERIES" --record "$RECORD" --repeats "$REPEATS" --before "$BEFORE" --after "$AFTER" --k "$K" --recent "$RECENT" --out "$folder/$1/labels.safetensors"
}
train() {  # CONTROLLER KIND MODE STEPS
  "$PYTHON" "$here/../controller/train.py" --device "$DEVICE" --labels "$folder/$2/labels.safetensors" \
    --embeddings "$folder/$2/embeddings.safetensors" --out "$folder/$1.safetensors" --mode "$3" --position distance --max-length 1024 \
    --normalise rms --hidden "$HIDDEN" --batch "$BATCH" --lr 0.003 --schedule cosine --steps "$4" --evaluate-every 300 \
    > "$folder/$1.log" 2>&1
}
compare() {  # TABLE POLICIES [CASES.jsonl]
  "$build/bench/compare" --device "$DEVICE" --model "$folder/tuned.gguf" --retrieval "$folder/${3:-test}.jsonl" --together "$TOGETHER" \
    --budgets "$BUDGETS" --policies "$2" --json "$folder/$1.json" > "$folder/$1.txt" || true
  grep -E '^(policy|keep_all|[a-z_0-9]+[ (@])' "$folder/$1.txt" | sed "s|@$folder/|@|" || cat "$folder/$1.txt"
}
adaptive() {  # CONTROLLER rebuild-options...
  controller=$1; shift
  for options in "$@"; do printf '%s;' "adaptive_release@$folder/$controller.safetensors$options"; done
}

make_cases training 1 "$TRAINING_CASES" & make_cases test 1000001 "$CASES"
if [ -n "$NAMES" ]; then make_cases unseen_names 1000002 "$CASES" --names "$NAMES"; fi
wait
say "cases are written"
# labels of lines and embeddings do not depend on the fine-tuning, which leaves embeddings as they are
(label line training "$model" && train line_bilinear line bilinear "$STEPS") & first=$!
"$PYTHON" "$here/fine_tune.py" --device "$DEVICE" --model "$model" --tokens "$folder/training.tokens.jsonl" --held-out "$folder/test.tokens.jsonl" \
  --out "$folder/tuned.gguf" --steps "$TUNE_STEPS" --seconds "$TUNE_SECONDS" --batch "$TUNE_BATCH" --lr "$TUNE_LR"
say "the model is fine-tuned"
head -n "$ATTENTION_CASES" "$folder/training.jsonl" > "$folder/attended.jsonl"
head -n "$ATTENTION_CASES" "$folder/training.tokens.jsonl" > "$folder/attended.tokens.jsonl"
(label attention attended "$folder/tuned.gguf" && train attention_bilinear attention bilinear "$OTHER_STEPS") & third=$!
wait $first || tail -n 5 "$folder/line_bilinear.log"
(train line_query line query_conditioned "$OTHER_STEPS") & second=$!
say "line_bilinear: $(grep '^validation' "$folder/line_bilinear.log" || true)"

restored="+rebuild(count=16,schedule=restore)"
competing="+rebuild(count=16,schedule=restore,admit=compete)"
compare baselines "streaming_llm;h2o;decayed_h2o;tova;$(adaptive line_bilinear "" "$restored" "$competing" "+rebuild(count=24,schedule=restore,admit=compete)")"
say "restored"
compare rebuilt "$(adaptive line_bilinear "+rebuild(count=16)" "+rebuild(count=16,admit=compete)")"
say "rebuilt"
wait $second || tail -n 5 "$folder/line_query.log"
wait $third || tail -n 5 "$folder/attention_bilinear.log"
for controller in line_query attention_bilinear; do
  say "$controller: $(grep '^validation' "$folder/$controller.log" || true)"
  compare "$controller" "$(adaptive "$controller" "$competing")"
done
if [ -n "$NAMES" ]; then
  compare unseen_names "$(adaptive line_bilinear "" "$competing")" unseen_names
fi
say "done"
