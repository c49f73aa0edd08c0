#!/usr/bin/env bash
# The table for movielens-small in docs/results.md. Usage: movielens-small.sh DATA WORK
# DATA is the data set's folder, WORK a folder for everything made. Safe to interrupt: run it again.
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
mkdir -p "$work/json"
catalog=$work/movielens-small settings=$here/movielens-small.toml

step() { # NAME COMMAND...: keep the JSON result of a command; skip it when it is there
  local out=$work/json/$1.json; shift
  [ -s "$out" ] && return
  "$@" --json >"$out.partial" && mv "$out.partial" "$out"
}

step import earec data import "$data" --out "$catalog" --column "description=abstract|overview|plot" --force
step fit earec behavior fit --data "$catalog" --lr 0.001 --dropout 0.5 --epochs 60 --batch-size 1024
for modality in behavior vision text; do
  step "align-$modality" earec align --modality $modality --data "$catalog" --config "$settings"
done
step compose-tvb earec compose --weights text=0.45,vision=0.1,behavior=0.45 --name composite/tvb
step compose-tv earec compose --weights text=0.7,vision=0.3 --name composite/tv
step encode-unaligned earec encode --unaligned --modalities text --data "$catalog" --config "$settings" --name vectors/unaligned
step encode-tvb earec encode composite/tvb --data "$catalog" --config "$settings" --name vectors/tvb
step encode-tv earec encode composite/tv --data "$catalog" --config "$settings" --name vectors/tv
step recommend-ids earec recommend train --ids --data "$catalog" --config "$settings" --name recommender/ids
for vectors in unaligned tv tvb; do
  step recommend-$vectors earec recommend train --vectors vectors/$vectors --data "$catalog" --config "$settings" --name recommender/$vectors
done
step explain-tvb earec explain composite/tvb --data "$catalog" --config "$settings" --items 100 --out "$work/texts-tvb.parquet"
