"""The parameters of NeMo's own recipes under NeMo's names, as the overrides that mean the same here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Optional

from slipway.configs import Refusal

# Parameter of NeMo's factories -> (type, the Spec key that it sets; empty where it is more than one key).
NEMO_PARAMETERS: dict[str, tuple[Any, str]] = {
    "performance_mode": (Optional[bool], ""),
    "fn": (Optional[Callable], ""),
    "use_mtp": (Optional[bool], ""),
    "peft_scheme": (Optional[str], "peft"),
    "packed_sequence": (Optional[bool], "data.packed"),
    "tensor_parallelism": (Optional[int], "layout.tp"),
    "pipeline_parallelism": (Optional[int], "layout.pp"),
    "pipeline_parallelism_type": (Optional[Any], ""),
    "virtual_pipeline_parallelism": (Optional[int], "layout.vpp"),
    "context_parallelism": (Optional[int], "layout.cp"),
    "sequence_parallelism": (Optional[bool], "layout.sp"),
    "expert_parallelism": (Optional[int], "layout.ep"),
    "accumulate_grad_batches": (Optional[int], ""),
    "gradient_clip_val": (Optional[float], "optim.clip_grad"),
    "limit_test_batches": (Optional[int], ""),
    "limit_val_batches": (Optional[int], "run.limit_val_batches"),
    "log_every_n_steps": (Optional[int], "run.log_every_n_steps"),
    "val_check_interval": (Optional[int], "run.val_check_interval"),
    "global_batch_size": (Optional[int], "layout.gbs"),
    "micro_batch_size": (Optional[int], "layout.mbs"),
    "warmup_steps": (Optional[int], "optim.warmup_steps"),
    "constant_steps": (Optional[int], ""),
    "min_lr": (Optional[float], "optim.min_lr"),
    "max_lr": (Optional[float], "optim.lr"),
}

_PRECISIONS = {"bf16-mixed": "bf16", "bf16": "bf16", "32": "fp32", "32-true": "fp32"}  # of Lightning


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose values have other names here: Lightning's words for a precision."""
    out = dict(options)
    if (word := out.get("precision")) is not None:
        out["precision"] = _PRECISIONS.get(str(word), word)
    return out


def nemo_overrides(options: Mapping[str, Any], *, has_mtp: bool) -> list[str]:
    """The overrides of the parameters that are more, or less, than one key.

    Args:
        options: the arguments that are given.
        has_mtp: whether the recipe's model has multi-token prediction.

    Raises:
        Refusal: a value that no recipe here can have.
    """
    keys = []
    if options.get("use_mtp") is False and has_mtp:
        keys.append("model.mtp_num_layers=0")
    if options.get("use_mtp") and not has_mtp:
        raise Refusal("use_mtp=True, and the model has no multi-token prediction", "Leave it out.")
    if constant := options.get("constant_steps"):
        if not (steps := options.get("max_steps")):
            raise Refusal(
                f"constant_steps={constant} counts from the end of max_steps, which is not given", "Give max_steps too."
            )
        keys.append(f"optim.decay_steps={int(steps) - int(constant)}")
    if options.get("accumulate_grad_batches", 1) != 1:
        raise Refusal(
            f"accumulate_grad_batches={options['accumulate_grad_batches']}: Megatron-Core accumulates micro-batches "
            "itself, up to the global batch",
            "Give a larger global_batch_size.",
        )
    return keys


def change_built(recipe: Any, options: Mapping[str, Any]) -> Any:
    """What no key expresses, set on the built recipe, which is returned.

    Raises:
        Refusal: another type of what pipeline stages send than the precision's.
    """
    if (given := options.get("pipeline_parallelism_type")) is not None:
        ours = recipe.trainer.plugins.pipeline_dtype
        if str(given).removeprefix("torch.") != str(ours).removeprefix("torch."):
            raise Refusal(
                f"pipeline_parallelism_type={given}, and pipeline stages send {ours} in this precision",
                "Leave it out, or choose another precision.",
            )
    if (batches := options.get("limit_test_batches")) is not None:
        recipe.trainer.limit_test_batches = batches
    return _calling(recipe, options.get("fn"))


def _calling(recipe: Any, function: Any) -> Any:
    """The recipe as a call of ``function``; NeMo's own is what the recipe calls, after judging it."""
    import nemo_run as run
    from nemo.collections import llm

    if function is None or function in (llm.pretrain, llm.finetune):
        return recipe
    return run.Partial(function, **recipe.__arguments__)
