#!/usr/bin/env bash
# Vectors beside ids on amazon-games-2018, of which titles are all that is known: behavior aligned on it, text on
# amazon-office-2014. Usage: games.sh DATA WORK [CONTESTANT...], DATA the folder of both data sets. Safe to interrupt: run it again.
# Then: python benchmarks/results/vectors_table.py WORK
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
games=$work/amazon-games-2018 office=$work/amazon-office-2014
source "$here/step.sh"

step import earec data import "$data/amazon-games-2018" --out "$games"
step import-office earec data import "$data/amazon-office-2014" --out "$office" --column category=categories
step align-text earec align --modality text --data "$office" --config "$here/amazon-office-2014.toml" --set align.max_steps=80
step fit earec behavior fit --data "$games" --lr 0.001 --dropout 0.2 --epochs 20 --patience 3 --batch-size 1024
step align-behavior earec align --modality behavior --data "$games" --config "$here/amazon-games-2018.toml" \
  --set align.max_steps=150
exec "$here/vectors.sh" amazon-games-2018 "$work" 0 "${@:3}"
