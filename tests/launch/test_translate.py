"""``slipway translate``: the same run for another stack, proved by reading what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.configs.record import plain_of
from slipway.launch import foreign
from slipway.launch.translate import megatron_bridge, megatron_lm
from slipway.launch.translate.written import Written
from tests.launch.test_cli import slipway
from tests.launch.test_foreign import LLAMA3_8B, _write

VARIANTS = (
    "",
    "precision=fp8_current layout.tp=2 layout.cp=2",
    "precision=fp8_delayed precision.grad_reduce_in_fp32=false layout.mbs=2",
    "layout.pp=2 layout.vpp=2 layout.recompute=full layout.recompute_num_layers=2",
    "layout.pp=2 layout.tp=2 layout.tp_comm_overlap=true levers.wgrad_deferral_limit=4 levers.gc_interval=9",
    "layout.ep=4 layout.etp=1 layout.dispatcher=flex layout.gbs=256 layout.recompute=selective",
    "layout.distributed_optimizer=false layout.overlap_param_gather=false layout.fused_cross_entropy=false "
    "layout.attention_backend=flash",
    "optim.precision_aware=true layout.optimizer_cpu_offload=true layout.seq_length=2048 layout.tp=2 layout.sp=false",
)
# What says where a run came from, and what no stack but ours has.
OF_OURS = (
    "name",
    "source",
    "family",
    "nemo_config",
    "cluster",
    "data",
    "task",
    "run.",
    "gpu.",
    "software",
    "pad_vocab",
)
# The learning rate is written in steps; a dense model has no dispatcher.
REWRITTEN = ("warmup", "decay", "schedule", "stages", "context_extension", "layout.dispatcher", "layout.split_unevenly",
             "layout.sp", "layout.seq_length", "model.seq_length", "max_position_embeddings", "recompute_method",
             "recompute_num_layers", "bf16_layers", "layout.etp", "mtp_loss", "levers.align_param_gather",
             "moe_router_bias_update_rate", "overlap_param_gather", "rotary_base", "kv_channels", "wsd",
             "precision_aware", "moments", "levers.moe_router_fusion", "init_method_std", "epsilon", "moe_aux",
             "load_balancing", "expert_bias", "router_num_groups", "group_topk", "rope_scaling", "bucket_size",
             "num_query_groups", "make_vocab", "min_lr", "add_qkv_bias")  # fmt: skip


def _cases() -> Iterator[tuple[str, Spec]]:
    for name in configs.recipe_names():
        for variant in VARIANTS:
            try:
                spec = configs.load(name, variant.split()).spec
            except Refusal:
                continue
            if planner.is_legal(spec) and not planner.check(spec, planner.Framework.megatron_lm).violations:
                yield f"{name} {variant}", spec


def _read(folder: Path, target: str, spec: Spec, written: Written) -> foreign.Reading:
    name = "run.sh" if target == "megatron-lm" else "run_config.yaml"
    overrides = () if target == "megatron-lm" else (f"gpus={spec.gpus}",)
    return foreign.read(_write(folder, written.text, name), foreign.Request((*overrides, f"gpu={spec.gpu.name}")))


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    if isinstance(a, dict):
        return [line for key in a for line in _differences(a[key], b.get(key), f"{prefix}{key}.")]
    key = prefix[:-1]
    same = a == b or any(word in key for word in (*OF_OURS, *REWRITTEN))
    return [] if same else [f"{key}: {a} -> {b}"]


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge"])
def test_what_is_written_is_read_as_the_same_run(target: str, tmp_path: Path) -> None:
    """For every recipe in many layouts: no argument is unknown; parameters, memory and time are the same; what of the
    run differs is in the table of what has no counterpart."""
    wrong, count = {}, 0
    for label, spec in _cases():
        try:
            written = (megatron_lm if target == "megatron-lm" else megatron_bridge).write(spec)
        except Refusal:
            continue
        reading = _read(tmp_path, target, spec, written)
        found = reading.resolved.spec
        lost = {each.key for each in written.lost}
        differ = [line for line in _differences(plain_of(spec), plain_of(found)) if line.split(":")[0] not in lost]
        ours = planner.check(spec, planner.Framework.megatron_lm)
        theirs = planner.check(found, planner.Framework.megatron_lm)
        if reading.unknown:
            differ.append(f"unknown: {reading.unknown}")
        for what in ("parameters", "memory", "time"):
            if getattr(ours, what) != getattr(theirs, what):
                differ.append(what)
        if differ:
            wrong[label] = differ
        count += 1
    assert wrong == {}
    assert count > 3 * len(configs.recipe_names())


def test_a_translation_of_a_translation_is_the_same_text(tmp_path: Path) -> None:
    """A script becomes Megatron-Bridge's configuration, and that the script that ours writes for it."""
    path = _write(tmp_path, LLAMA3_8B.replace("--lr 3e-4", "--lr 3e-4 --lr-decay-style cosine"))
    first = foreign.read(path, foreign.Request()).resolved.spec
    bridge = _read(tmp_path, "megatron-bridge", first, megatron_bridge.write(first)).resolved.spec
    again = [megatron_lm.write(spec).text.splitlines() for spec in (first, bridge)]
    words = [{word for line in text if not line.startswith("#") for word in line.split()} for text in again]
    assert words[0] ^ words[1] <= {"--ddp-bucket-size", "134217728"}  # ours, which no file of Bridge says
    assert "--lr-decay-style" in words[0] & words[1]


def test_the_command_writes_a_file_and_lists_what_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "run.sh"
    done = slipway("translate", "llama31_405b", "--to", "megatron-lm", "--out", str(out))
    assert "optim.batch_ramp" in done.stdout or "everything has a counterpart" in done.stderr
    assert json.loads(slipway("check", str(out), "--json").stdout)["parameters"]["total"] == 405853388800
    lines = slipway("translate", str(out), "--to", "slipway").stdout
    assert "# recipe/" in lines and "override /optim" in lines
    refused = slipway("translate", "llama3_8b", "layout.tp=3", "--to", "megatron-lm", code=2)
    assert "does not divide" in refused.stderr


@pytest.mark.nemo
def test_a_script_becomes_a_recipe_of_nemo(in_child: Any, tmp_path: Path) -> None:
    path = _write(tmp_path, LLAMA3_8B)

    def read_again() -> list[Any]:
        from slipway.launch.export.recipe_file import load
        from slipway.launch.foreign.nemo.recipe import found_in
        from slipway.launch.translate import ours

        spec = foreign.read(path, foreign.Request()).resolved.spec
        (tmp_path / "recipe.yaml").write_text(ours.nemo(spec).text)
        record = found_in(load(tmp_path / "recipe.yaml"), "x", "x")["spec"]
        return [record["layout"], plain_of(spec)["layout"]]

    theirs, ours = in_child(read_again)
    same = ("tp", "cp", "pp", "mbs", "gbs", "distributed_optimizer", "overlap_grad_reduce", "fused_cross_entropy")
    assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
