"""Pipeline layouts are Megatron-Core's: the same text means the same layers, and what it refuses is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from slipway import planner
from slipway.configs import Refusal, load
from slipway.configs.schema.pipeline_layout import chunks_of_text, text_of_chunks
from slipway.planner.layout import describe
from slipway.planner.search import plan
from slipway.planner.stages import balanced, chunks_of

# Of Megatron-Bridge's performance recipes for DeepSeek-V3; the fourth is without multi-token prediction.
PUBLISHED = ("Et|(tt|)*30mL", "Et*4|(t*4|)*14tmL", "Et*4|(tttt|)*14tmL", "Et|(tt|)*30L", "Et*4|(t*7|)*5t*8|tmL")
WRONG = (
    "",
    "|",
    "Et",
    "x",
    "E t|L",
    "(Et|)*",
    "((t|)*2)*2L",
    "t*",
    "*3",
    "Et|(tt|)*30mLx",
    "EtttL|",
    "Et|tEt|L",
    "L|E",
)


def test_neighbours_that_are_equal_are_written_once_and_read_back() -> None:
    assert text_of_chunks(["Et", *["tt"] * 30, "mL"]) == "Et|(tt|)*30mL"
    assert text_of_chunks(["Etttt", *["tttt"] * 14, "tmL"]) == "Et*4|(t*4|)*14tmL"
    draw = random.Random(0)
    for _ in range(300):
        chunks = ["".join(draw.choice("ttttmEL") for _ in range(draw.randint(0, 6))) for _ in range(draw.randint(1, 9))]
        assert list(chunks_of_text(text_of_chunks(chunks))) == chunks


@pytest.mark.nemo
def test_texts_mean_what_megatron_core_reads(in_child: Any) -> None:
    def differences() -> list[str]:
        from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

        def theirs(text: str) -> Any:
            try:
                names = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
                read = PipelineParallelLayerLayout.parse_str_to_list(text)
                return ["".join(names[piece.name] for piece in chunk) for chunk in read]
            except AssertionError:
                return "refused"

        def ours(text: str) -> Any:
            try:
                return list(chunks_of_text(text))
            except ValueError:
                return "refused"

        draw = random.Random(1)
        texts = [*PUBLISHED, *WRONG, "Ettt|(tt|)*29,m|L", "t*12", "(t*3|)*2L", "(tt|tm)*3,L"]
        texts += ["".join(draw.choice("EtmL|(),*23x ") for _ in range(draw.randint(1, 12))) for _ in range(3000)]
        return [text for text in texts if theirs(text) != ours(text)]

    assert in_child(differences) == []


@pytest.mark.nemo
def test_the_rule_is_megatron_cores(in_child: Any) -> None:
    """Random placements of 6 layers, with and without multi-token prediction: both accept, or both refuse."""

    def disagreements() -> list[str]:
        import torch
        from megatron.core.transformer.transformer_config import TransformerConfig

        draw, wrong, agreed = random.Random(2), [], {True: 0, False: 0}
        for _ in range(600):
            count, mtp = draw.choice((2, 3, 4)), draw.choice((0, 1))
            chunks = ["t" * draw.randint(0, 3) for _ in range(count)]
            chunks[0] = draw.choice(("E", "E", "E", "")) + chunks[0]
            chunks[-1] += "m" * mtp * draw.choice((1, 1, 0)) + draw.choice(("L", "L", "L", ""))
            if draw.random() < 0.1:
                chunks[0] += "m"
            layers = "".join(chunks).count("t") + draw.choice((0, 0, 0, 1))
            text, pp = text_of_chunks(chunks), draw.choice((1, 2, 2, 4))
            if not layers:
                continue
            vpp = draw.choice((count // pp or 1, 1, 2))
            sizes = f"gpus={pp} layout.pp={pp} layout.vpp={vpp} layout.gbs=64 layout.pipeline_layout={text}"
            model = f"model.num_layers={layers} model.mtp_num_layers={mtp}"
            spec = load("llama3_8b", [*sizes.split(), *model.split()]).spec
            ours = not {"pipeline-layout", "vpp-needs-pp"} & {v.rule for v in planner.violations(spec)}
            try:
                TransformerConfig(
                    num_layers=layers,
                    hidden_size=64,
                    num_attention_heads=4,
                    mtp_num_layers=mtp or None,
                    pipeline_model_parallel_size=pp,
                    virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
                    pipeline_model_parallel_layout=text,
                    pipeline_dtype=torch.bfloat16,
                )
                theirs = vpp > 1 or count == pp  # without a VPP, Megatron-Core takes the layout's
            except (AssertionError, ValueError):
                theirs = False
            if pp == 1 and vpp > 1:
                continue  # refused where the ranks are made
            agreed[ours] += 1
            if ours != theirs:
                wrong.append(f"{text} pp={pp} vpp={vpp} layers={layers} mtp={mtp}: ours {ours}")
        return wrong if min(agreed.values()) > 50 else [f"drew too few: {agreed}"]

    assert in_child(disagreements) == []


def test_a_stale_layout_is_refused_with_its_vpp() -> None:
    given = [
        *("gpus=1024", "layout.tp=2", "layout.ep=64", "layout.etp=1", "optim.batch_ramp=[]"),
        "layout.pipeline_layout=Et|(tt|)*30mL",
    ]
    spec = load("deepseek_v3", [*given, "layout.pp=16"]).spec
    assert spec.layout.vpp == 2 and not planner.violations(spec)
    assert "(Et|(tt|)*30mL)" in describe(spec)
    [broken] = planner.violations(load("deepseek_v3", [*given, "layout.pp=16", "layout.vpp=4"]).spec)
    assert broken.rule == "pipeline-layout" and broken.fix == "Use layout.vpp=2, or write another layout."
    rules = {v.rule: v for v in planner.violations(load("deepseek_v3", [*given, "layout.pp=12"]).spec)}
    assert rules["pipeline-layout"].fix == "Use layout.pp=8 or 16, or write another layout."
    with pytest.raises(Refusal, match="has 'x': its pieces are E"):
        load("deepseek_v3", ["layout.pipeline_layout=Ex|L"])
    with pytest.raises(Refusal, match="very many times"):
        load("deepseek_v3", [f"layout.pipeline_layout=Et*{'9' * 5000}|L"])


def test_stages_hold_what_is_written() -> None:
    text = "Et|(tt|)*30mL"
    overrides = ["gpus=1024", "layout.tp=2", "layout.pp=16", "layout.ep=64", "layout.etp=1", "optim.batch_ramp=[]"]
    written = load("deepseek_v3", [*overrides, f"layout.pipeline_layout={text}"]).spec
    placed = chunks_of(written)
    assert placed is not None and [chunk.num_layers for chunk in placed] == [1, *[2] * 30, 0]
    assert [chunk.stage for chunk in placed] == [*range(16), *range(16)]
    count = planner.parameters(written)
    one_stage = planner.parameters(
        load("deepseek_v3", ["gpus=1024", "layout.tp=2", "layout.ep=64", "layout.etp=1"]).spec
    )
    assert sum(count.per_rank) > one_stage.per_rank[0], "the embedding of multi-token prediction is held twice"
    assert count.total == one_stage.total
    # the last stage of the uneven split by one number has one layer, of 4 elsewhere: the written one has 2 and the loss
    uneven = load("deepseek_v3", [*overrides, "layout.num_layers_in_last_pipeline_stage=1"]).spec
    both = [planner.check(spec) for spec in (written, uneven)]
    assert both[0].time and both[1].time and both[0].time.bubble_fraction < both[1].time.bubble_fraction + 0.1


def test_the_search_writes_the_published_layouts() -> None:
    """Of DeepSeek-V3 it proposes the text that Megatron-Bridge's recipes have, and completes a given one."""
    assert balanced(61, 1, 32, at_end=2, at_start=1) == PUBLISHED[0]
    assert balanced(61, 1, 16, at_end=2, at_start=0) == PUBLISHED[1]
    resolved = load("deepseek_v3", ["gpus=1024", "optim.batch_ramp=[]"])
    found = {candidate.spec.layout.pipeline_layout for candidate in plan(resolved.spec, 20).candidates}
    assert found & set(PUBLISHED)
    pinned = load("deepseek_v3", ["gpus=1024", "optim.batch_ramp=[]", f"layout.pipeline_layout={PUBLISHED[0]}"])
    for candidate in plan(pinned.spec, 3, pinned=frozenset({"pipeline_layout"})).candidates:
        layout = candidate.spec.layout
        assert layout.pipeline_layout == PUBLISHED[0] and layout.pp * layout.vpp == 32


def test_prediction_in_a_chunk_without_layers_is_planned_and_not_built() -> None:
    given = ["gpus=1024", "layout.pp=16", "layout.ep=64", "layout.pipeline_layout=Et|(tt|)*30mL", "optim.batch_ramp=[]"]
    spec = load("deepseek_v3", given).spec
    assert planner.check(spec).legal
    with pytest.raises(Refusal, match="but not trained: NeMo 2.7.3 builds multi-token prediction from"):
        planner.require_legal(spec)


@pytest.mark.nemo
@pytest.mark.slow
def test_a_written_pipeline_trains_like_one_process() -> None:
    """Of a dense model; benchmarks.parity has DeepSeek-V3's."""
    from slipway.launch.rehearsal.rehearse import rehearse

    words = ["gpus=8", "layout.pp=4", "layout.tp=2", "layout.pipeline_layout=Et*3|(t*4|)*6t*5L"]
    spec = load("llama3_8b", words).spec
    assert not planner.violations(spec)
    trained = rehearse(spec)
    assert trained.toy.layout.pipeline_layout and trained.toy.layout.vpp == 2
    assert trained.agrees, trained.max_rel_diff
