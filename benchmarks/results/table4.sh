#!/usr/bin/env bash
# The ablation of docs/results.md. Usage: table4.sh NAME DATA WORK [ROW,...]
# NAME is movielens-small or amazon-office-2014, DATA the data set's folder, WORK a folder for everything made.
# With ROWs (`earec reproduce --table 4 --dry-run` lists them), those alone are measured. Safe to interrupt: run it
# again. Several may run at once on one WORK with different ROWs, once the adapters are there. ALIGNMENT (default 0)
# is the alignment's seed, one WORK each (alignments.py compares them); SEEDS (default 3) the recommender's trainings.
set -euo pipefail
name=$1 data=$2 work=$3 rows=${4:-}
settings=$(cd "$(dirname "$0")" && pwd)/table4-$name.toml
export EAREC_REGISTRY=$work/registry
source "$(dirname "$0")/step.sh"
catalog=$work/$name

case $name in
  movielens-small)
    # 10-core: 2,269 of the 3,650 items, 90% of the interactions, 609 of the 610 users.
    import=(--core 10 --column "description=abstract|overview|plot")
    steps=(text=80 vision=100 behavior=150) ;;
  amazon-office-2014)
    import=(--column "category=categories")
    steps=(text=60 behavior=80) ;;
  *) echo "There is no data set $name here." >&2; exit 2 ;;
esac

step import earec data import "$data" --out "$catalog" --force --relations none "${import[@]}"
step fit earec behavior fit --data "$catalog" --lr 0.001 --dropout 0.5 --epochs 60 --batch-size 1024
modalities=
for one in "${steps[@]}"; do
  modality=${one%=*}
  step "align-$modality" earec align --modality "$modality" --data "$catalog" --config "$settings" --set "align.max_steps=${one#*=}" \
    --set "run.seed=${ALIGNMENT:-0}" --set "lora.seed=${ALIGNMENT:-0}"
  modalities=${modalities:+$modalities,}$modality
done
exec earec reproduce --table 4 --data "$catalog" --config "$settings" --modalities "$modalities" --seeds "${SEEDS:-3}" \
  ${rows:+--only "$rows"} --out "$work/table4${rows:+-$$}.md"
