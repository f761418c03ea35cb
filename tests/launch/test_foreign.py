"""``slipway check PATH``: what people already have is read, judged by the same rules, and answered in its own terms."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quotes import refresh_answers
from slipway import configs, planner
from slipway.configs import Refusal
from slipway.launch import foreign
from slipway.launch.cli.readable import check_file
from slipway.launch.foreign.megatron.arguments import definitions
from slipway.launch.foreign.megatron.model import pattern, spread
from tests.launch.test_cli import slipway

LLAMA3_8B = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
export CUDA_DEVICE_MAX_CONNECTIONS=1
TP=${TP:-2}
MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336
    --num-attention-heads 32 --group-query-attention --num-query-groups 8
    --seq-length 8192 --max-position-embeddings 8192
    --swiglu --normalization RMSNorm --disable-bias-linear
    --position-embedding-type rope --rotary-base 500000
    --untie-embeddings-and-output-weights
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model meta-llama/Llama-3-8B
)
PARALLEL="--tensor-model-parallel-size $TP \\
    --context-parallel-size 2 \\
    --sequence-parallel --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
srun torchrun --nnodes $SLURM_NNODES --nproc_per_node 8 pretrain_gpt.py \\
    "${MODEL_ARGS[@]}" $PARALLEL --bf16 --micro-batch-size 1 --global-batch-size 512 \\
    --hidden-dropout 0 --attention-dropout 0 --cross-entropy-loss-fusion --train-iters 100 \\
    --lr 3e-4 --data-path $DATA --save /results
"""


def _write(folder: Path, text: str, name: str = "train.sh") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _read(path: Path, *overrides: str, **settings: str) -> foreign.Reading:
    return foreign.read(path, foreign.Request(overrides, settings))


def test_a_script_of_llama3_8b_gets_the_answer_of_the_recipe(tmp_path: Path) -> None:
    """One law: the same run through two doors has the same parameters, memory and step time."""
    ours = configs.load("llama3_8b", ["gpus=16", "layout.tp=2", "layout.cp=2", "layout.mbs=1", "layout.gbs=512"]).spec
    theirs = _read(_write(tmp_path, LLAMA3_8B)).resolved.spec
    expected = planner.check(ours)
    found = planner.check(theirs, planner.Framework.megatron_lm)
    assert found.parameters == expected.parameters
    assert found.memory == expected.memory
    assert found.time and expected.time and found.time.step_time_s == pytest.approx(expected.time.step_time_s)


def test_every_argument_is_accounted_for(tmp_path: Path) -> None:
    text = LLAMA3_8B.replace("--bf16", "--bf16 --made-up 3 --another --no-rope-fusion")
    out = json.loads(slipway("check", str(_write(tmp_path, text)), "--json").stdout)
    source = out["source"]
    assert source["unknown"] == ["--made-up 3", "--another"]
    assert source["not_modelled"] == ["--no-rope-fusion"]
    assert source["irrelevant"] == ["--lr 3e-4", "--data-path ${DATA}", "--save /results"]
    flags = {word.split()[0] for key in ("used", "irrelevant", "unknown", "not_modelled") for word in source[key]}
    assert flags == {word for word in text.replace('"', " ").split() if word.startswith("--")} - {
        "--nodes=2", "--gpus-per-node=8", "--nnodes", "--nproc_per_node"
    } | {"--tensor-model-parallel-size"}  # fmt: skip
    assert out["model"] == {
        "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
        "num_query_groups": 8, "kv_channels": 128, "vocab_size": 128256, "num_moe_experts": 0, "moe_router_topk": 0,
        "total": 8030261248, "active": 8030261248,
    }  # fmt: skip
    assert (out["gpus"], out["layout"]["tp"], out["layout"]["cp"], out["layout"]["dp"]) == (16, 2, 2, 4)


def test_a_count_of_zero_is_said(tmp_path: Path) -> None:
    printed = slipway("check", str(_write(tmp_path, LLAMA3_8B))).stdout
    assert "not understood 0\n" in printed and "not modelled 0\n" in printed


def test_a_violation_names_the_argument_and_its_line(tmp_path: Path) -> None:
    path = _write(tmp_path, LLAMA3_8B.replace("TP=${TP:-2}", "TP=3"))
    done = slipway("check", str(path), "gpus=24", code=2)
    line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if "--tensor-model-parallel-size" in row)
    assert f"--tensor-model-parallel-size 3 (line {line}) does not divide the model's 32 attention heads" in done.stderr
    assert f"Use --tensor-model-parallel-size 2 or 4 (line {line})." in done.stderr
    assert "layout." not in done.stderr


