"""What reaches ``llm.pretrain`` is read back into the Spec of which it was built, judged, and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Layout, Refusal, Spec, load
from slipway.configs.load import record_of
from slipway.configs.schedule import stage_lines, warmup_line
from slipway.configs.schema.layout import AttentionBackend
from slipway.planner.levers import aligns_param_gather, bucket_size
from tests import forked
from tests.kinds import one_of_each_kind
from tests.recipes.test_merged import BUILT

# Layouts and switches that every recipe is built with, as far as they are legal for it.
VARIANTS = (
    "",
    "precision=fp8_current",
    "precision=fp8_delayed precision.grad_reduce_in_fp32=false",
    "layout.tp=2 layout.cp=2",
    "layout.tp=2 layout.sp=false layout.mbs=2",
    "layout.pp=2 layout.vpp=2 layout.recompute=full layout.recompute_num_layers=2",
    "layout.ep=4 layout.etp=1 layout.dispatcher=flex layout.gbs=256",
    "layout.distributed_optimizer=false layout.fused_cross_entropy=false layout.attention_backend=flash",
    "optim.precision_aware=true layout.optimizer_cpu_offload=true layout.seq_length=2048",
    "layout.pp=2 layout.tp=2 layout.tp_comm_overlap=true levers.wgrad_deferral_limit=4 levers.gc_interval=9",
    "layout.dispatcher=auto levers.bucket_size=0 levers.check_for_nan=false levers.sharp=true levers.nvls=true",
)
# Facts of a model that a recipe may change, and what else reaches the objects.
OTHERS = {
    "llama3_8b": "model.num_layers=16 model.hidden_size=2048 model.vocab_size=50000 model.rotary_base=20000 "
    "model.ffn_hidden_size=8192 model.qk_layernorm=true run.seed=7 run.max_steps=11 run.val_check_interval=5 "
    "run.checkpoint_every_n_steps=3 run.keep_checkpoints=1 run.async_save=false run.resume=false name=other gpus=32",
    "mixtral_8x7b": "layout.cp=2 layout.tp=2 model.num_moe_experts=16 model.moe_router_topk=4 "
    "model.moe_aux_loss_coeff=0.02",
    "qwen3_30b_a3b": "model.moe_router_load_balancing_type=global_aux_loss layout.tp=2 layout.ep=2",
    "deepseek_v3": "model.num_dense_layers=1 model.mtp_loss_scaling_factor=0.2 model.q_lora_rank=1024 layout.tp=1",
    "llama31_8b": "model.rope_scaling_factor=1 optim.warmup_steps=10 optim.decay_steps=100 optim.lr=1e-4 "
    "optim.min_lr=1e-5 optim.weight_decay=0.2 optim.clip_grad=2 optim.batch_ramp=['64_until_1M_tokens']",
}


def _elsewhere(spec: Spec) -> Spec:
    """A base with other values of everything that is read from the objects: nothing is read from the record."""
    precision = configs.precision("bf16" if spec.precision.gemm == "fp32" else "fp32")
    layout = Layout(source=spec.layout.source, split_unevenly=spec.layout.split_unevenly, mbs=3, gbs=3)
    optim = replace(spec.optim, lr=1.0, weight_decay=0.9, adam_eps=1e-3, precision_aware=not spec.optim.precision_aware)
    model = replace(spec.model, init_method_std=0.5, layernorm_epsilon=0.5)
    run = replace(spec.run, max_steps=spec.run.max_steps + 1, seed=99, log_every_n_steps=77)
    return replace(spec, gpus=1, layout=layout, optim=optim, model=model, precision=precision, run=run)


def _comparable(spec: Spec) -> dict[str, Any]:
    """The spec as plain data, with the schedule as its lines, and the switches that follow from others resolved."""
    optim, layout = spec.optim, spec.layout
    lines = [warmup_line(optim), *stage_lines(optim, spec.run.max_steps)]
    layout = replace(layout, sp=layout.sequence_parallel, seq_length=spec.seq_length, dispatcher=spec.dispatcher)
    if not layout.distributed_optimizer:
        layout = replace(layout, overlap_param_gather=False)
    if spec.model.family.startswith("gemma") and layout.attention_backend == "flash":
        layout = replace(layout, attention_backend=AttentionBackend.auto)  # NeMo's classes say flash
    levers = replace(spec.levers, bucket_size=bucket_size(spec), align_param_gather=aligns_param_gather(spec))
    record = record_of(replace(spec, layout=layout, levers=levers))
    for name in ("schedule", "stages", "decay_steps", "decay_tokens", "min_lr", "warmup_steps", "warmup_tokens"):
        record["optim"].pop(name)
    return record | {"lines": lines}


def _differences(spec: Spec, found: Spec) -> list[str]:
    from slipway.recipes.readback.judge import changes

    return changes(_comparable(spec), _comparable(found))


def _legal(name: str, words: list[str]) -> Spec | None:
    try:
        spec = load(name, words).spec  # without a search: what is not given is at its default, and need not fit
        planner.require_legal(spec)
    except Refusal:
        return None
    return spec


def _cases() -> list[tuple[str, Spec]]:
    out = []
    for name in one_of_each_kind():
        for variant in (*VARIANTS, OTHERS.get(name, "")):
            words = [word.replace("_until_", " until ").replace("_tokens'", " tokens'") for word in variant.split()]
            if spec := _legal(name, words):
                out.append((f"{name} {variant}", spec))
    return out


@pytest.mark.nemo
def test_every_recipe_in_many_layouts_is_read_back_from_what_was_built(in_child: Any) -> None:
    """From the configurations, as a front door has them, and from the objects, as a rank has them."""

    def differences() -> tuple[int, dict[str, list[str]]]:
        from slipway.recipes.build import build
        from slipway.recipes.readback import of_recipe, read_back
        from tests.megatron import parts_of_objects

        wrong, cases = {}, _cases()
        for label, spec in cases:
            recipe = build(spec)
            base = _elsewhere(spec)
            if found := _differences(spec, read_back(of_recipe(recipe), base)):
                wrong[label] = found
            if found := _differences(spec, read_back(parts_of_objects(recipe), spec)):
                wrong[f"objects of {label}"] = found
        return len(cases), wrong

    count, wrong = in_child(differences)
    assert wrong == {}
    assert count > 6 * len(one_of_each_kind()), "most variants are legal for most recipes"


@pytest.mark.nemo
def test_every_key_that_is_priced_is_read_back(in_child: Any) -> None:
    """From a recipe whose record has the key's other value."""

    def differences() -> dict[str, list[str]]:
        from slipway.recipes.build import build
        from slipway.recipes.readback import of_recipe, read_back

        wrong = {}
        for key, (name, overrides, _, _) in BUILT.items():
            words = overrides.split()
            spec, other = load(name, words).spec, load(name, words[:-1]).spec
            if found := _differences(spec, read_back(of_recipe(build(spec)), other)):
                wrong[key] = found
        return wrong

    assert in_child(differences) == {}


