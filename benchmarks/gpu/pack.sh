#!/usr/bin/env bash
# What `run.sh` needs on a machine without network, in pieces that travel: wheels for Python 3.12, the small LLM, data.
# Usage: pack.sh DATA OUT [MIB]   DATA: the folder of the data sets; OUT: gets piece-*, of at most MIB (default 55) each
set -euo pipefail
data=$(cd "$1" && pwd) out=$2 size=${3:-55}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
rm -f "$out"/piece-*
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

platforms=()
for glibc in 2_28 2_27 2_24 2_17 2014 1; do
  case $glibc in *_*) tag=manylinux_$glibc ;; *) tag=manylinux$glibc ;; esac
  platforms+=(--platform "${tag}_x86_64")
done
python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -c "$root/constraints.txt" -r "$here/wheels.txt" -d "$work/wheels"
# Of rouge_score the index has no wheel.
python -m pip wheel --quiet --no-deps -c "$root/constraints.txt" -w "$work/wheels" rouge_score "$root" "$root"/plugins/*
mkdir -p "$work/data"
for name in hm-photos amazon-office-2014 lastfm-2k-audio; do cp -r "$data/$name" "$work/data/"; done
tar -C "$work" -c wheels data | split -b "${size}M" - "$out/piece-"
ls -lh "$out"