def test_what_does_not_fit_comes_with_the_changes_to_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, LLAMA3_8B.replace("TP=${TP:-2}", "TP=1").replace("--context-parallel-size 2", ""))
    answer = check_file(_read(path, "gpus=8"), None)
    assert answer.verdict.legal and not answer.verdict.fits and answer.nearest
    assert all(
        change.startswith(("--", "Add --", "add --", "leave out --"))
        for change in answer.as_json()["nearest"]["changes"]
    )


def test_overrides_change_what_the_file_says(tmp_path: Path) -> None:
    spec = _read(
        _write(tmp_path, LLAMA3_8B), "gpu=h200", "gpus=32", "layout.tp=4", "precision=fp8_current"
    ).resolved.spec
    assert (spec.gpu.name, spec.gpus, spec.layout.tp, spec.precision.name) == ("h200", 32, 4, "fp8_current")
    assert spec.layout.sequence_parallel  # --sequence-parallel stands in the file


def test_settings_replace_what_only_a_shell_computes(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        LLAMA3_8B.replace("--nnodes $SLURM_NNODES", "--nnodes $NODES").replace("TP=$", "NODES=$(scontrol show)\nTP=$"),
    )
    with pytest.raises(Refusal, match="needs NODES") as refused:
        _read(path)
    assert "--set NODES=VALUE" in refused.value.fix
    assert _read(path, NODES="3").resolved.spec.gpus == 24
    assert _read(path, "gpus=8").resolved.spec.gpus == 8


def test_a_mixture_of_experts_with_latent_attention_and_windows(tmp_path: Path) -> None:
    text = LLAMA3_8B.replace(
        "--bf16",
        "--bf16 --num-experts 64 --moe-router-topk 6 --moe-ffn-hidden-size 1408 --moe-layer-freq '([0]*2+[1]*30)' "
        "--moe-shared-expert-intermediate-size 2816 --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 "
        "--multi-latent-attention --q-lora-rank 1536 --kv-lora-rank 512 --mtp-num-layers 1 --window-size '(128,0)' "
        "--window-attn-skip-freq 4",
    )
    model = _read(_write(tmp_path, text)).resolved.spec.model
    assert (model.num_moe_experts, model.moe_router_topk, model.num_dense_layers) == (64, 6, 2)
    assert (model.kv_lora_rank, model.qk_head_dim, model.v_head_dim) == (512, 128, 128)  # the last two by default
    assert (model.mtp_num_layers, model.window_size, model.window_every) == (1, 128, 4)


def test_defaults_are_those_of_megatron_lm(tmp_path: Path) -> None:
    text = "torchrun --nproc_per_node 8 pretrain_gpt.py --num-layers 4 --hidden-size 512 --num-attention-heads 8 "
    text += "--seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 2\n"
    reading = _read(_write(tmp_path, text))
    spec = reading.resolved.spec
    assert (spec.model.ffn_hidden_size, spec.model.num_query_groups, spec.model.kv_channels) == (2048, 8, 64)
    assert spec.model.add_bias_linear and spec.model.tied and spec.model.normalization == "LayerNorm"
    assert spec.model.position_embedding_type == "learned_absolute" and spec.precision.name == "fp32"
    assert not spec.layout.distributed_optimizer and not spec.layout.fused_cross_entropy and reading.dropout
    assert spec.layout.gbs == 16  # one micro-batch a rank


@pytest.mark.parametrize(
    ("was", "becomes", "rule", "fix"),
    [
        ("--use-distributed-optimizer", "", "overlap-param-gather", "Add --use-distributed-optimizer."),
        ("--overlap-grad-reduce", "", "overlap-param-gather", "Add --overlap-grad-reduce."),
        ("embeddings 8192", "embeddings 4096", "positions", "Use --max-position-embeddings 8192 (line 9)."),
    ],
)
def test_what_megatron_lm_asserts_is_a_rule_for_its_files_only(
    was: str, becomes: str, rule: str, fix: str, tmp_path: Path
) -> None:
    reading = _read(_write(tmp_path, LLAMA3_8B.replace(was, becomes, 1)))
    spec = reading.resolved.spec
    (broken,) = planner.check(spec, planner.Framework.megatron_lm).violations
    assert (broken.rule, reading.terms.say(broken.fix)) == (rule, fix)
    assert planner.check(spec).legal and planner.is_legal(spec)