@pytest.mark.nemo
def test_a_rank_reads_its_tokenizer_from_the_arguments(in_child: Any, tmp_path: Path) -> None:
    """A small tokenizer does not change the model's vocabulary, which is the recipe's."""

    def read() -> tuple[str, int, int]:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        from slipway.recipes.build import build
        from slipway.recipes.readback import read_back
        from tests.megatron import parts_of_objects

        words = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
        spec = planner.complete(load("llama3_8b", [f"data.tokenizer={tmp_path}"]))
        found = read_back(parts_of_objects(build(spec)), spec)
        return found.data.tokenizer, found.model.vocab_size, spec.model.vocab_size

    tokenizer, found, promised = in_child(read)
    assert tokenizer == str(tmp_path)
    assert found == promised


BEHIND = "trainer.strategy.tensor_model_parallel_size=4"  # the recipe has 2


@pytest.mark.nemo
@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (
            f"{BEHIND} data.global_batch_size=96 data.seq_length=4096",
            ["model.config.seq_length=8192 and data.seq_length=4096 contradict each other. Give both the same value."],
        ),
        (
            f"{BEHIND} data.global_batch_size=97",
            ["layout.gbs=97", "changed behind the factory: layout.tp 2 -> 4, layout.gbs 512 -> 97"],
        ),
        ("trainer.strategy.tensor_model_parallel_size=1", ["layout.sp=true with layout.tp=1"]),
        ("data.micro_batch_size=16 data.global_batch_size=128", ["GiB on stage 0 and a H100 has"]),
        ("trainer.plugins.grad_reduce_in_fp32=False", ["grad_reduce_in_fp32=True contradict each other"]),
        ("trainer.strategy.pipeline_model_parallel_size=3", ["tp=2 x pp=3 x cp=1 = 6 does not divide gpus=8"]),
        ("model.config.tensor_model_parallel_size=4", ["trainer.strategy.tensor_model_parallel_size=2 contradict"]),
        ("optim.config.lr=1e-6", ["optim.min_lr=3e-06 is above optim.lr=1e-06"]),
        ("trainer.num_nodes=0", ["gpus=0 is not legal"]),
        ("log.name=other", ["log.name=other and log.log_dir=", "Give them to the factory: name= and dir=."]),
    ],
)
def test_what_is_illegal_behind_the_factory_is_refused(words: str, sentences: list[str], tmp_path: Path) -> None:
    for door in (["--dryrun"], ["-y"]):
        done = forked.nemo("llm", "pretrain", "--factory", "llama3_8b", *door, *words.split(), cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("slipway: ")]
        assert len(said) == 1
        for sentence in sentences:
            assert sentence in said[0]
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.nemo
def test_a_value_that_no_spec_may_have_is_one_sentence(in_child: Any) -> None:
    def said() -> dict[str, str]:
        from slipway.recipes.build import build
        from slipway.recipes.readback import judge_recipe

        spec = planner.complete(load("mixtral_8x7b"))
        out = {}
        for path, value in (
            ("model.config.moe_token_dispatcher_type", "foo"),
            ("model.config.moe_router_load_balancing_type", "foo"),
            ("model.config.attention_backend", "foo"),
            ("optim.config.optimizer", "sgd"),
            ("optim.lr_scheduler.stages", ["foo"]),
            ("trainer.devices", "auto"),
            ("trainer.plugins.precision", "16-mixed"),
            ("trainer.val_check_interval", 0.5),
            ("trainer.strategy.ddp", "pytorch"),
            ("trainer.callbacks", []),
        ):
            recipe = build(spec)
            *parents, name = path.split(".")
            part = recipe
            for parent in parents:
                part = getattr(part, parent)
            setattr(part, name, value)
            try:
                judge_recipe(recipe)
                out[path] = "accepted"
            except Refusal as refusal:
                out[path] = refusal.sentence()
        return out

    for path, sentence in in_child(said).items():
        key = path.rpartition(".")[2].removeprefix("moe_token_").removesuffix("_type").removeprefix("moe_router_")
        assert key in sentence, f"{path}: {sentence}"


