#!/usr/bin/env bash
# Do item vectors beat ids? Every contestant tuned alike on validation, three seeds, paired tests on the test targets.
# Usage: vectors.sh NAME WORK [TRIALS [CONTESTANT...]]   in a WORK that `run.sh NAME`, or `titles.sh`, has aligned in.
# Safe to interrupt. With contestants named it ends when they are trained.
set -euo pipefail
name=$1 work=$2 trials=${3:-8} only=" ${*:4} " text=text/$1 epochs=60 patience=8
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
catalog=$work/$name
on=(--data "$catalog" --config "$here/$name.toml")
mkdir -p "$work/tuned"
source "$here/step.sh"

case $name in
  movielens-small) template="{title}. {category}. {description}" composite=text=0.45,behavior=0.45,vision=0.1 ;;
  amazon-office-2014) template="{title}. {brand}. {category}. {description}" composite=text=0.5,behavior=0.5 ;;
  lastfm-2k-audio)
    template="{title}. {description}" composite=text=0.45,audio=0.1,behavior=0.45
    export EAREC_MODALITIES__AUDIO__FEATURES=${EAREC_MODALITIES__AUDIO__FEATURES:?the path of vggish.npy} ;;
  amazon-games-2018)
    template="{title}" composite=text=0.5,behavior=0.5 text=text/amazon-office-2014 epochs=20 patience=8 ;;
  amazon-office-2018) template="{title}" composite=text=0.5,behavior=0.5 text=text/amazon-office-2014 ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac

encode() { # NAME WHAT...: vectors of a model that reads the title, too
  local out=$1; shift
  step "encode-$out" earec encode "$@" "${on[@]}" --set "text.template=$template" --set text.max_tokens=56 \
    --name "vectors/$out"
}
contestant() { # NAME TABLE ITEMS...: tune, then train three seeds; without trials, as the settings file has it
  local out=$1 table=$2 file=$here/$name.toml; shift 2
  [[ $only =~ ^\ *$ || $only == *" $out "* ]] || return 0
  local settings=(--set "recommender.table=$table")
  if [ "$trials" -gt 0 ]; then
    file=$work/tuned/$out.toml
    step "tune-$out" earec recommend tune "$@" "${on[@]}" "${settings[@]}" --trials "$trials" --out "$file" \
      --set "recommender.epochs=$((epochs * 2 / 3))" --set "recommender.patience=$((patience * 3 / 4))"
    settings=()
  fi
  for seed in 0 1 2; do
    step "train-$out-$seed" earec recommend train "$@" --data "$catalog" --config "$file" "${settings[@]}" \
      --set "recommender.epochs=$epochs" --set "recommender.patience=$patience" \
      --set "recommender.seed=$seed" --name "recommender/$out-$seed"
  done
}

encode title-unaligned --unaligned --modalities text
encode title-text "$text" --modalities text
step compose-title earec compose --weights "$composite" --adapter "text=$text" --name composite/title
encode title-composite composite/title
contestant ids linear --ids
contestant unaligned mlp --vectors vectors/title-unaligned
contestant text mlp --vectors vectors/title-text
contestant composite mlp --vectors vectors/title-composite
contestant composite-ids mlp+ids --vectors vectors/title-composite
[[ $only =~ ^\ *$ ]] || exit 0

refs() { echo "$1=recommender/$1-0,recommender/$1-1,recommender/$1-2"; }
for part in all unseen cold warm; do
  step "compare-$part" earec recommend compare "$(refs ids)" "$(refs unaligned)" "$(refs text)" "$(refs composite)" \
    "$(refs composite-ids)" --data "$catalog" --slice "$part" || true
done
step compare-left-out earec recommend compare "$(refs ids)" "$(refs unaligned)" "$(refs text)" "$(refs composite)" \
  "$(refs composite-ids)" --data "$catalog" --exclude-seen
step compare-unaligned earec recommend compare "$(refs unaligned)" "$(refs text)" "$(refs composite)" --data "$catalog"
step compare-text earec recommend compare "$(refs text)" "$(refs composite)" --data "$catalog"