def test_graphs_of_the_attention_are_legal_beside_experts_and_graphs_of_layers_are_not(tmp_path: Path) -> None:
    """Megatron-LM's own functional tests run the first."""
    experts = "--bf16 --num-experts 8 --expert-model-parallel-size 2 --expert-tensor-parallel-size 1 "
    experts += "--moe-token-dispatcher-type alltoall --cuda-graph-impl transformer_engine --cuda-graph-scope "
    for scope, broken in (("attn", []), ("full", ["experts-cuda-graphs"])):
        spec = _read(_write(tmp_path, LLAMA3_8B.replace("--bf16", experts + scope))).resolved.spec
        assert [found.rule for found in planner.check(spec, planner.Framework.megatron_lm).violations] == broken


def test_a_hybrid_is_allocated_by_its_ratios() -> None:
    assert spread(8, 0.25, 0.0) == "MM*MM*MM"
    symbols = spread(48, 0.08, 0.5)
    assert (symbols.count("*"), symbols.count("-"), symbols[0], symbols[-1]) == (4, 24, "M", "-")


def test_megatron_fsdp_is_refused_for_our_recipes_and_planned_for_megatron_lm(tmp_path: Path) -> None:
    text = LLAMA3_8B.replace(
        "--bf16", "--bf16 --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params"
    )
    spec = _read(_write(tmp_path, text)).resolved.spec
    assert spec.layout.fsdp == "megatron" and planner.check(spec, planner.Framework.megatron_lm).legal
    assert "fsdp-resume" in [found.rule for found in planner.check(spec).violations]


def test_a_model_config_of_megatron_lm(tmp_path: Path) -> None:
    text = """ENV_VARS: {CUDA_DEVICE_MAX_CONNECTIONS: 1}
BASE: &BASE
  --num-layers: 12
  --hidden-size: 512
  --num-attention-heads: 8
MODEL_ARGS:
  <<: *BASE
  --seq-length: 1024
  --max-position-embeddings: 1024
  --micro-batch-size: 4
  --global-batch-size: 32
  --tensor-model-parallel-size: 3
  --bf16: true
  --sequence-parallel: false
  --hierarchical-context-parallel-sizes: 2 2
  --recompute-granularity: selective
  --recompute-modules: "[core_attn mlp]"
  --lr: .00015
  --data-path: ${DATA_PATH}/text
"""
    path = _write(tmp_path, text, "model_config.yaml")
    reading = _read(path, "gpus=6")
    assert reading.resolved.spec.layout.recompute_modules == ["core_attn", "mlp"] and reading.unknown == []
    assert reading.resolved.spec.layout.sp is False
    assert "--tensor-model-parallel-size 3 (line 12)" in slipway("check", str(path), "gpus=6", code=2).stderr


def test_a_training_log_is_read_by_its_table_of_arguments(tmp_path: Path) -> None:
    values: dict[str, Any] = {made.dest: made.default for made in definitions().values()}
    values |= {"num_layers": 32, "encoder_num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336,
               "num_attention_heads": 32, "kv_channels": 128, "group_query_attention": True, "num_query_groups": 8,
               "seq_length": 8192, "encoder_seq_length": 8192, "max_position_embeddings": 8192, "swiglu": True,
               "normalization": "RMSNorm", "add_bias_linear": False, "position_embedding_type": "rope",
               "untie_embeddings_and_output_weights": True, "micro_batch_size": 1, "global_batch_size": 512,
               "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True,
               "virtual_pipeline_model_parallel_size": 4, "num_layers_per_virtual_pipeline_stage": 4,
               "bf16": True, "params_dtype": "torch.bfloat16", "main_grads_dtype": "torch.float32",
               "attention_backend": "AttnBackend.flash", "world_size": 16, "data_parallel_size": 4}  # fmt: skip
    rows = [f"  {key} {'.' * (48 - len(key))} {value}" for key, value in values.items()]
    text = "\n".join(["[rank0]: starting", "------------------------ arguments ------------------------", *rows,
                      "-------------------- end of arguments ---------------------",
                      " > padded vocab (size: 128256) with 0 dummy tokens (new size: 128256)",
                      " iteration 1/ 100 | lm loss: 11.9"])  # fmt: skip
    spec = _read(_write(tmp_path, text, "run.log")).resolved.spec
    assert (spec.gpus, spec.layout.tp, spec.layout.pp, spec.layout.vpp, spec.dp) == (16, 2, 2, 4, 4)
    assert planner.parameters(spec).total == 8030261248 and spec.layout.attention_backend == "flash"
    with pytest.raises(Refusal, match="ends within its table"):
        _read(_write(tmp_path, text[:400], "half.log"))


