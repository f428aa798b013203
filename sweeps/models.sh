#!/usr/bin/env bash
# The same sweep on several models, a folder for each, then the law of each.
#   sweeps/models.sh outputs/models tiny,smollm2_135m,qwen3_0_6b rank=2,4,8,16 seqlen=64,128,256,512
#   sweeps/models.sh outputs/laws smollm2_135m,qwen3_0_6b -f law launch=local
# First the results folder and the models, then what pml sweep takes. A model that fails does not stop the others; the exit
# code is then 1. The same command again does what is missing.
set -euo pipefail

if [ $# -lt 2 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  exit
fi

out=$1
IFS=, read -ra models <<<"$2"
shift 2
failed=()
for model in "${models[@]}"; do
  code=0
  pml sweep "$@" model="$model" out="$out/$model" || code=$?
  if [ $code -ge 128 ]; then exit $code; fi # interrupted
  if [ $code != 0 ]; then failed+=("$model"); fi
done
pml fit "$out" || failed+=(fit)
if [ ${#failed[@]} != 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
