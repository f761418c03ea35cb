"""Rules of pipeline parallelism: stages, model chunks and micro-batches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slipway.configs import Schedule, Spec
from slipway.configs.schema.pipeline_layout import DECODER, EMBEDDING, LOSS, PREDICTION, chunks_of_text
from slipway.planner.layout import PLACEMENT
from slipway.planner.rules.planned import ONLY_PLANNED_SCHEDULES
from slipway.planner.rules.registry import MCORE, Broken, Phase, Severity, divisors, nearest_values, rule
from slipway.planner.stages import chunks_of, stage_layers

_LAYERS_TO_BUILD = MCORE + "transformer_block.get_num_layers_to_build"


@rule(
    "vpp-needs-pp",
    says="interleaving needs pipeline parallelism",
    why="model chunks are interleaved over pipeline ranks",
    source=MCORE + "parallel_state.initialize_model_parallel",
)
def _vpp_needs_pp(spec: Spec) -> Broken | None:
    if spec.layout.vpp > 1 and spec.layout.pp == 1:
        return Broken(f"layout.vpp={spec.layout.vpp} with layout.pp=1", "Use layout.vpp=1, or layout.pp=2 or more.")
    return None


@rule(
    "hybrid-vpp",
    says="the pipeline of a hybrid of Mamba and attention is not interleaved",
    why="Megatron-Core's MambaModel has no virtual stages",
    source=MCORE + "models.mamba.mamba_model.MambaModel",
)
def _hybrid_vpp(spec: Spec) -> Broken | None:
    if spec.model.hybrid_override_pattern and spec.layout.vpp > 1:
        return Broken(f"layout.vpp={spec.layout.vpp} with a hybrid of Mamba and attention", "Use layout.vpp=1.")
    return None


@rule(
    "pp-uneven",
    says="a shorter first or last stage leaves a whole number of layers for each other stage, and is not combined with "
    "account_for_embedding or account_for_loss",
    why="Megatron-Core accepts one of the two ways to split unevenly",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _pp_uneven(spec: Spec) -> Broken | None:
    layout, layers = spec.layout, spec.model.num_layers
    first, last = layout.num_layers_in_first_pipeline_stage, layout.num_layers_in_last_pipeline_stage
    if not (first or last):
        return None
    if layout.account_for_embedding or layout.account_for_loss:
        return Broken(
            "uneven stages together with layout.account_for_embedding or account_for_loss", "Use one or the other."
        )
    middle = layout.pp - bool(first) - bool(last)
    if layout.pp > 1 and middle and stage_layers(layers, layout) is None:
        return Broken(
            f"first={first} and last={last} leave {layers - first - last} of {layers} layers for {middle} stages",
            "Choose them so that the rest divides evenly.",
        )
    return None


@rule(
    "pipeline-layout",
    says="a pipeline layout has the embedding, every decoder layer, then multi-token prediction and the loss in the "
    "last chunk; its chunks are PP x VPP; and nothing else places layers",
    why="the stages build what it says, in the order in which it says it",
    source=MCORE + "transformer.pipeline_parallel_layer_layout; TransformerConfig.__post_init__",
)
def _pipeline_layout(spec: Spec) -> Broken | None:
    layout, text = spec.layout, spec.layout.pipeline_layout
    if not text:
        return None
    try:
        chunks = chunks_of_text(text)
    except ValueError as error:
        return Broken(f"layout.pipeline_layout={text} {error}", "Write it as in Et|(tt|)*30mL.")
    others = [name for name in PLACEMENT if name != "pipeline_layout" and getattr(layout, name)]
    if others:
        return Broken(f"layout.pipeline_layout together with layout.{others[0]}", "Use one or the other.")
    if len(chunks) % layout.pp:
        return Broken(
            f"layout.pipeline_layout has {len(chunks)} chunks, which layout.pp={layout.pp} does not divide",
            f"Use layout.pp={nearest_values(layout.pp, divisors(len(chunks)))}, or write another layout.",
        )
    vpp = len(chunks) // layout.pp
    if layout.vpp != vpp:
        return Broken(
            f"layout.pipeline_layout has {len(chunks)} chunks, which are {vpp} on each of {layout.pp} stages, and "
            f"layout.vpp={layout.vpp}",
            f"Use layout.vpp={vpp}, or write another layout.",
        )
    return _pieces(spec, chunks)


def _pieces(spec: Spec, chunks: Sequence[str]) -> Broken | None:
    """What is wrong with the pieces of a pipeline layout, in their order."""
    model, text = spec.model, spec.layout.pipeline_layout
    if model.hybrid_override_pattern:
        return Broken("layout.pipeline_layout with a hybrid of Mamba and attention", "Leave it out.")
    flat = "".join(chunks)
    if not re.fullmatch(f"{EMBEDDING}{DECODER}*{PREDICTION}*{LOSS}", flat):
        return Broken(
            f"layout.pipeline_layout={text} is not E, decoder layers (t), prediction layers (m) and L, in this order",
            "Write it as in Et|(tt|)*30mL.",
        )
    for piece, wanted, what in (
        (DECODER, model.num_layers, "decoder layers (t)"),
        (PREDICTION, model.mtp_num_layers, "layers of multi-token prediction (m)"),
    ):
        if flat.count(piece) != wanted:
            return Broken(
                f"layout.pipeline_layout={text} has {flat.count(piece)} {what}, and {model.name} has {wanted}",
                f"Write one with {wanted}.",
            )
    if PREDICTION * model.mtp_num_layers + LOSS not in chunks[-1]:
        return Broken(
            f"layout.pipeline_layout={text} has multi-token prediction (m) outside the chunk of the loss (L)",
            "Write it as in Et|(tt|)*30mL.",
        )
    return None


@rule(
    "uneven-sum",
    says="of two stages whose layers are both given, the layers add up to the model's",
    why="Megatron-Core builds as many layers as the two stages are given, and trains that other model",
    source=_LAYERS_TO_BUILD,
    phase=Phase.never,
)
def _uneven_sum(spec: Spec) -> Broken | None:
    layout, layers = spec.layout, spec.model.num_layers
    first, last = layout.num_layers_in_first_pipeline_stage, layout.num_layers_in_last_pipeline_stage
    if layout.pp != 2 or not first or not last or first + last == layers:
        return None
    return Broken(
        f"first={first} and last={last} are {first + last} of {layers} layers",
        f"Use last={max(layers - first, 1)}, or leave it unset.",
    )


@rule(
    "uneven-needs-pp",
    says="uneven stages need pipeline parallelism",
    why="with one stage Megatron-Core builds only the layers of the stage that is named, and trains that smaller model",
    source=_LAYERS_TO_BUILD,
    phase=Phase.never,
)
def _uneven_needs_pp(spec: Spec) -> Broken | None:
    layout = spec.layout
    if layout.pp == 1 and (layout.num_layers_in_first_pipeline_stage or layout.num_layers_in_last_pipeline_stage):
        return Broken("uneven pipeline stages with layout.pp=1", "Leave them unset, or use layout.pp=2 or more.")
    return None


@rule(
    "pp-layers",
    says="pipeline stages divide the layers; an embedding or loss that is accounted for counts as one layer",
    why="all stages have the same number of slots",
    source=_LAYERS_TO_BUILD,
)
def _pp_layers(spec: Spec) -> Broken | None:
    layout, layers = spec.layout, spec.model.num_layers
    placed = layout.num_layers_in_first_pipeline_stage or layout.num_layers_in_last_pipeline_stage
    if placed or layout.pipeline_layout:
        return None
    slots = layers + layout.account_for_embedding + layout.account_for_loss
    if slots % layout.pp == 0:
        return None
    legal = [pp for pp in divisors(slots) if slots // pp % layout.vpp == 0 or pp == 1]
    fix = f"Use layout.pp={nearest_values(layout.pp, legal)}"
    for embedding, loss in ((True, True), (False, True)):
        if (layers + embedding + loss) % (layout.pp * layout.vpp) == 0:
            fix += ", or layout.account_for_loss=true" + (" layout.account_for_embedding=true" if embedding else "")
            break
    return Broken(f"layout.pp={layout.pp} does not divide {slots} layers", fix + ".")


@rule(
    "vpp-layers",
    says="model chunks divide each stage's layers",
    why="every chunk of a stage has the same number of slots",
    source=_LAYERS_TO_BUILD,
)
def _vpp_layers(spec: Spec) -> Broken | None:
    layout = spec.layout
    per_stage = stage_layers(spec.model.num_layers, layout)
    if layout.pp == 1 or per_stage is None or not any(layers % layout.vpp for layers in per_stage):
        return None
    return Broken(
        f"layout.vpp={layout.vpp} does not divide the {per_stage[0]} layers of a stage",
        f"Use layout.vpp={nearest_values(layout.vpp, divisors(per_stage[0]))}.",
    )


@rule(
    "pp-account",
    says="the chunk that holds an accounted embedding or loss has a slot for it",
    why="a chunk cannot have a negative number of layers",
    source=_LAYERS_TO_BUILD,
)
def _pp_account(spec: Spec) -> Broken | None:
    per_stage = stage_layers(spec.model.num_layers, spec.layout)
    if per_stage is None or any(layers % spec.layout.vpp for layers in per_stage) or chunks_of(spec) is not None:
        return None
    return Broken(
        "the first or last chunk has fewer slots than the embedding and loss that it must hold",
        "Use a smaller layout.pp or layout.vpp.",
    )


@rule(
    "interleaved-micro-batches",
    says="with interleaving, the number of micro-batches is a multiple of PP",
    why="the schedule runs them in groups of PP, and a remainder would deadlock",
    source=MCORE + "pipeline_parallel.schedules.forward_backward_pipelining_with_interleaving",
    phase=Phase.step,
)
def _interleaved_micro_batches(spec: Spec) -> Broken | None:
    return interleaved_micro_batches(spec, spec.layout.gbs)


def interleaved_micro_batches(spec: Spec, gbs: int) -> Broken | None:
    """Whether interleaving gets whole groups of micro-batches from a global batch of ``gbs`` sequences."""
    layout, sequences = spec.layout, spec.layout.mbs * spec.dp
    if layout.vpp == 1 or layout.pp == 1 or not sequences or gbs % sequences:
        return None
    micro_batches = gbs // sequences
    if micro_batches % layout.pp == 0:
        return None
    unit = sequences * layout.pp
    below = gbs // unit * unit
    return Broken(
        f"{micro_batches} micro-batches are not a multiple of layout.pp={layout.pp} and layout.vpp={layout.vpp}",
        f"Use layout.gbs={nearest_values(gbs, [max(unit, below), below + unit])}, or layout.vpp=1.",
    )


@rule(
    "schedule",
    says="1f1b, gpipe and zero_bubble run one model chunk a stage and interleaved runs several; gpipe and zero_bubble "
    "need pipeline parallelism",
    why="interleaving is the only schedule of several chunks, and a single stage has nothing to schedule",
    source=MCORE + "pipeline_parallel.schedules.get_forward_backward_func; arXiv:1811.06965; arXiv:2401.10241",
)
def _schedule(spec: Spec) -> Broken | None:
    layout, name = spec.layout, spec.layout.schedule.value
    if layout.schedule is Schedule.auto:
        return None
    if layout.schedule is Schedule.interleaved and layout.vpp == 1:
        return Broken(
            "layout.schedule=interleaved with layout.vpp=1", "Use layout.vpp=2 or more, or layout.schedule=1f1b."
        )
    if layout.schedule is not Schedule.interleaved and layout.vpp > 1:
        return Broken(
            f"layout.schedule={name} with layout.vpp={layout.vpp}", "Use layout.vpp=1, or layout.schedule=interleaved."
        )
    if layout.schedule in ONLY_PLANNED_SCHEDULES and layout.pp == 1:
        return Broken(f"layout.schedule={name} with layout.pp=1", "Use layout.pp=2 or more, or layout.schedule=auto.")
    return None


@rule(
    "tied-pp",
    says="tied embeddings over several stages cost a copy and an all-reduce",
    why="the first and the last stage each hold the table and sum its gradients",
    source=MCORE + "distributed.finalize_model_grads",
    severity=Severity.advice,
)
def _tied_pp(spec: Spec) -> Broken | None:
    if spec.model.tied and spec.layout.pp > 1:
        return Broken("tied embeddings are held twice with layout.pp > 1", "Use layout.pp=1 if it fits.")
    return None


@rule(
    "mtp-tied-pp",
    says="multi-token prediction with tied embeddings needs a single pipeline stage",
    why="the last stage would hold the table twice under one name, and saving its checkpoint fails",
    source=MCORE + "LanguageModule.tie_embeddings_and_output_weights_state_dict",
    phase=Phase.step,
)
def _mtp_tied_pp(spec: Spec) -> Broken | None:
    if spec.model.mtp_num_layers and spec.model.tied and spec.layout.pp > 1:
        return Broken(f"layout.pp={spec.layout.pp} with model.mtp_num_layers and tied embeddings", "Use layout.pp=1.")
    return None


@rule(
    "wgrad-deferral",
    says="weight gradients of the output layer are deferred only in a pipeline, and without multi-token prediction",
    why="they are computed while other stages end their passes; and Megatron-Core pairs the inputs of the output layer "
    "with its gradients in the order of the micro-batches, which multi-token prediction breaks: it uses it twice",
    source=MCORE + "ModelParallelConfig.__post_init__, utils.drain_embedding_wgrad_compute and "
    "models.gpt.gpt_model.GPTModel._postprocess",
    phase=Phase.step,
)
def _wgrad_deferral(spec: Spec) -> Broken | None:
    limit = spec.levers.wgrad_deferral_limit
    if not limit:
        return None
    leave_out = "Use levers.wgrad_deferral_limit=0"
    if spec.layout.pp == 1:
        return Broken(f"levers.wgrad_deferral_limit={limit} with layout.pp=1", f"{leave_out}, or layout.pp=2 or more.")
    if spec.model.mtp_num_layers:
        return Broken(
            f"levers.wgrad_deferral_limit={limit} with multi-token prediction trains on wrong gradients",
            f"{leave_out}.",
        )
    return None


_DEEPEST_PIPELINE = 32


@rule(
    "few-micro-batches",
    says="a pipeline has at least as many micro-batches as stages",
    why="with fewer, some stages are idle even in the middle of the step",
    source="arXiv:2104.04473 section 2.2: the bubble is (PP - 1) / (VPP x micro-batches) of the step's work",
    severity=Severity.advice,
)
def _few_micro_batches(spec: Spec) -> Broken | None:
    layout, count = spec.layout, spec.batch.num_micro_batches
    if layout.pp <= count:
        return None
    enough = layout.pp * layout.mbs * max(spec.dp, 1)
    return Broken(
        f"{count} micro-batches for layout.pp={layout.pp}: layout.gbs={layout.gbs} is small for {spec.gpus} GPUs",
        f"Use layout.gbs={enough} or more, fewer GPUs, or a smaller layout.pp.",
    )


@rule(
    "deep-pipeline",
    says="a pipeline has at most 32 stages",
    why="every stage adds to the bubble and one more send to each micro-batch, and one slow stage holds up all others; "
    "Llama 3 405B has 16",
    source="arXiv:2407.21783 section 3.3.2",
    severity=Severity.advice,
)
def _deep_pipeline(spec: Spec) -> Broken | None:
    if spec.layout.pp <= _DEEPEST_PIPELINE:
        return None
    return Broken(f"layout.pp={spec.layout.pp} is deeper than published pipelines", "Use more layout.tp or layout.cp.")
