#!/usr/bin/env bash
# Does the text depend on the input? One modality of a data set aligned to an anchor that it can know, and explained
# over the whole test split, beside the same with another item's input.
# Usage: read.sh NAME DATA WORK [STEPS]   Safe to interrupt: run it again. Texts: WORK/NAME.parquet
set -euo pipefail
name=$1 data=$2 work=$3 steps=${4:-300}
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
source "$here/step.sh"
catalog=$work/$name

on=(--data "$catalog" --config "$here/read-$name.toml")

case $name in
  hm-photos) modality=vision import=(--column category=product_type) ;;
  amazon-office-2014) modality=behavior import=(--column category=categories) ;;
  lastfm-2k-audio)
    modality=audio import=()
    python3 "$here/common_tags.py" "$data" "$work/tagged"
    export EAREC_MODALITIES__AUDIO__FEATURES=$(cd "$data" && pwd)/vggish.npy
    data=$work/tagged ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac
step "read-import-$name" earec data import "$data" --out "$catalog" --force "${import[@]}"
if [ "$modality" = behavior ]; then
  step "read-fit-$name" earec behavior fit --data "$catalog" --lr 0.001 --dropout 0.5 --epochs 60 --batch-size 1024
fi
step "read-align-$name" earec align --modality "$modality" "${on[@]}" --set "align.max_steps=$steps" \
  --name "$modality/read"
step "read-explain-$name" earec explain "$modality/read" "${on[@]}" --out "$work/$name.parquet"
