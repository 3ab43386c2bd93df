#!/bin/bash
# a run of last spring
accelerate launch --num_cpu_threads_per_process 1 train_network.py \
  --pretrained_model_name_or_path="BASE" \
  --train_data_dir="IMAGES" --output_dir=OUTPUT --output_name cat \
  --network_module networks.lora --network_dim=4 --network_alpha=1 \
  --network_args conv_dim=4 conv_alpha=1 \
  --learning_rate 1e-4 --unet_lr 1e-4 --text_encoder_lr 5e-5 \
  --lr_scheduler constant_with_warmup --lr_warmup_steps 20 \
  --max_train_steps 100 --train_batch_size 2 --resolution 512 --enable_bucket \
  --caption_extension .txt --shuffle_caption --keep_tokens 1 \
  --mixed_precision no --save_precision fp16 --seed 42 --cache_latents \
  --noise_offset 0.05 --max_grad_norm 0.5 --sdpa --save_state --huber_shedule snr
