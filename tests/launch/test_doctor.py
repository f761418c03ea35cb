"""The doctor on machines with faults. There is no GPU here: a stand-in for nvidia-smi answers in its format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipway import planner
from slipway.configs import Refusal, Spec, load
from slipway.launch.cli.commands.doctor import Examined
from slipway.launch.doctor.examine import examine
from slipway.launch.doctor.sniff import MARK, Rank, read, slow
from slipway.launch.executors.slurm.time_limit import time_limit_seconds

TOPOLOGY = """\
\tGPU0\tGPU1\tNIC0\tCPU Affinity
GPU0\t X \t{link}\tPIX\t0-31
GPU1\t{link}\t X \tSYS\t32-63
"""


def _spec(name: str, *overrides: str) -> Spec:
    return planner.choose_layout(load(name, list(overrides)))[0]


def _nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: str, link: str = "NV18") -> None:
    (folder / "topology").write_text(TOPOLOGY.format(link=link))
    script = folder / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *driver_version*) echo 535.104.05 ;; *mig.mode*) printf "{gpus}" ;; '
        f"*topo*) cat {folder}/topology ;; *) exit 0 ;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_healthy_node_passes_and_a_faulty_one_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec("llama3_8b", "gpus=2", "layout.tp=2")
    h100 = "NVIDIA H100 80GB HBM3, 81559 MiB, Disabled"
    _nvidia_smi(tmp_path, monkeypatch, gpus=f"{h100}\\n{h100}\\n")
    good = {f.subject: f.good for f in examine("gpu", spec)}
    assert good["GPU"] and good["NVLink"] and good["GPUs for the recipe"] and good["kind of GPU"]
    _nvidia_smi(tmp_path, monkeypatch, gpus=f"{h100}\\nNVIDIA A100-SXM4-80GB, 81920 MiB, Enabled\\n", link="PHB")
    bad = {f.subject: f for f in examine("gpu", _spec("llama3_8b", "gpus=8", "layout.tp=2")) if not f.good}
    assert {"GPU", "MIG", "NVLink", "GPUs for the recipe"} <= set(bad)
    assert bad["NVLink"].found == "not from GPU0, GPU1"
    assert all(f.fix for f in bad.values())


def test_harmful_nccl_variables_and_an_unknown_interface_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")
    found = {f.subject: f for f in examine("network")}
    assert not found["NCCL_IB_DISABLE"].good
    assert not found["NCCL_SOCKET_IFNAME"].good
    assert "lo" in found["NCCL_SOCKET_IFNAME"].wanted
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    assert {f.subject: f.good for f in examine("network")}["NCCL_SOCKET_IFNAME"]


def test_space_for_the_checkpoints_and_the_clock(tmp_path: Path) -> None:
    small = _spec("llama3_tiny", "layout.tp=2", f"run.dir={tmp_path}")
    large = _spec("llama31_405b", f"run.dir={tmp_path}")
    assert all(f.good for f in examine("space", small) if f.subject != "/dev/shm")
    disk = examine("space", large)[0]
    assert not disk.good
    assert "for 3 checkpoints and one more" in disk.wanted
    assert not list(tmp_path.iterdir()), "the file that tests the clock is deleted"


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(Refusal, match="no section 'gpus'; did you mean gpu"):
        examine("gpus")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("04:00:00", 14400),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-0:0:5", 86405),
        ("infinite", None),
        ("soon", None),
    ],
)
def test_time_limits_are_read_as_slurm_writes_them(limit: str, expected: int | None) -> None:
    assert time_limit_seconds(limit) == expected


def test_the_slow_rank_is_named() -> None:
    ranks = [Rank(i, f"n{i // 4}", "H100", 700.0, 40.0) for i in range(8)]
    assert slow(ranks) == []
    ranks[5] = Rank(5, "n1", "H100", 420.0, 40.0)
    ranks[2] = Rank(2, "n0", "H100", 700.0, 20.0)
    assert slow(ranks) == [
        "n0 rank 2 (H100): 0.50 of the median to its neighbours",
        "n1 rank 5 (H100): 0.60 of the median in matrix products",
    ]
    assert read("noise\n[default0]:" + MARK + json.dumps([r.__dict__ for r in ranks])) == ranks
    assert read("noise") == []


def test_a_section_is_one_file_and_the_report_has_its_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new file in the folder of sections is found, and stands where its POSITION says."""
    from slipway.launch.doctor import sections
    from slipway.launch.doctor.examine import section_table

    shipped = ["packages", "gpu", "network", "slurm", "container", "space", "environment"]
    assert list(section_table()) == shipped
    (tmp_path / "disk_speed.py").write_text(
        "from slipway.launch.doctor.finding import Finding\n"
        "POSITION = 65\n"
        "def findings(spec): return [Finding('speed', '1 GB/s', 'any', True)]\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    assert list(section_table()) == [*shipped[:-1], "disk_speed", "environment"]
    assert examine("disk_speed")[0].found == "1 GB/s"


def test_what_only_slows_runs_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = examine("environment")
    slow_ones = [f for f in found if not f.good]
    assert [f.subject for f in slow_ones if f.slows] == ["PYTHONDONTWRITEBYTECODE"]
    Examined(found).conclude()
    monkeypatch.setenv("NVTE_FLASH_ATTN", "1")
    with pytest.raises(Refusal, match="1 of .* checks failed, first NVTE_FLASH_ATTN"):
        Examined(examine("environment")).conclude()


def test_without_sbatch_nothing_is_submitted_to_a_slurm_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = examine("slurm", _spec("llama3_8b", "cluster=dgx_h100"))
    assert not finding.good and not finding.slows and finding.wanted == "sbatch and sinfo, to submit to dgx_h100"
    assert examine("slurm", _spec("llama3_tiny"))[0].good
