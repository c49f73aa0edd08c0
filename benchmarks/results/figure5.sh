#!/usr/bin/env bash
# Does ROUGE-L go with recommendation (the paper's Figure 5)? Text adapters of amazon-office-2014 that differ in training,
# each explained over the whole test split and trained on with three seeds.
# Usage: figure5.sh DATA WORK   Safe to interrupt: run it again. Then: python figure5.py WORK
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
mkdir -p "$work/json"
catalog=$work/amazon-office-2014
on=(--data "$catalog" --config "$here/table4-amazon-office-2014.toml")

step() { # NAME COMMAND...: keep the JSON result of a command; skip it when it is there
  local out=$work/json/figure5-$1.json; shift
  [ -s "$out" ] && return
  "$@" --json >"$out.partial" && mv "$out.partial" "$out"
}
adapter() { # NAME SETTING...: align, explain, encode, train three seeds
  local name=$1; shift
  local settings=(); for setting in "$@"; do settings+=(--set "$setting"); done
  step "align-$name" earec align --modality text "${on[@]}" "${settings[@]}" --name "figure5/$name"
  step "explain-$name" earec explain "figure5/$name" "${on[@]}" --set explain.max_new_tokens=20
  step "encode-$name" earec encode "figure5/$name" "${on[@]}" --name "vectors/figure5-$name"
  for seed in 0 1 2; do
    step "train-$name-$seed" earec recommend train --vectors "vectors/figure5-$name" --data "$catalog" \
      --set recommender.batch_size=1024 --set recommender.lr=2e-3 --set recommender.epochs=25 --set recommender.patience=5 \
      --set "recommender.seed=$seed" --name "recommender/figure5-$name-$seed"
  done
}

step import earec data import "$data" --out "$catalog" --force --column category=categories
adapter 5-steps align.max_steps=5
adapter 10-steps align.max_steps=10
adapter 20-steps align.max_steps=20
adapter 40-steps align.max_steps=40
adapter 80-steps align.max_steps=80
adapter slow align.max_steps=80 align.lr=1e-4 align.projector_lr=1e-4
adapter rank-2 align.max_steps=80 lora.r=2 lora.alpha=4
adapter few-items align.max_steps=80 align.max_items=100