def test_a_file_of_arguments_needs_the_number_of_gpus(tmp_path: Path) -> None:
    text = "# the model\n--num-layers 4 --hidden-size 512 \\\n--num-attention-heads=8 # heads\n"
    text += "--seq-length 1024\n--micro-batch-size 1\n"
    path = _write(tmp_path, text, "gpt.args")
    with pytest.raises(Refusal, match="on how many GPUs"):
        _read(path)
    assert _read(path, "gpus=8").resolved.spec.model.num_attention_heads == 8


HUGGING_FACE = {
    "llama3_8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
    },
    "qwen3_30b_a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "max_position_embeddings": 40960,
    },
    "nemotron3_nano_30b_a3b": {
        "model_type": "nemotron_h", "hidden_size": 2688, "intermediate_size": 1856, "num_hidden_layers": 52,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 131072,
        "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712, "mamba_num_heads": 64, "mlp_hidden_act": "relu2",
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_hugging_face_model_has_the_parameters_of_ours(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    _write(folder, json.dumps(HUGGING_FACE[name] | {"eos_token_id": 2, "novelty": 1}), "config.json")
    reading = _read(folder, "gpus=64")
    ours = configs.load(name, ["gpus=64"], to_plan=True).spec
    found, expected = planner.parameters(reading.resolved.spec), planner.parameters(ours)
    assert (found.total, found.active) == (expected.total, expected.active)
    assert reading.unknown == ["novelty 1"] and "eos_token_id" in reading.irrelevant
    assert not reading.resolved.layout_given


def test_plan_and_advise_answer_for_a_model(tmp_path: Path) -> None:
    path = _write(tmp_path, json.dumps(HUGGING_FACE["llama3_8b"]), "config.json")
    plan = json.loads(slipway("plan", str(path), "gpus=8", "--top", "1", "--json").stdout)
    assert plan["candidates"][0]["parameters"]["total"] == 8030261248
    assert json.loads(slipway("advise", str(path), "gpus=8", "--json").stdout)["techniques"]


@pytest.mark.parametrize(("text", "value"), [("([0]*3+[1]*2)*2", [0, 0, 0, 1, 1] * 2), ("[1,0,1]", [1, 0, 1])])
def test_a_pattern_of_layers_is_computed(text: str, value: list[int]) -> None:
    assert pattern(text, "file") == value


@pytest.mark.parametrize("text", ["[0]*99999999", "[1", "__import__('os')", "([0]*2+1)", "[[0]*9999]*9999"])
def test_a_pattern_is_bounded_and_executes_nothing(text: str) -> None:
    with pytest.raises(Refusal, match="not a list of layers"):
        pattern(text, "file")


BAD = {
    "half.sh": LLAMA3_8B[: LLAMA3_8B.index("--sequence-parallel")],
    "empty.sh": " \n",
    "binary.sh": "#!/bin/bash\n\0\0",
    "no-launch.sh": "#!/bin/bash\necho hello\n",
    "other.sh": "#!/bin/bash\npython prepare.py --input a\n",
    "unknown-launcher.sh": LLAMA3_8B.replace(
        "srun torchrun --nnodes $SLURM_NNODES --nproc_per_node 8", "ray submit job"
    ),
    "undefined.sh": LLAMA3_8B.replace("--num-layers 32", "--num-layers $LAYERS"),
    "no-value.sh": LLAMA3_8B.replace("--num-layers 32", "--num-layers"),
    "not-a-number.sh": LLAMA3_8B.replace("--num-layers 32", "--num-layers many"),
    "contradiction.sh": LLAMA3_8B.replace("--train-iters 100", "--train-iters 100 --train-samples 5"),
    "layers.sh": LLAMA3_8B.replace("--num-layers 32", "--num-layers 99999999"),
    "layers.json": json.dumps(HUGGING_FACE["llama3_8b"] | {"num_hidden_layers": 99999999}),
    "heads.sh": LLAMA3_8B.replace("--hidden-size 4096", "--hidden-size 4097"),
    "two-vpp.sh": LLAMA3_8B.replace(
        "--bf16", "--num-layers-per-virtual-pipeline-stage 1 --num-virtual-stages-per-pipeline-rank 2"
    ),
    "vision.sh": LLAMA3_8B.replace("pretrain_gpt.py", "pretrain_vlm.py"),
    "t5.sh": LLAMA3_8B.replace("--bf16", "--bf16 --decoder-seq-length 128"),
    "broken.json": "{",
    "list.json": "[1]",
    "other.json": '{"a": 1}',
    "broken.yaml": "MODEL_ARGS: [",
    "empty.yaml": "MODEL_ARGS:\n",
    "what.txt": "some text\n",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(name: str, tmp_path: Path) -> None:
    done = slipway("check", str(_write(tmp_path, BAD[name], name)), code=2)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("slipway: ")


def test_a_large_file_and_a_missing_one(tmp_path: Path) -> None:
    large = tmp_path / "large.sh"
    with large.open("wb") as stream:
        stream.write(b"#!/bin/bash\n" + b"echo\n" * 20)
        stream.seek(100_000_000)
        stream.write(b"x")
    assert "not text" in slipway("check", str(large), code=2).stderr  # a hole is zeros
    large.write_text("echo a\n" * 1_000_000)
    assert "has 7 MB" in slipway("check", str(large), code=2).stderr
    assert "there is no file" in slipway("check", str(tmp_path / "none.sh"), code=2).stderr


def test_reading_a_script_imports_neither_torch_nor_nemo(tmp_path: Path) -> None:
    path = _write(tmp_path, LLAMA3_8B)
    code = (
        "import sys; from pathlib import Path; from slipway.launch import foreign; "
        "from slipway.launch.cli.readable import check_file; "
        f"check_file(foreign.read(Path({str(path)!r}), foreign.Request()), None); "
        "print(sorted({'torch', 'nemo', 'megatron'} & set(sys.modules)))"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_quoted_lines_of_an_answer_survive_a_refresh() -> None:
    """Two lines that begin with the same word stay two lines."""
    quoted = "```console\n$ slipway check docs/train.sh --set NODES=3\nnot modelled 7\nnot understood 7\n```\n"
    assert refresh_answers(quoted) == quoted.replace("7", "0")


NEMO_1 = """defaults:
  - _self_
run:
  name: llama2_70b_h100
trainer: {num_nodes: 128, devices: 8, precision: bf16, max_steps: 300000, accumulate_grad_batches: 1}
exp_manager:
  name: ${training.run.name}
model:
  micro_batch_size: 1
  global_batch_size: 2048
  rampup_batch_size: null
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 4
  virtual_pipeline_model_parallel_size: 5
  encoder_seq_length: 4096
  max_position_embeddings: ${.encoder_seq_length}
  num_layers: 80
  hidden_size: 8192
  ffn_hidden_size: ${multiply:${multiply:4, ${.hidden_size}}, 0.875}
  num_attention_heads: ${divide_ceil:${training.model.hidden_size}, 128}
  num_query_groups: 8
  kv_channels: null
  normalization: rmsnorm
  bias: false
  activation: fast-swiglu
  position_embedding_type: rope
  share_embeddings_and_output_weights: false
  hidden_dropout: 0.0
  attention_dropout: 0.0
  tokenizer: {library: sentencepiece, model: "${data_dir}/llama/tokenizer.model"}
  sequence_parallel: true
  cross_entropy_loss_fusion: true
  fp8: false
  made_up: 3
  mcore_customization_config: {parallel_attention: true}
  optim: {name: mcore_distributed_optim, lr: 1.5e-4, overlap_grad_sync: true, overlap_param_sync: true}
"""


def test_a_configuration_of_nemo_1_gets_the_answer_of_the_recipe(tmp_path: Path) -> None:
    """References are resolved, and the same run has the same parameters, memory and step time."""
    reading = _read(_write(tmp_path, NEMO_1, "llama2_70b.yaml"))
    theirs = reading.resolved.spec
    words = "gpus=1024 layout.tp=4 layout.pp=4 layout.vpp=5 layout.gbs=2048 precision.grad_reduce_in_fp32=true"
    ours = configs.load("llama2_70b", words.split()).spec
    expected, found = planner.check(ours), planner.check(theirs, reading.framework, lifted=reading.lifted)
    assert (found.parameters, found.memory, found.time) == (expected.parameters, expected.memory, expected.time)
    assert reading.unknown == ["model.made_up 3"]
    assert reading.not_modelled == ["model.mcore_customization_config.parallel_attention true"]
    done = slipway("check", str(tmp_path / "llama2_70b.yaml"), "layout.tp=3", code=2)
    assert "model.tensor_model_parallel_size=3" in done.stderr and "layout." not in done.stderr


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("num_layers: 80", "num_layers: many", "has model.num_layers=many, and not model.num_layers as a whole number"),
        ("  num_layers: 80\n", "", "does not say model.num_layers"),
        ("num_layers: 80", "num_layers: ${.num_layers}", "as a whole number"),
        ("  made_up: 3", "  encoder: {num_layers: 3}", "an encoder and a decoder"),
    ],
)
def test_what_a_configuration_of_nemo_1_lacks_is_one_sentence(
    was: str, becomes: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(Refusal) as refused:
        _read(_write(tmp_path, NEMO_1.replace(was, becomes), "broken.yaml"))
    assert says in refused.value.sentence()