@pytest.mark.nemo
def test_what_is_legal_behind_the_factory_is_named(tmp_path: Path) -> None:
    words = [BEHIND, "data.global_batch_size=256", "model.config.flash_decode=True", "trainer.max_steps=10"]
    done = forked.nemo("llm", "pretrain", "--factory", "llama3_8b", "--dryrun", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layout.tp 2 -> 4, layout.gbs 512 -> 256" in done.stderr
    assert "run.max_steps" in done.stderr
    assert "no rule and no memory estimate covers model.config.flash_decode=True (the recipe has False)" in done.stderr


@pytest.mark.nemo
@pytest.mark.slow
def test_the_record_is_what_ran_not_what_was_promised(tmp_path: Path) -> None:
    """Overrides behind the factory, in a run of the nemo command."""
    done = forked.nemo(
        *("llm", "pretrain", "--factory", f"llama3_tiny(tp=1,num_gpus_per_node=1,gbs=4,mbs=2,dir={tmp_path})", "-y"),
        *("trainer.max_steps=1", "data.global_batch_size=2", "optim.config.lr=1e-3", "model.config.num_layers=2"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "llama3_tiny/slipway/recipe.json").read_text())["spec"]
    found = record["layout"]["gbs"], record["optim"]["lr"], record["model"]["num_layers"], record["run"]["max_steps"]
    assert found == (2, 1e-3, 2, 1)


@pytest.mark.nemo
def test_a_rank_judges_what_it_is_given(in_child: Any, tmp_path: Path) -> None:
    """However it was started: an exported file that was changed by hand is refused before anything is made."""
    exported = tmp_path / "toy.yaml"

    def work() -> list[Any]:
        import contextlib
        import io

        import fiddle as fdl

        from slipway.launch.export import dump
        from slipway.launch.export import load as load_recipe
        from slipway.recipes.build import build

        spec = planner.complete(load("llama3_tiny", ["layout.tp=1", "gpus=1", f"run.dir={tmp_path}/runs"]))
        text = dump(build(spec, cpu=True))
        out: list[Any] = []
        for before, after in (
            ("global_batch_size: 16", "global_batch_size: 18"),
            ("global_batch_size: 16", "global_batch_size: 16"),
        ):
            exported.write_text(text.replace(before, after))
            built = fdl.build(load_recipe(exported))
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                try:
                    _start(built)
                    code: Any = "started"
                except SystemExit as end:
                    code = end.code
            out.append([code, said.getvalue(), (tmp_path / "runs").exists()])
        return out

    def _start(built: Any) -> None:
        from nemo.collections import llm

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llm, "pretrain", lambda **parts: None)
            built()

    refused, started = in_child(work)
    assert refused[0] == 2
    assert "layout.gbs=18" in refused[1]
    assert not refused[2]
    assert started[0] == "started"
    exported.write_text(exported.read_text().replace("global_batch_size: 16", "global_batch_size: 18"))
    done = forked.slipway("run", str(exported), cwd=tmp_path)
    assert done.returncode == 2
    assert "layout.gbs=18" in done.stderr
