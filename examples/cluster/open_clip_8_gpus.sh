#!/usr/bin/env bash
# OpenCLIP's own training command on 8 GPUs of one machine:
#   TRAIN_DATA='cc12m/{00000..01242}.tar' TRAIN_SAMPLES=10968539 bash open_clip_8_gpus.sh
# Options after it are OpenCLIP's and come last: bash open_clip_8_gpus.sh --epochs 5
set -euo pipefail

: "${TRAIN_DATA:?set it to the shards, such as 'cc12m/{00000..01242}.tar'}"
: "${TRAIN_SAMPLES:?set it to the number of pairs in them}"
# torchrun's own options: the SLURM file sets those of several machines.
read -ra launcher <<< "${LAUNCHER:---standalone --nproc_per_node 8}"

options=(
  --model "${MODEL:-elip-half-ViT-B-16}"
  --dataset-type webdataset --train-data "$TRAIN_DATA" --train-num-samples "$TRAIN_SAMPLES"
  --workers 8

  # Per GPU. A pruned tower keeps less for the backward pass, so a larger batch fits; how large:
  #   python -m benchmarks.machine memory --fit 79GiB --device cpu --precision bf16  # in a clone
  # A schedule with an unpruned part (warmup, final_unpruned) needs the memory of all tokens then.
  --batch-size "${BATCH_SIZE:-512}"
  # More than 1 where the batch does not fit even so: each batch then runs once more, without
  # gradient: about a third of a step more.
  --accum-freq "${ACCUM_FREQ:-1}"
  # Recomputes the blocks in backward, which costs another forward: leave it out where the batch
  # fits. Tokens are chosen once, outside of what is recomputed.
  --grad-checkpointing
  # The loss of one GPU's rows against all, with gradients through the gathered features; the guide
  # of an image is its own caption, on its own GPU.
  --local-loss --gather-with-grad

  # The cheaper the vision tower, the larger the text tower's part of a step, and most captions are
  # much shorter than 77 tokens. From OpenCLIP 3 on; evaluate with the same length.
  --force-context-length 32
  # Needs no gradient scaler. On GPUs older than Ampere: amp.
  --precision amp_bf16

  --epochs 32 --warmup 2000 --lr 1e-3 --wd 0.2
  --logs "${LOGS:-logs}" --save-frequency 1
)
# "--" ends torchrun's own options: it would take --logs for an abbreviation of one.
exec torchrun "${launcher[@]}" -m -- open_clip_train.main "${options[@]}" "$@"
