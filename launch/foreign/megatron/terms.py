"""Our keys in the words of Megatron-LM's command line, with the line of the file where it says them."""

from __future__ import annotations

import re

from slipway.configs import Layout
from slipway.launch.foreign.megatron.arguments import Arguments
from slipway.launch.foreign.megatron.run import FP8

FLAGS = {
    "layout.tp": "--tensor-model-parallel-size",
    "layout.pp": "--pipeline-model-parallel-size",
    "layout.vpp": "--num-virtual-stages-per-pipeline-rank",
    "layout.cp": "--context-parallel-size",
    "layout.ep": "--expert-model-parallel-size",
    "layout.etp": "--expert-tensor-parallel-size",
    "layout.mbs": "--micro-batch-size",
    "layout.gbs": "--global-batch-size",
    "layout.seq_length": "--seq-length",
    "layout.recompute": "--recompute-granularity",
    "layout.recompute_modules": "--recompute-modules",
    "layout.recompute_method": "--recompute-method",
    "layout.recompute_num_layers": "--recompute-num-layers",
    "layout.pipeline_layout": "--pipeline-model-parallel-layout",
    "layout.num_layers_in_first_pipeline_stage": "--decoder-first-pipeline-num-layers",
    "layout.num_layers_in_last_pipeline_stage": "--decoder-last-pipeline-num-layers",
    "layout.dispatcher": "--moe-token-dispatcher-type",
    "layout.attention_backend": "--attention-backend",
    "layout.moe_expert_capacity_factor": "--moe-expert-capacity-factor",
    "model.num_query_groups": "--num-query-groups",
    "model.mtp_num_layers": "--mtp-num-layers",
    "model.hybrid_override_pattern": "--hybrid-override-pattern",
    "model.num_layers": "--num-layers",
    "model.max_position_embeddings": "--max-position-embeddings",
    "optim.batch_ramp": "--rampup-batch-size",
}
SWITCHES = {
    "layout.sp": "--sequence-parallel",
    "layout.distributed_optimizer": "--use-distributed-optimizer",
    "layout.overlap_grad_reduce": "--overlap-grad-reduce",
    "layout.overlap_param_gather": "--overlap-param-gather",
    "layout.tp_comm_overlap": "--tp-comm-overlap",
    "layout.account_for_embedding": "--account-for-embedding-in-pipeline-split",
    "layout.account_for_loss": "--account-for-loss-in-pipeline-split",
    "layout.moe_pad_expert_input_to_capacity": "--moe-pad-expert-input-to-capacity",
    "layout.optimizer_cpu_offload": "--optimizer-cpu-offload",
    "layout.cuda_graphs": "--enable-cuda-graph",
    "layout.fsdp": "--use-megatron-fsdp",
    "precision.fp8_param_gather": "--fp8-param-gather",
    "precision.first_last_layers_bf16": "--first-last-layers-bf16",
    "optim.precision_aware": "--use-precision-aware-optimizer",
}
_ALONE = {"tp": "layout.tp", "pp": "layout.pp", "cp": "layout.cp", "ep": "layout.ep", "etp": "layout.etp",
          "mbs": "layout.mbs", "first": "layout.num_layers_in_first_pipeline_stage",
          "last": "layout.num_layers_in_last_pipeline_stage"}  # fmt: skip
_PRECISIONS = {name: f"--fp8-recipe {word}" for word, name in FP8.items()} | {
    "bf16": "--bf16 without --fp8-format",
    "fp32": "neither --bf16 nor --fp16",
    "nvfp4": "--fp4-format e2m1",
}
_CHOSEN = ("tp", "pp", "vpp", "cp", "ep", "etp", "mbs", "gbs", "recompute", "recompute_modules", "pipeline_layout",
           "num_layers_in_last_pipeline_stage", "account_for_embedding", "account_for_loss", "fsdp")  # fmt: skip


class MegatronTerms:
    """The words of one file."""

    def __init__(self, arguments: Arguments) -> None:
        self._lines = {given.flag: given.line for given in arguments.given if given.line}
        self._per_chunk = arguments.last("num_layers_per_virtual_pipeline_stage")

    def say(self, text: str) -> str:
        """A message or a fix with the file's own arguments in place of our keys."""
        for key, flag in SWITCHES.items():
            escaped = re.escape(key)
            text = re.sub(rf"Leave {escaped} (unset|on)", f"Add {flag}", text)
            text = re.sub(rf"\b[Uu]se {escaped}=(true|megatron)", f"Add {flag}", text)
            text = re.sub(rf"\b[Uu]se {escaped}=(false|none)", f"Leave out {self._at(flag)}", text)
            text = re.sub(rf"{escaped}=(false|none)", f"no {flag}", text)
            text = re.sub(rf"{escaped}(=true|=megatron)?", flag, text)
        for short, key in _ALONE.items():
            text = re.sub(rf"(?<![\w.-]){short}=(?=\d)", f"{key}=", text)
        for key in sorted(FLAGS, key=len, reverse=True):
            value = r"(\[[^\]]*\]|[\w|()*,+-]+(?: or \w+)*)"
            text = re.sub(rf"{re.escape(key)}={value}", lambda found, key=key: self._valued(key, found[1]), text)  # type: ignore[misc]
            text = re.sub(rf"{re.escape(key)}(?!\w)", FLAGS[key], text)
        text = re.sub(r"precision=(\w+)", lambda found: _PRECISIONS.get(found[1], found[0]), text)
        return re.sub(r"gpus=(\d+(?: or \d+)*)", r"\1 GPUs", text)

    def _valued(self, key: str, value: str) -> str:
        flag = FLAGS[key]
        if key == "layout.vpp" and self._per_chunk:
            return f"{flag} {value} in place of {self._at(self._per_chunk.flag)}"
        if key == "layout.recompute_modules":
            value = value.strip("[]").replace(",", " ")
        if key == "layout.etp" and value == "0":
            return f"no {flag}"
        return self._at(flag, value)

    def _at(self, flag: str, value: str = "") -> str:
        words = f"{flag} {value}".strip()
        return f"{words} (line {self._lines[flag]})" if flag in self._lines else words

    def changes(self, before: Layout, after: Layout) -> list[str]:
        """What to change in the file so that its layout becomes ``after``."""
        out = []
        for name in _CHOSEN:
            old, new = getattr(before, name), getattr(after, name)
            if old == new or (name == "etp" and (old or before.tp) == (new or after.tp)):
                continue
            key = f"layout.{name}"
            value = "[" + ",".join(new) + "]" if isinstance(new, list) else str(getattr(new, "value", new))
            if key in SWITCHES:
                out.append(self.say(f"Use {key}={'true' if new not in (False, 'none') else 'false'}"))
            elif new in ([], "", 0) or value == "none":
                out.append(f"leave out {self._at(FLAGS[key])}")
            else:
                out.append(self._valued(key, value))
        if before.sp is False and after.tp > 1 and after.sequence_parallel:
            out.append("add --sequence-parallel")
        return out
