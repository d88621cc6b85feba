#!/usr/bin/env bash
# Starts a configuration on every host of a Cloud TPU slice.
#
#   tools/launch_tpu_pod.sh --name=NAME --zone=ZONE --project=PROJECT \
#     --config=configs/qwen3_8b_math_v5p64.py --workdir=/mnt/RUNS/NAME [--config.KEY=VALUE ...] \
#     [--resume] [--extras=tpu,data,math] [--mode=ssh|xpk] [--dry-run]
#
# --config.KEY=VALUE and --resume go to experiments/train.py as they are; --extras (default tpu) are
# the extras of the package that hosts install: data for data sets on the hub, math for math_verify.
# --mode=ssh (default): NAME is a TPU VM. The repository is copied to every host, installed in a
#   virtual environment there, and training starts in the background; its output goes to
#   dfpo_jax.log in the home directory of each host.
# --mode=xpk: NAME is a GKE cluster that xpk made; also give --tpu-type (such as v5p-128, in xpk's
#   words). The repository becomes the job's image on top of --base-image (default python:3.12).
# The working directory must be one that every host can reach: on a shared file system, or in a
# bucket that every host has mounted.
# --dry-run prints the commands and runs none.
set -euo pipefail

usage() {
  sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
}

name="" zone="" project="" config="" workdir="" mode="ssh" tpu_type="" base_image="python:3.12"
extras="tpu" dry_run=false passed=()
for argument in "$@"; do
  value="${argument#*=}"
  case "$argument" in
    --name=*) name="$value" ;;
    --zone=*) zone="$value" ;;
    --project=*) project="$value" ;;
    --config=*) config="$value" ;;
    --workdir=*) workdir="$value" ;;
    --mode=*) mode="$value" ;;
    --tpu-type=*) tpu_type="$value" ;;
    --base-image=*) base_image="$value" ;;
    --extras=*) extras="$value" ;;
    --resume | --config.*=* | --noconfig.*) passed+=("$argument") ;;
    --dry-run) dry_run=true ;;
    *)
      echo "error: unknown argument $argument" >&2
      usage
      ;;
  esac
done

required=(name zone project config workdir extras)
if [[ "$mode" == "xpk" ]]; then
  required+=(tpu_type)
elif [[ "$mode" != "ssh" ]]; then
  echo "error: --mode=$mode; it must be ssh or xpk" >&2
  usage
fi
for argument in "${required[@]}"; do
  if [[ -z "${!argument}" ]]; then
    echo "error: --${argument//_/-} is missing" >&2
    usage
  fi
done

if [[ "$workdir" == *://* ]]; then
  echo "error: --workdir=$workdir; it must be a path, so mount the bucket on every host" >&2
  exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ ! -f "$root/${config%%:*}" ]]; then
  echo "error: --config=$config: there is no such file in the repository" >&2
  exit 2
fi

# One word that a remote shell reads as one word again.
quote() { printf '%q' "$1"; }

run() {
  if "$dry_run"; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

train="experiments/train.py --config=$(quote "$config") --workdir=$(quote "$workdir")"
for argument in ${passed[@]+"${passed[@]}"}; do  # bash 3 has no empty arrays
  train+=" $(quote "$argument")"
done
# The hosts must agree on the prompts, and some data sets depend on the order of Python's sets.
variables="PYTHONHASHSEED=0 DFPO_MULTIHOST=1"

if [[ "$mode" == "ssh" ]]; then
  where=(--zone="$zone" --project="$project" --worker=all)
  archive="$(basename "$root").tar.gz"
  run tar --exclude=.git --exclude=runs -czf "/tmp/$archive" -C "$root" .
  run gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:$archive" "${where[@]}"
  install="mkdir -p dfpo_jax && tar -xzf $(quote "$archive") -C dfpo_jax"
  install+=" && python3 -m venv venv && venv/bin/pip install --quiet $(quote "./dfpo_jax[$extras]")"
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$install"
  start="cd dfpo_jax && $variables nohup ../venv/bin/python $train > ../dfpo_jax.log 2>&1 < /dev/null &"
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$start"
else
  run xpk workload create \
    --cluster="$name" --zone="$zone" --project="$project" --tpu-type="$tpu_type" \
    --workload="dfpo-$(basename "${config%%.py*}" | tr _ -)" \
    --base-docker-image="$base_image" --script-dir="$root" \
    --command="pip install --quiet $(quote ".[$extras]") && $variables python $train"
fi
