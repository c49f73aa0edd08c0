#!/usr/bin/env bash
# Do item vectors beat ids? Every contestant tuned alike on validation, three seeds, paired tests on the test targets.
# Usage: vectors.sh NAME WORK [TRIALS]   in a WORK that `run.sh NAME` has aligned in. Safe to interrupt.
set -euo pipefail
name=$1 work=$2 trials=${3:-8}
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
catalog=$work/$name
on=(--data "$catalog" --config "$here/$name.toml")
mkdir -p "$work/json" "$work/tuned"

case $name in
  movielens-small) template="{title}. {category}. {description}" composite=text=0.45,behavior=0.45,vision=0.1 ;;
  amazon-office-2014) template="{title}. {brand}. {category}. {description}" composite=text=0.5,behavior=0.5 ;;
  lastfm-2k-audio)
    template="{title}. {description}" composite=text=0.45,audio=0.1,behavior=0.45
    export EAREC_MODALITIES__AUDIO__FEATURES=${EAREC_MODALITIES__AUDIO__FEATURES:?the path of vggish.npy} ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac

step() { # NAME COMMAND...: keep the JSON result of a command; skip it when it is there
  local out=$work/json/$1.json; shift
  [ -s "$out" ] && return
  "$@" --json >"$out.partial" && mv "$out.partial" "$out"
}
encode() { # NAME WHAT...: vectors of a model that reads the title, too
  local out=$1; shift
  step "encode-$out" earec encode "$@" "${on[@]}" --set "text.template=$template" --set text.max_tokens=56 \
    --name "vectors/$out"
}
contestant() { # NAME TABLE ITEMS...: tune, then train three seeds
  local out=$1 table=$2; shift 2
  local settings=(--set recommender.epochs=40 --set recommender.patience=6 --set "recommender.table=$table")
  step "tune-$out" earec recommend tune "$@" "${on[@]}" "${settings[@]}" --trials "$trials" --out "$work/tuned/$out.toml"
  for seed in 0 1 2; do
    step "train-$out-$seed" earec recommend train "$@" --data "$catalog" --config "$work/tuned/$out.toml" \
      --set recommender.epochs=60 --set recommender.patience=8 \
      --set "recommender.seed=$seed" --name "recommender/$out-$seed"
  done
}

encode title-unaligned --unaligned --modalities text
encode title-text "text/$name" --modalities text
step compose-title earec compose --weights "$composite" --name composite/title
encode title-composite composite/title
contestant ids linear --ids
contestant unaligned mlp --vectors vectors/title-unaligned
contestant text mlp --vectors vectors/title-text
contestant composite mlp --vectors vectors/title-composite
contestant composite-ids mlp+ids --vectors vectors/title-composite

refs() { echo "$1=recommender/$1-0,recommender/$1-1,recommender/$1-2"; }
for part in all unseen cold warm; do
  step "compare-$part" earec recommend compare "$(refs ids)" "$(refs unaligned)" "$(refs text)" "$(refs composite)" \
    "$(refs composite-ids)" --data "$catalog" --slice "$part" || true
done
step compare-unaligned earec recommend compare "$(refs unaligned)" "$(refs text)" "$(refs composite)" --data "$catalog"
step compare-text earec recommend compare "$(refs text)" "$(refs composite)" --data "$catalog"
