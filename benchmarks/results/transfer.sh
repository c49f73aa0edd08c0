#!/usr/bin/env bash
# What a recommender of one catalog is worth on another: amazon-office-2018 (items with words) to amazon-office-2014.
# Usage: transfer.sh DATA WORK   in a WORK where `run.sh amazon-office-2014` has aligned text; DATA: the data sets' folder.
# Each model without training and with 1, 5, 25 and 100% of the target's users, from the source and from nothing.
# Safe to interrupt. Then: python benchmarks/results/transfer_table.py WORK
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
export EAREC_REGISTRY=$work/registry
source "$here/step.sh"
target=$work/amazon-office-2014 source=$work/amazon-office-2018
[ -d "$source-with-words" ] || python "$here/with_words.py" "$data/amazon-office-2018" "$source-with-words"
step import-source earec data import "$source-with-words" --out "$source" --core 1

encode() { # NAME CATALOG TEMPLATE: by the same text adapter and prompt
  step "encode-transfer-$1" earec encode text/amazon-office-2014 --data "$2" --config "$here/amazon-office-2014.toml" \
    --set "text.template=$3" --set text.max_tokens=56 --name "vectors/transfer-$1"
}
encode source "$source" "{title}"
encode target "$target" "{title}. {brand}. {category}. {description}"

train() { # NAME CATALOG VECTORS OPTIONS...
  step "transfer-$1" earec recommend train --data "$2" --vectors "vectors/transfer-$3" --name "recommender/transfer-$1" \
    --config "$here/amazon-office-2018.toml" --set recommender.seed=0 "${@:4}"
}
until=(--set recommender.epochs=60 --set recommender.patience=8)
for model in earec unisrec missrec; do
  pretrain=()
  [ "$model" = unisrec ] && pretrain=(--set recommender.pretrain=true)
  train "$model" "$source" source --model "$model" "${until[@]}" "${pretrain[@]}"
  train "$model-0" "$target" target --from "recommender/transfer-$model" --set recommender.epochs=0
  for share in 0.01 0.05 0.25 1; do
    users=(--set "recommender.train_users=$share" "${until[@]}")
    train "$model-$share" "$target" target --from "recommender/transfer-$model" "${users[@]}"
    train "$model-$share-alone" "$target" target --model "$model" "${users[@]}"
  done
done
