"""``slipway calibrate``: from runs, logs and tables to constants that check, plan and launch use and name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipway.configs import load
from tests.launch.test_cli import SLIPWAY
from tests.launch.written_runs import tiny, write_run

H100 = "NVIDIA H100 80GB HBM3"
COLUMNS = "source,framework,model,gpu,n_gpus,precision,gbs,mbs,seq_len,tp,pp,vpp,cp,tokens_per_s_per_gpu,notes"
ROW = "mine,NeMo (Megatron-Core),Llama3 70B,{gpu},64,bf16,128,1,8192,4,4,5,2,{rate},"


def _run(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SLIPWAY_CONFIGS"}
    done = subprocess.run([SLIPWAY, *words], capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


def _json(folder: Path, *words: str) -> Any:
    return json.loads(_run(folder, *words, "--json").stdout)


def _table(folder: Path, *rates: int, gpu: str = "H100") -> Path:
    path = folder / "own.csv"
    path.write_text("\n".join([COLUMNS, *(ROW.format(gpu=gpu, rate=rate) for rate in rates)]) + "\n")
    return path


CHECK = (
    "check",
    "llama3_70b",
    "gpus=64",
    "layout.gbs=128",
    "layout.tp=4",
    "layout.pp=4",
    "layout.vpp=5",
    "layout.cp=2",
)


def test_a_table_of_slow_runs_makes_check_slower_and_named(tmp_path: Path) -> None:
    before = _json(tmp_path, *CHECK)
    found = _json(tmp_path, "calibrate", str(_table(tmp_path, 900, 905)), "--out", "mine")
    assert found["path"] == "slipway/calibration/h100.yaml" and found["started_from"] == "h100/nemo_2025"
    for row in found["measurements"]:
        assert abs(row["error_after"]) < 0.5 * abs(row["error_before"])
    after = _json(tmp_path, *CHECK)
    assert after["calibration"] == "h100/mine"
    speeds = [answer["throughput"]["tokens_per_s_per_gpu"] for answer in (before, after)]
    assert 900 < speeds[1] < 0.9 * speeds[0]
    assert "fitted   h100/mine (slipway/calibration/h100.yaml)" in _run(tmp_path, *CHECK).stdout
    shipped = _json(tmp_path, *CHECK, "software=nemo_2025")
    assert shipped["throughput"] == before["throughput"]
    planned = _json(tmp_path, "plan", "llama3_70b", "gpus=64", "--top", "1")
    assert planned["candidates"][0]["calibration"] == "h100/mine"


def test_a_second_calibration_keeps_the_first_and_starts_from_what_is_shipped(tmp_path: Path) -> None:
    _json(tmp_path, "calibrate", str(_table(tmp_path, 900)), "--out", "slow")
    found = _json(tmp_path, "calibrate", str(_table(tmp_path, 1100)), "--out", "fast")
    assert found["started_from"] == "h100/nemo_2025"
    names = [_json(tmp_path, *CHECK, *words)["calibration"] for words in ((), ("software=slow",))]
    assert names == ["h100/fast", "h100/slow"]


def test_a_gpu_that_borrows_constants_keeps_them_beside_its_own(tmp_path: Path) -> None:
    found = _json(tmp_path, "calibrate", str(_table(tmp_path, 1000, gpu="H200")), "--out", "mine")
    assert found["gpu"] == "h200" and found["started_from"] == "h100/nemo_2025"
    own = _json(tmp_path, *CHECK, "gpu=h200")
    assert own["calibration"] == "h200/mine"
    assert not [warning for warning in own["warnings"] if warning["rule"] == "calibration"]
    assert _json(tmp_path, *CHECK, "gpu=h200", "software=nemo_2025")["calibration"] == "h100/nemo_2025"


def test_a_run_and_a_log_are_measurements(tmp_path: Path) -> None:
    spec = load("llama3_8b", ["gpus=16", "layout.tp=2"]).spec
    run = write_run(tmp_path / "run", np.full(8, 3.0), 12.0, spec, world=16, gpu=H100)
    values = {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
              "group_query_attention": True, "num_query_groups": 8, "seq_length": 8192, "micro_batch_size": 1,
              "max_position_embeddings": 8192, "global_batch_size": 128, "tensor_model_parallel_size": 2,
              "swiglu": True, "normalization": "RMSNorm", "position_embedding_type": "rope", "bf16": True,
              "params_dtype": "torch.bfloat16", "use_distributed_optimizer": True, "sequence_parallel": True,
              "untie_embeddings_and_output_weights": True, "add_bias_linear": False, "world_size": 16}  # fmt: skip
    rows = [f"  {key} {'.' * (48 - len(key))} {value}" for key, value in values.items()]
    steps = [
        f" iteration {i}/ 9 | elapsed time per iteration (ms): {ms} |" for i, ms in enumerate([60e3, 9e3] + [5e3] * 6)
    ]
    log = tmp_path / "train.log"
    log.write_text("\n".join(["-------- arguments --------", *rows, "-------- end of arguments --------",
                              " > padded vocab (size: 128256) with 0 dummy tokens", *steps]))  # fmt: skip
    found = _json(tmp_path, "calibrate", str(run), str(log), "--out", "mine")
    assert [row["step_time_s"] for row in found["measurements"]] == [12.0, 5.0]


def test_what_is_no_measurement_is_refused(tmp_path: Path) -> None:
    cpu = write_run(tmp_path / "cpu", np.full(8, 3.0), 1.0, tiny())
    several = tmp_path / "several.csv"
    several.write_text("\n".join([COLUMNS, ROW.format(gpu="H100", rate=1), ROW.format(gpu="B200", rate=1)]) + "\n")
    table = str(_table(tmp_path, 900))
    for words, sentence in (
        ((str(cpu), "--out", "mine"), "ran on cpu, which the planner does not predict"),
        ((str(several), "--out", "mine"), "the measurements are of b200 and h100"),
        ((table, "--out", "nemo_2025"), "is the name of constants that are shipped"),
        ((table, "--out", "../x"), "cannot name constants"),
        ((table, "--out", "mine", "--software", "nemo"), "software=nemo is not fitted for h100"),
        ((str(tmp_path / "none"), "--out", "mine"), "there is no file"),
    ):
        assert sentence in _run(tmp_path, "calibrate", *words, code=2).stderr
    assert not (tmp_path / "slipway").exists(), "nothing is written by what is refused"
    with pytest.raises(AssertionError):
        _run(tmp_path, "calibrate", table)
