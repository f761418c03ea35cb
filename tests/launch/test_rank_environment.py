"""The environment of a rank follows from its layout and levers; what the cluster's file says wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway.configs import load
from slipway.configs.schema import Accelerator
from slipway.launch.executors import environment

CHUNK = "NCCL_P2P_NET_CHUNKSIZE"
MARGINS = ("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", {CHUNK: None, "NCCL_NVLS_ENABLE": "0", MARGINS[0]: "16", MARGINS[1]: "16"}),
        ("layout.pp=2", {CHUNK: "2097152"}),
        ("layout.pp=2 levers.p2p_chunk_bytes=0", {CHUNK: None}),
        ("levers.nvls=true levers.layernorm_sm_margin=0", {"NCCL_NVLS_ENABLE": "1", MARGINS[0]: "0", MARGINS[1]: "0"}),
    ],
)
def test_levers_reach_the_environment(overrides: str, expected: dict[str, str | None]) -> None:
    seen = environment(load("llama3_8b", overrides.split()).spec)
    assert {name: seen.get(name) for name in expected} == expected


def test_the_cluster_wins_and_cpu_ranks_have_none_of_it() -> None:
    spec = load("llama3_8b", ["layout.pp=2"]).spec
    given = replace(spec, cluster=replace(spec.cluster, env={CHUNK: "1048576"}))
    assert environment(given)[CHUNK] == "1048576"
    on_cpu = replace(spec, cluster=replace(spec.cluster, accelerator=Accelerator.cpu))
    assert not {CHUNK, "NCCL_NVLS_ENABLE", *MARGINS} & set(environment(on_cpu))
