#!/usr/bin/env bash
# ALBEF pre-training with LAVIS on 4 GPUs of one machine:
#   bash lavis_4_gpus.sh
# Overrides after it are LAVIS' and come last: bash lavis_4_gpus.sh run.max_epoch=5
# BLIP: CONFIG=lavis_configs/projects/blip/pretrain.yaml BATCH_SIZE=96. Put your data into the config.
set -euo pipefail

config="${CONFIG:-lavis_configs/projects/albef/pretrain.yaml}"
read -ra launcher <<< "${LAUNCHER:---standalone --nproc_per_node 4}"

options=(
  model.elip.preset="${PRESET:-half}"

  # Per GPU; model.queue_size must be a multiple of all GPUs' pairs: 4 x 128 suits ALBEF's 65536,
  # 4 x 96 BLIP's 57600. A pruned tower keeps less for the backward pass, so a larger batch fits:
  #   python -m benchmarks.machine memory --model elip_albef_pretrain --image-size 256 \
  #       --fit 79GiB --device cpu --precision bf16  # in a clone
  # A schedule with an unpruned part (warmup, final_unpruned) needs the memory of all tokens then.
  run.batch_size_train="${BATCH_SIZE:-128}"
  # Batches whose gradients are summed up before an update. LAVIS runs each of them once; the
  # contrastive loss still sees one batch and the queue.
  run.accum_grad_iters="${ACCUM_STEPS:-1}"
  # Recomputes the blocks in backward, which costs another forward: leave it out where the batch
  # fits. Tokens are chosen once, outside of what is recomputed.
  model.vit_grad_ckpt=True

  # Tokens of a caption.
  model.max_txt_len="${TEXT_LENGTH:-30}"
  # LAVIS' mixed precision: float16 with a gradient scaler.
  run.amp=True

  run.distributed=True
  run.num_workers=8
  run.output_dir="${OUTPUT:-output/albef/pretrain}"
)
exec torchrun "${launcher[@]}" -m elip_plugin lavis train --cfg-path "$config" "${options[@]}" "$@"
