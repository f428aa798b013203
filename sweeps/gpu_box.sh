#!/usr/bin/env bash
# A sweep on every GPU of this machine, then the law.
#   sweeps/gpu_box.sh outputs/box rank=4,8,16,32 seqlen=128,512,2048
#   sweeps/gpu_box.sh outputs/law_smol -f law model=smollm2_135m
# First the results folder, then what pml sweep takes. The same command again does what is missing.
set -euo pipefail

if [ $# = 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  exit
fi

out=$1
shift
code=0
pml sweep "$@" out="$out" launch=local || code=$?
if [ $code -gt 1 ]; then exit $code; fi # 1: some cells failed, the others count
pml fit "$out"
exit $code
