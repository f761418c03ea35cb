"""explain, of a run out of GPU memory: the allocator's line, the prediction, and the change that frees enough."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway import configs, planner
from slipway.configs.load import override
from slipway.configs.record import record_of
from slipway.launch.diagnosis.allocator import allocation_in
from slipway.launch.diagnosis.diagnose import diagnose
from slipway.launch.diagnosis.memory import MARGIN_GIB, memory_of, stage_of
from slipway.launch.diagnosis.reading import scan
from slipway.launch.foreign.megatron.arguments import definitions
from slipway.recipes.runtime.run_files import RECORD

THREADS = [
    thread
    for thread in yaml.safe_load(Path(__file__).with_name("failure_threads.yaml").read_text())
    if "memory" in thread
]
ASKED = (
    "[rank{}]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB. GPU 1 has a total capacity of "
    "79.11 GiB of which 1.25 GiB is free. Of the allocated memory 73.02 GiB is allocated by PyTorch, and 1.31 GiB is "
    "reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize("thread", THREADS, ids=lambda thread: thread["url"].rpartition("/")[2])
def test_both_forms_of_the_allocators_line_are_read(thread: dict[str, Any]) -> None:
    found = allocation_in(thread["log"])
    assert found
    said = {key: getattr(found, key) for key in thread["memory"]}
    assert said == pytest.approx(thread["memory"], abs=5e-4)
    assert found.missing == pytest.approx(max(0, found.asked - found.free), abs=1e-9)  # type: ignore[operator]


def test_a_run_is_compared_with_its_record_stage_by_stage(tmp_path: Path) -> None:
    spec = planner.complete(configs.load("llama3_70b", ["gpus=64", "layout.tp=4", "layout.pp=4", "layout.cp=1"]))
    (tmp_path / "slipway").mkdir()
    record = {"spec": record_of(spec), "world_size": 64, "device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3"}
    (tmp_path / RECORD).write_text(json.dumps(record))
    log = tmp_path / "a.log"
    log.write_text(ASKED.format(17))
    found = memory_of(diagnose([scan(log)]), tmp_path)
    predicted = planner.check(spec).memory
    assert found and predicted
    assert found.stage == 1 == stage_of(17, spec)
    assert found.predicted_peak == pytest.approx(predicted.stages[1].total_gib)
    assert found.missing == pytest.approx(max(3.91 - 1.25, -predicted.headroom_gib), abs=1e-3)
    assert found.rung and found.rung.frees_gib >= found.missing + MARGIN_GIB
    assert planner.check(override(spec, found.changes).spec).fits, "the change, as it is printed, suffices"
    fitting = replace(spec, layout=replace(spec.layout, cp=2))
    (tmp_path / RECORD).write_text(json.dumps(record | {"spec": record_of(fitting)}))
    small = memory_of(diagnose([scan(log)]), tmp_path)
    assert small and small.fits and small.missing == pytest.approx(3.91 - 1.25)


def test_a_log_of_megatron_lm_brings_its_own_configuration_and_the_change_is_in_its_terms(tmp_path: Path) -> None:
    values: dict[str, Any] = {made.dest: made.default for made in definitions().values()}
    values |= {"num_layers": 80, "hidden_size": 8192, "ffn_hidden_size": 28672, "num_attention_heads": 64,
               "kv_channels": 128, "group_query_attention": True, "num_query_groups": 8, "seq_length": 8192,
               "max_position_embeddings": 8192, "swiglu": True, "normalization": "RMSNorm", "add_bias_linear": False,
               "position_embedding_type": "rope", "untie_embeddings_and_output_weights": True,
               "use_distributed_optimizer": True, "micro_batch_size": 1, "global_batch_size": 128,
               "tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 4, "sequence_parallel": True,
               "bf16": True, "params_dtype": "torch.bfloat16", "main_grads_dtype": "torch.float32",
               "attention_backend": "AttnBackend.flash", "world_size": 64, "data_parallel_size": 4}  # fmt: skip
    rows = [f"  {key} {'.' * (48 - len(key))} {value}" for key, value in values.items()]
    log = tmp_path / "train.log"
    head, end = "-------- arguments --------", "-------- end of arguments --------"
    log.write_text("\n".join([head, *rows, end, " > padded vocab (size: 128256) with 0", ASKED.format(40)]))
    found = memory_of(diagnose([scan(log)]), None)
    assert found and found.stage == 2 and not found.fits
    assert len(found.predicted_stages) == 4
    assert found.rung and found.changes and all(change.startswith("--") for change in found.changes)
    plain = tmp_path / "plain.log"
    plain.write_text(ASKED.format(40))
    alone = memory_of(diagnose([scan(plain)]), None)
    assert alone and alone.missing == pytest.approx(2.66) and alone.predicted_peak is None
