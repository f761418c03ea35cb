"""From Megatron-LM's arguments to a Reading: what the kinds of files that hold such arguments share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from slipway.configs import Refusal
from slipway.configs.load import override
from slipway.launch.foreign.megatron.arguments import VERSION, Arguments, Given, has_bearing
from slipway.launch.foreign.megatron.run import Machines, lifted_rules, spec_of
from slipway.launch.foreign.megatron.terms import MegatronTerms
from slipway.launch.foreign.reading import USUAL_GPU, File, Reading, Request, gpu_in, run_name

USUAL_GPUS_PER_NODE = 8
_SIZES = ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor")


def reading_of(
    kind: str, file: File, request: Request, args: Arguments, machines: Machines, assumed: list[str]
) -> Reading:
    """The run of these arguments under the user's overrides, with an account of every argument.

    Raises:
        Refusal: the run is incomplete, contradictory, or cannot be planned.
    """
    _complete(file, request, machines, assumed)
    spec = spec_of(args, run_name(file), machines, assumed)
    resolved = override(spec, request.overrides)
    rates = [float(args.value(dest)) for dest in ("hidden_dropout", "attention_dropout")]
    assumed += [f"nothing for {name}, which nothing defines" for name in args.stray]
    given = list({item.dest: item for item in args.given}.values())
    rest = [item for item in given if item.dest not in args.used]
    return Reading(
        kind=kind,
        version=VERSION,
        path=file.path,
        resolved=resolved,
        used=_shown(item for item in given if item.dest in args.used),
        irrelevant=_shown(item for item in rest if not has_bearing(item.dest)),
        unknown=_shown(args.unknown),
        not_modelled=_shown(item for item in rest if has_bearing(item.dest)),
        assumed=assumed,
        dropout=any(rates),
        lifted=lifted_rules(args, resolved.spec),
        terms=MegatronTerms(args),
    )


def fewest_gpus(args: Arguments) -> int:
    """The fewest nodes of 8 GPUs that hold whole copies of the model and its experts; fewer GPUs for a small batch."""
    tp, pp, cp, ep, etp = (max(args.whole(f"{name}_parallel_size"), 1) for name in _SIZES)
    if args.last("expert_tensor_parallel_size") is None:
        etp = tp
    ranks = math.lcm(tp * pp * cp, etp * ep * pp)
    nodes = math.lcm(ranks, USUAL_GPUS_PER_NODE)
    unit = args.whole("micro_batch_size") * (nodes // (tp * pp * cp))
    return ranks if unit and args.whole("global_batch_size") % unit else nodes


def _shown(items: Iterable[Given]) -> list[str]:
    return [item.shown() for item in items]


def _complete(file: File, request: Request, machines: Machines, assumed: list[str]) -> None:
    """Complete what starts the ranks by the overrides, and by what is usual."""
    given = dict(override.partition("=")[::2] for override in request.overrides)
    if not machines.gpu:
        named = gpu_in(run_name(file))
        machines.gpu = named or USUAL_GPU
        if "gpu" not in given and "cluster" not in given:
            why = "as the name has it" if named else "the file does not say; gpu= gives another"
            assumed.append(f"{machines.gpu.upper()}: {why}")
    if given.get("gpus", "").isdigit():
        machines.gpus = int(given["gpus"])
    elif given.get("nodes", "").isdigit():
        machines.gpus = int(given["nodes"]) * (machines.per_node or USUAL_GPUS_PER_NODE)
    if not machines.gpus:
        raise Refusal(f"{file.name} does not say on how many GPUs it runs", "Give gpus=, for example gpus=64.")
