#!/bin/bash
#SBATCH --job-name=llama3-8b
#SBATCH --gpus-per-node=8
# A launch script of Megatron-LM, as slipway check reads it (docs/how-to/check-what-you-have.md).
export CUDA_DEVICE_MAX_CONNECTIONS=1
NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | wc -l)
TP=${TP:-2}

MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336
    --num-attention-heads 32 --group-query-attention --num-query-groups 8
    --seq-length 8192 --max-position-embeddings 8192
    --swiglu --normalization RMSNorm --disable-bias-linear
    --position-embedding-type rope --rotary-base 500000
    --untie-embeddings-and-output-weights
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model meta-llama/Meta-Llama-3-8B
)
PARALLEL_ARGS=(
    --tensor-model-parallel-size "$TP"
    --context-parallel-size 2
    --sequence-parallel --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
)
TRAINING_ARGS="--bf16 --micro-batch-size 1 --global-batch-size 384 --train-iters 1000 \
    --hidden-dropout 0 --attention-dropout 0 --cross-entropy-loss-fusion \
    --lr 3e-4 --data-path $DATA_PATH --save $CHECKPOINTS"

srun torchrun --nnodes "$NODES" --nproc_per_node 8 pretrain_gpt.py \
    "${MODEL_ARGS[@]}" "${PARALLEL_ARGS[@]}" $TRAINING_ARGS
