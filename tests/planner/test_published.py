"""validate: rows of published tables become specs or give the reason why not; statistics are what their names say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from slipway.configs import Recompute, Refusal
from slipway.planner.memory import memory
from slipway.planner.published.rows import interpret, spec_of_row
from slipway.planner.published.table import read_rows
from slipway.planner.published.validate import predict, spearman, statistics, summarize
from slipway.planner.stages import chunks_of

COLUMNS = (
    "source framework model params_b gpu n_gpus precision gbs mbs seq_len tp pp vpp "
    "cp ep etp fsdp recompute tokens_per_s_per_gpu tflops_per_gpu step_time_s mfu peak_mem_gb notes hidden layers heads"
).split()


def row(**values: str) -> dict[str, str]:
    base = dict.fromkeys(COLUMNS, "")
    return (
        base
        | {
            "model": "Llama3 8B",
            "gpu": "H100",
            "n_gpus": "8",
            "precision": "bf16",
            "gbs": "128",
            "mbs": "1",
            "seq_len": "8192",
            "tp": "1",
            "pp": "1",
            "cp": "2",
        }
        | values
    )


def test_a_model_is_found_by_name_or_described_by_its_sizes() -> None:
    assert spec_of_row(row()).model.name == "llama3_8b"
    gpt = spec_of_row(row(model="GPT h3072 L30", hidden="3072", layers="30", heads="32", cp="1", seq_len="2048")).model
    assert (gpt.ffn_hidden_size, gpt.vocab_size, gpt.tied) == (12288, 51200, True)
    with pytest.raises(ValueError, match="unknown model 'Foo'"):
        spec_of_row(row(model="Foo"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Llama2 70B LoRA", "llama2_70b"),
        ("Llama3 70B 2-node", "llama3_70b"),
        ("Llama4 Maverick 400B", "llama4_maverick"),
    ],
)
def test_a_suffix_such_as_lora_is_not_part_of_the_model_name(name: str, known: str) -> None:
    spec = spec_of_row(row(model=name))
    assert spec.model.name == known
    assert bool(spec.task.lora_rank) == ("LoRA" in name)


def test_unstated_recompute_of_experts_is_the_cheapest_that_fits() -> None:
    values = {"model": "gpt_oss_120b", "n_gpus": "64", "gbs": "512", "seq_len": "4096", "pp": "4", "ep": "8", "cp": "1"}
    fits, over = spec_of_row(row(**values, mbs="1")), spec_of_row(row(**values, mbs="4"))
    assert fits.layout.recompute is Recompute.none
    assert over.layout.recompute is not Recompute.none
    assert memory(over).peak_gib < over.gpu.usable_memory_gib
    assert (
        spec_of_row(row(**values, mbs="4", recompute="none")).layout.recompute is Recompute.none
    )  # what the row states is kept


def test_what_a_row_leaves_out_is_the_default_of_its_stack() -> None:
    assert spec_of_row(row(source="pytorch/torchtitan")).layout.recompute is Recompute.selective
    gpt = {
        "model": "GPT",
        "hidden": "14336",
        "layers": "70",
        "heads": "112",
        "gpu": "A100-80GB",
        "n_gpus": "384",
        "gbs": "2048",
    }
    spec = spec_of_row(row(**gpt, source="bigscience", tp="4", pp="12", cp="1"))
    assert [c.num_layers for c in chunks_of(spec) or ()] == [6] * 11 + [4]


def test_memory_is_compared_with_the_figure_that_the_source_prints() -> None:
    """Megatron logs its last rank, torchtitan prints the allocator's reserve, nvidia-smi shows all memory in use."""
    staged = {
        "model": "Llama3 70B",
        "n_gpus": "32",
        "gbs": "32",
        "seq_len": "4096",
        "tp": "4",
        "pp": "4",
        "cp": "1",
        "peak_mem_gb": "60",
    }
    needed = memory(spec_of_row(row(**staged)))
    assert needed.stages[-1].total_gib < needed.peak_gib < needed.reserved_gib < needed.needed_gib

    def shown(**source: str) -> float:
        (predicted,) = predict([row(**staged, **source)])
        assert predicted.peak_gib
        return predicted.peak_gib

    last, reserve, device = (
        shown(source="Megatron-LM"),
        shown(source="torchtitan"),
        shown(notes="mem_unit=GB nvidia-smi"),
    )
    assert last < shown() < device
    assert last < reserve


def test_multi_token_prediction_is_trained_unless_the_table_excludes_it() -> None:
    given = {
        "source": "NVIDIA-NeMo/Megatron-Bridge docs/performance-summary.md container 25.11",
        "gpu": "GB300",
        "n_gpus": "256",
        "cp": "1",
    }
    given |= {"gbs": "4096", "pp": "2", "vpp": "8", "ep": "32", "seq_len": "4096", "precision": "fp8-mx"}
    assert spec_of_row(row(model="DeepSeekV3", **given)).model.mtp_num_layers == 1
    assert spec_of_row(row(model="DeepSeekV3 (w/o MTP)", **given)).model.mtp_num_layers == 0


def test_61_layers_are_split_as_in_the_published_layouts() -> None:
    given = {
        "gpu": "GB300",
        "n_gpus": "256",
        "cp": "1",
        "gbs": "4096",
        "ep": "8",
        "seq_len": "4096",
        "recompute": "full",
    }
    for pp, vpp, last in (("16", "1", 1), ("8", "1", 5), ("2", "8", 1)):
        chunks = chunks_of(spec_of_row(row(model="DeepSeekV3", pp=pp, vpp=vpp, **given)))
        assert chunks is not None
        sizes = [c.num_layers for c in chunks]
        assert sizes[-1] == last
        assert len(set(sizes[:-1])) == 1
        assert sum(sizes) == 61


def test_a_speed_beyond_the_peak_of_the_gpu_is_skipped() -> None:
    possible, beyond = interpret([row(tokens_per_s_per_gpu="14000"), row(tokens_per_s_per_gpu="40000")])
    assert possible.spec is not None
    assert beyond.spec is None
    assert "of a GPU that has 989" in beyond.skipped


def test_rows_that_cannot_be_modelled_are_skipped_counted_and_explained(tmp_path: Path) -> None:
    rows = [
        row(tokens_per_s_per_gpu="10000"),
        row(model="Foo"),
        row(gpu="TPU"),
        row(n_gpus="7"),
        row(n_gpus="8.5"),
        row(gbs="-4"),
    ]
    predicted = predict(rows)
    summary = summarize(predicted)
    assert summary["rows"] == 6
    assert summary["modelled"] == 1
    assert sum(summary["skipped"].values()) == 5
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    with source.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    done = subprocess.run(
        [sys.executable, "-m", "slipway.launch.cli", "validate", str(source), "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout)
    assert {"rows", "modelled", "mape", "median_ape", "within_10pct", "groups"} <= set(printed)
    written = list(csv.DictReader(out.open()))
    assert written[0]["predicted_tokens_per_s_per_gpu"] and not written[0]["skipped"]
    assert written[1]["skipped"] and not written[1]["predicted_step_time_s"]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("model,gpu\na,b\n")
    with pytest.raises(Refusal, match="no column n_gpus"):
        read_rows(path)


def test_statistics_are_what_their_names_say() -> None:
    s = statistics([0.1, -0.2, 0.05])
    assert s["mape"] == pytest.approx(0.35 / 3)
    assert s["median_ape"] == pytest.approx(0.1)
    assert s["within_10pct"] == pytest.approx(2 / 3)
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
