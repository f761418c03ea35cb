"""The signatures of Transformer Engine's functions and classes, read from a wheel without importing it.

python -m tests.te_signatures transformer_engine-2.9.0-py3-none-any.whl   writes tests/te_signatures.json

The stand-ins for CPU ranks must have them (tests/recipes/test_stand_ins.py).
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path

RECORD = Path(__file__).with_suffix(".json")
# Where Transformer Engine 2.9 defines what the stand-ins offer: module of the stand-in -> file, names.
PLACES = {
    "module.linear": {
        "module/linear.py": ["Linear"],
        "module/layernorm_linear.py": ["LayerNormLinear"],
        "module/grouped_linear.py": ["GroupedLinear"],
    },
    "module.norm": {"module/layernorm.py": ["LayerNorm"], "module/rmsnorm.py": ["RMSNorm"]},
    "module.fp8_padding": {"module/fp8_padding.py": ["Fp8Padding"], "module/fp8_unpadding.py": ["Fp8Unpadding"]},
    "attention.dot_product_attention": {
        "attention/dot_product_attention/dot_product_attention.py": ["DotProductAttention"]
    },
    "attention.rope": {"attention/rope.py": ["apply_rotary_pos_emb", "apply_fused_qkv_rotary_pos_emb"]},
    "distributed": {
        "distributed.py": ["CudaRNGStatesTracker", "checkpoint", "activation_recompute_forward", "get_all_rng_states"]
    },
    "fp8": {"quantization.py": ["fp8_autocast", "fp8_model_init"]},
    "optimizers": {"optimizers/fused_adam.py": ["FusedAdam"]},
    "permutation": {
        "permutation.py": [
            "moe_permute",
            "moe_permute_with_probs",
            "moe_unpermute",
            "moe_sort_chunks_by_index",
            "moe_sort_chunks_by_index_with_probs",
        ]
    },
    "router": {
        "router.py": [
            "fused_topk_with_score_function",
            "fused_compute_score_for_moe_aux_loss",
            "fused_moe_aux_loss",
        ]
    },
    "cpu_offload": {"cpu_offload.py": ["get_cpu_offload_context"]},
}
METHODS = ("__init__", "forward", "step", "add", "fork", "set_context_parallel_group", "backward_dw")


def parameters(arguments: ast.arguments) -> list[str]:
    """The parameters in order: their names, ``*`` before those of varying number, ``=`` after those with a default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    words = [a.arg + ("" if i < required else "=") for i, a in enumerate(positional)]
    words += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    words += [
        a.arg + ("=" if default is not None else "")
        for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    words += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return [word for word in words if word.rstrip("=") != "self"]


def read(wheel: Path) -> dict[str, list[str]]:
    """``module.Class.method`` or ``module.function`` -> parameters, for everything in :data:`PLACES`."""
    found: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for module, files in PLACES.items():
            for file, names in files.items():
                tree = ast.parse(archive.read(f"transformer_engine/pytorch/{file}"))
                for node in tree.body:
                    if isinstance(node, ast.FunctionDef) and node.name in names:
                        found[f"{module}.{node.name}"] = parameters(node.args)
                    elif isinstance(node, ast.ClassDef) and node.name in names:
                        methods = (m for m in node.body if isinstance(m, ast.FunctionDef) and m.name in METHODS)
                        found |= {f"{module}.{node.name}.{m.name}": parameters(m.args) for m in methods}
    return found


if __name__ == "__main__":
    RECORD.write_text(json.dumps(read(Path(sys.argv[1])), indent=1, sort_keys=True) + "\n")
