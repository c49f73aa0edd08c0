#!/usr/bin/env bash
# A table of docs/results.md. Usage: run.sh NAME DATA WORK
# NAME is a settings file beside this script, DATA the data set's folder, WORK a folder for everything made.
# Safe to interrupt: run it again. Then: python benchmarks/results/table.py WORK
set -euo pipefail
name=$1 data=$2 work=$3
settings=$(cd "$(dirname "$0")" && pwd)/$name.toml
export EAREC_REGISTRY=$work/registry
source "$(dirname "$0")/step.sh"
catalog=$work/$name

case $name in
  movielens-small)
    import=(--column "description=abstract|overview|plot")
    steps=(behavior=300 vision=100 text=80)
    composites=(tv:text=0.7,vision=0.3 tvb:text=0.45,vision=0.1,behavior=0.45) ;;
  amazon-office-2014)
    import=(--column "category=categories")
    steps=(behavior=150 text=80)
    composites=(tb:text=0.5,behavior=0.5) ;;
  lastfm-2k-audio)
    import=(--column "description=text")
    steps=(behavior=100 audio=100 text=60)
    composites=(tb:text=0.5,behavior=0.5 tba:text=0.45,audio=0.1,behavior=0.45)
    export EAREC_MODALITIES__AUDIO__FEATURES=$(cd "$data" && pwd)/vggish.npy ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac

on=(--data "$catalog" --config "$settings")

step import earec data import "$data" --out "$catalog" --force "${import[@]}"
# The same training twice is done once: behavior reads the embeddings of the recommender on ids.
step recommend-ids earec recommend train --ids "${on[@]}" --name recommender/ids
step fit earec behavior fit --data "$catalog" --lr 0.001 --dropout 0.5 --epochs 60 --batch-size 1024
for one in "${steps[@]}"; do
  modality=${one%=*}
  step "align-$modality" earec align --modality "$modality" "${on[@]}" --set "align.max_steps=${one#*=}"
done
step encode-unaligned earec encode --unaligned --modalities text "${on[@]}" --name vectors/unaligned
step recommend-unaligned earec recommend train --vectors vectors/unaligned "${on[@]}" --name recommender/unaligned
for one in "${composites[@]}"; do
  composite=${one%%:*}
  step "compose-$composite" earec compose --weights "${one#*:}" --name "composite/$composite"
  step "encode-$composite" earec encode "composite/$composite" "${on[@]}" --name "vectors/$composite"
  step "recommend-$composite" earec recommend train --vectors "vectors/$composite" "${on[@]}" --name "recommender/$composite"
done
for one in "${steps[@]}"; do
  modality=${one%=*}
  step "explain-$modality" earec explain "$modality/$name" "${on[@]}" --items 80
done
step "explain-$composite" earec explain "composite/$composite" "${on[@]}" --items 80 --out "$work/texts.parquet"
