"""What a published table leaves out, inferred: how layers were split over stages, and what was recomputed to fit."""

from __future__ import annotations

from dataclasses import replace

from slipway.configs import Calibration, Recompute, Spec
from slipway.configs.stack import PipelineSplit
from slipway.planner.memory import memory
from slipway.planner.stages import chunks_of, spread

# What tuned recipes of expert models recompute, the cheapest first.
_CHEAPEST_FIRST = (
    ("layernorm", "moe_act"),
    ("layernorm", "moe_act", "mla_up_proj"),
    ("moe",),
    ("moe", "layernorm", "mla_up_proj", "mlp"),
)
# (embedding, loss) counted as layers: the splits that Megatron-Core can express, the most common first.
_ACCOUNTED_FOR = ((False, False), (True, True), (False, True), (True, False))


def split_layers(spec: Spec, split: PipelineSplit) -> Spec:
    """The spec with its layers split over the pipeline stages as its stack splits them."""
    pp, layers = spec.layout.pp, spec.model.num_layers
    in_last_stage = layers - -(-layers // pp) * (pp - 1)
    if split is PipelineSplit.front_first and layers % pp and in_last_stage > 0:
        return replace(spec, layout=replace(spec.layout, num_layers_in_last_pipeline_stage=in_last_stage))
    return fit_pipeline(spec)


def fit_pipeline(spec: Spec) -> Spec:
    """The spec with the first even split of its layers: plain, embedding and loss counted as layers, else written."""
    for embedding, loss in _ACCOUNTED_FOR:
        trial = replace(spec, layout=replace(spec.layout, account_for_embedding=embedding, account_for_loss=loss))
        if chunks_of(trial) is not None:
            return trial
    model, layout = spec.model, spec.layout
    text = spread(model.num_layers, model.mtp_num_layers, layout.pp * layout.vpp)
    return replace(spec, layout=replace(layout, pipeline_layout=text))


def fit_memory(spec: Spec) -> Spec:
    """The spec with the cheapest recompute that fits its GPU, for tables that do not state what was recomputed."""
    if _fits(spec):
        return spec
    for modules in _CHEAPEST_FIRST:
        selective = replace(spec.layout, recompute=Recompute.selective, recompute_modules=list(modules))
        if _fits(replace(spec, layout=selective)):
            return replace(spec, layout=selective)
    return replace(spec, layout=replace(spec.layout, recompute=Recompute.full))


def _fits(spec: Spec) -> bool:
    """Whether the peak fits the GPU. These runs are known to have run, so nothing is set aside for fragmentation."""
    needed = memory(spec, Calibration(name="published"))
    return needed.peak_gib + needed.outside_gib <= needed.capacity_gib
