#!/usr/bin/env bash
# On a machine with a GPU: the CUDA tests, the three benchmarks, and alignments of docs/results.md at twenty times the
# processor's budget. Every part has its time, about 8 minutes together; one that fails leaves the others be.
# Usage: run.sh OUT [PIECES]   PIECES: the folder of pack.sh's pieces; without it everything is installed already
# Into OUT: summary, figures.tar.gz (what each part printed, its log, texts), adapters.tar.gz-* (registries, 15 MB each).
# Environment: SETS (for read.sh), TABLES (modalities of amazon-office-2014, anchor the title), MINUTES (of an alignment),
# DATA, BACKBONE, ITEMS and ROUNDS (of the benchmarks).
set -uo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d) failed=0
mkdir "$work/figures"
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE EAREC_HOME=${EAREC_HOME:-$work/home}
if [ -n "${2:-}" ]; then
  cat "$2"/piece-* | tar -x -C "$work"
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$work"/wheels/*.whl
  export PYTHONPATH=$work/site PATH=$work/site/bin:$PATH PIP_NO_INDEX=1 PIP_FIND_LINKS=$work/wheels
fi
data=${DATA:-$work/data} backbone=${BACKBONE:-smollm2-135m} items=${ITEMS:-2048} results=$root/benchmarks/results

part() { # NAME SECONDS COMMAND...: say how it went and how long it took
  local name=$1 limit=$2 started=$SECONDS result=done; shift 2
  timeout "$limit" "$@" >"$work/figures/$name" 2>"$work/figures/$name.log" || { result="FAILED ($?)"; failed=1; }
  printf '%-28s %-12s %4d s\n' "$name" "$result" $((SECONDS - started)) | tee -a "$out/summary"
}
benchmark() {
  part "$1.json" 120 python3 "$root/benchmarks/$1.py" --model "$backbone" --rounds "${ROUNDS:-3}" --json "${@:2}"
}
packed() { # FILE FOLDERS...
  tar -C "$work" -czf "$@"
}

: >"$out/summary"
part doctor 60 earec doctor
part tests 150 python3 -m pytest -q -p no:cacheprovider "$root/tests/cuda"
benchmark align --steps 9 --batch $((items / 32))
benchmark encode --items "$items"
benchmark generate --items $((items / 8))

# Batches of ten times as many samples, and twice the steps.
export EAREC_BACKBONE__MODEL=$backbone EAREC_ALIGN__BATCH_SIZE=160 EAREC_ALIGN__EPOCHS=1000
export EAREC_ALIGN__MAX_MINUTES=${MINUTES:-0.7} EAREC_EXPLAIN__BATCH_SIZE=128
for name in ${SETS-hm-photos amazon-office-2014 lastfm-2k-audio}; do
  part "read-$name" 120 bash "$results/read.sh" "$name" "$data/$name" "$work/$name" 600
  mv "$work/$name/$name.parquet" "$work/figures/" || true
  cp "$work/$name/json"/*.json "$work/figures/"
done
if [ -n "${TABLES:=}" ]; then
  export EAREC_REGISTRY=$work/tables/registry
  part import 60 earec data import "$data/amazon-office-2014" --out "$work/tables/office" --column category=categories
  part fit 120 earec behavior fit --data "$work/tables/office" --lr 0.001 --dropout 0.5 --epochs 60 --batch-size 1024
  for modality in $TABLES; do
    part "align-$modality.json" 120 earec align --json --modality "$modality" --data "$work/tables/office" \
      --config "$results/amazon-office-2014.toml" --name "$modality/amazon-office-2014"
  done
fi

packed "$out/figures.tar.gz" figures
cd "$work" && packed - */registry | split -b 15M - "$out/adapters.tar.gz-"
rm -rf "$work"
exit $failed
