#!/usr/bin/env bash
# Vectors beside ids where titles are all that is known of items: behavior aligned on the catalog, text on amazon-office-2014.
# Usage: titles.sh amazon-games-2018|amazon-office-2018 DATA WORK [CONTESTANT...], DATA the folder of the data sets.
# Of amazon-office-2018 the items that have words. Safe to interrupt: run it again.
# Then: python benchmarks/results/vectors_table.py WORK
set -euo pipefail
name=$1 data=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
catalog=$work/$name office=$work/amazon-office-2014
source "$here/step.sh"

case $name in
  amazon-games-2018) source=$data/$name core=5 fit=(--dropout 0.2 --epochs 20 --patience 3) ;;
  amazon-office-2018)
    source=$work/$name-with-words core=1 fit=(--dropout 0.5 --epochs 60)
    [ -d "$source" ] || python "$here/with_words.py" "$data/$name" "$source" ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac

step import earec data import "$source" --out "$catalog" --core "$core"
step import-office earec data import "$data/amazon-office-2014" --out "$office" --column category=categories
step align-text earec align --modality text --data "$office" --config "$here/amazon-office-2014.toml" --set align.max_steps=80
step fit earec behavior fit --data "$catalog" --lr 0.001 --batch-size 1024 "${fit[@]}"
step align-behavior earec align --modality behavior --data "$catalog" --config "$here/$name.toml" --set align.max_steps=150
exec "$here/vectors.sh" "$name" "$work" 0 "${@:4}"
