"""Parameters per rank equal exactly those of the module that Megatron-Core builds for that rank."""

from __future__ import annotations

import pytest

from slipway import configs
from slipway.configs import Spec
from slipway.planner.choose import split_layers
from slipway.planner.parameters import parameters, stage_shards

# published totals: the models' cards and papers
TOTALS = {
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_405b": 405_853_388_800,
    "llama2_7b": 6_738_415_616,
    "llama32_1b": 1_235_814_400,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_8b": 8_190_735_360,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "deepseek_v3": 671_026_404_352,
    "deepseek_v2": 235_741_434_880,
    "deepseek_v2_lite": 15_706_484_224,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    "mistral_7b": 7_241_732_096,
    "mistral_nemo_12b": 12_247_782_400,
    "phi3_mini_4k_instruct": 3_821_079_552,
    "qwen25_500m": 494_032_768,
    "qwen25_72b": 72_706_203_648,
    "starcoder2_3b": 3_030_371_328,
}

LAYOUTS = [
    (name, layout)
    for name, layouts in {
        "llama3_8b": ["", "tp=2 pp=2", "tp=4 pp=2 vpp=4 cp=2"],
        "llama3_70b": ["tp=4 pp=4 vpp=5 cp=2", "tp=8 pp=2"],
        "llama31_8b": ["tp=2 cp=2"],
        "llama31_70b": ["tp=8 pp=4"],
        "llama31_405b": ["tp=8 pp=8 vpp=2 cp=4", "tp=8 pp=9 vpp=7 cp=2"],
        "llama32_1b": ["", "pp=4", "tp=2", "model.mtp_num_layers=1", "pp=4 tp=2 model.mtp_num_layers=2"],
        "llama32_3b": ["pp=2 tp=4"],
        "llama2_7b": ["tp=2", "pp=4"],
        "llama2_13b": ["tp=4 pp=2"],
        "llama2_70b": ["tp=4 pp=4"],
        "mixtral_8x7b": ["pp=4 ep=8 vpp=8", "tp=2 ep=4 etp=1", "tp=2 ep=4"],
        "mixtral_8x22b": ["tp=2 pp=4 vpp=14 cp=2 ep=8"],
        "gpt3_175b": ["tp=4 pp=8 vpp=6", "tp=8 pp=4"],
        "nemotron4_15b": ["tp=4", "tp=2 pp=2"],
        "nemotron4_340b": ["tp=8 pp=12 vpp=8"],
        "qwen3_8b": ["tp=4", "pp=4"],
        "qwen3_30b_a3b": ["tp=4 pp=2 ep=4 etp=1", "ep=8"],
        "qwen3_235b_a22b": ["tp=4 pp=16 ep=8 etp=1"],
        "deepseek_v3": ["tp=2 pp=16 ep=64 etp=1", "ep=32 pp=8"],
        "deepseek_v2": ["tp=2 pp=4 ep=8 etp=1"],
        "moonlight_16b_a3b": ["ep=8"],
        "gpt_oss_20b": ["tp=2 ep=4 etp=1"],
        "gemma_2b": ["pp=2"],
        "gemma2_27b": ["tp=4 pp=2"],
        "gemma3_1b": ["pp=2"],
        "mistral_7b": ["tp=2"],
        "qwen25_1p5b": ["tp=2"],
        "phi3_mini_4k_instruct": ["tp=2"],
        "starcoder_15b": ["pp=4"],
        "starcoder2_3b": ["tp=2"],
        "chatglm3_6b": ["tp=2"],
        "llama3_tiny": ["tp=2", "pp=2 vpp=2"],
        "mixtral_tiny": ["ep=2"],
    }.items()
    for layout in layouts
]


def spec_of(name: str, layout: str) -> Spec:
    sizes = dict(item.split("=") for item in layout.split())
    ranks = 1
    for key in ("tp", "pp", "cp"):
        ranks *= int(sizes.get(key, 1))
    gpus = max(ranks, int(sizes.get("ep", 1)) * int(sizes.get("etp", sizes.get("tp", 1))) * int(sizes.get("pp", 1)))
    while gpus % ranks:
        gpus += int(sizes.get("pp", 1))
    overrides = [f"gpus={gpus}", "layout.tp=1", *(f"{k if '.' in k else 'layout.' + k}={v}" for k, v in sizes.items())]
    return split_layers(configs.load(name, overrides).spec)


@pytest.mark.parametrize("name", sorted(TOTALS))
def test_whole_models_have_their_published_size(name: str) -> None:
    published_without_multi_token_prediction = ["layout.tp=1", "model.mtp_num_layers=0"]
    assert parameters(configs.load(name, published_without_multi_token_prediction).spec).total == TOTALS[name]


def test_more_tensor_ranks_never_mean_more_parameters_per_rank() -> None:
    per_rank = [stage_shards(spec_of("llama3_70b", f"tp={tp}"))[0].total for tp in (1, 2, 4, 8)]
    assert per_rank == sorted(per_rank, reverse=True)


@pytest.mark.nemo
def test_every_rank_equals_megatron(in_child) -> None:  # type: ignore[no-untyped-def]
    cases = []
    for name, layout in LAYOUTS:
        spec = spec_of(name, layout)
        for stage in sorted({0, spec.layout.pp // 2, spec.layout.pp - 1}):
            cases.append((name, layout, spec, stage))

    def build() -> list[int]:
        from tests.megatron import build_rank, stage_rank

        return [sum(n for _, n in build_rank(spec, stage_rank(spec, stage))) for _, _, spec, stage in cases]

    real = in_child(build)
    wrong = [
        (name, layout, stage, stage_shards(spec)[stage].total, count)
        for (name, layout, spec, stage), count in zip(cases, real, strict=True)
        if stage_shards(spec)[stage].total != count
    ]
    assert len(cases) > 60
    assert not wrong
