"""The architecture that Megatron-LM's arguments describe, by the rules of its ``validate_args``.

Source: megatron/training/arguments.py of github.com/NVIDIA/Megatron-LM at core_v0.15.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from slipway.configs import Model, Refusal
from slipway.configs.schema.layers import HYBRID_SYMBOLS
from slipway.configs.schema.model import Activation, Normalization, PositionEmbedding, SoftmaxType
from slipway.launch.foreign.megatron.arguments import Arguments, bearing
from slipway.launch.foreign.reading import require_layers

SWIGLU_MULTIPLE = 64  # the default width of a gated block is rounded down to a multiple of it
MAMBA_EXPANSION = 2  # inner width of a Mamba-2 layer over the hidden size (megatron/core/ssm/mamba_mixer.py)
LONGEST_PATTERN = 4096  # layers of a pattern such as ([0]*3+[1]*58)
_POSITIONS = {"mrope": "rope", "relative": "none"}


def model_of(args: Arguments, name: str, assumed: list[str], *, mamba: bool) -> Model:
    """The architecture.

    Args:
        mamba: whether the program or the layer specification is that of a Mamba model.
        assumed: gains what the arguments leave open.

    Raises:
        Refusal: a size is missing, or the model cannot be planned.

    Long because it names every field of a model once.
    """
    _require_decoder(args)
    layers = args.whole("num_layers") or args.whole("encoder_num_layers")
    sizes = {"--num-layers": layers}
    sizes |= {f"--{key.replace('_', '-')}": args.whole(key) for key in ("hidden_size", "num_attention_heads")}
    if missing := [flag for flag, size in sizes.items() if size < 1]:
        raise Refusal(f"{args.where} does not say {missing[0]}", "Megatron-LM needs it; give the file that has it.")
    require_layers(layers + args.whole("mtp_num_layers"), args.where)
    hidden, heads = args.whole("hidden_size"), args.whole("num_attention_heads")
    gated, ffn = args.flag("swiglu") or args.flag("quick_geglu"), _ffn(args, hidden)
    bias = args.flag("add_bias_linear")
    groups = args.whole("num_query_groups") if args.flag("group_query_attention") else heads
    rotary = args.flag("use_rotary_position_embeddings")
    positions = "rope" if rotary else args.text("position_embedding_type")
    length = args.whole("seq_length") or args.whole("encoder_seq_length")
    if not length:
        raise Refusal(f"{args.where} does not say --seq-length", "Megatron-LM needs it; give the file that has it.")
    return Model(
        name=name,
        family="megatron-lm",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=heads if args.flag("multi_latent_attention") else groups,
        kv_channels=_kv_channels(args, hidden, heads),
        vocab_size=_vocabulary(args, assumed),
        seq_length=length,
        max_position_embeddings=args.whole("max_position_embeddings") or length,
        gated_linear_unit=gated,
        activation_func=_activation(args),
        normalization=Normalization(args.text("normalization")),
        add_bias_linear=bias,
        add_qkv_bias=bias or args.flag("add_qkv_bias"),
        qk_layernorm=args.flag("qk_layernorm"),
        qk_l2_norm=args.flag("qk_l2_norm"),
        softmax_type=SoftmaxType.learnable if args.text("softmax_type") == "learnable" else SoftmaxType.vanilla,
        share_embeddings_and_output_weights=not args.flag("untie_embeddings_and_output_weights"),
        position_embedding_type=PositionEmbedding(_POSITIONS.get(positions, positions)),
        rotary_base=float(args.value("rotary_base")),
        rotary_percent=float(args.unpriced("rotary_percent") or 1.0),
        hidden_dropout=float(args.value("hidden_dropout")),
        attention_dropout=float(args.value("attention_dropout")),
        make_vocab_size_divisible_by=args.whole("make_vocab_size_divisible_by"),
        mtp_num_layers=args.whole("mtp_num_layers"),
        **_windows(args),
        **_experts(args, ffn, layers, assumed),
        **_latent_attention(args),
        **(_hybrid(args, layers, hidden) if mamba or args.text("hybrid_override_pattern") else {}),
    )


def _require_decoder(args: Arguments) -> None:
    if args.whole("decoder_num_layers") or args.value("decoder_seq_length"):
        raise Refusal(
            f"{args.where} describes an encoder and a decoder (T5), which cannot be planned",
            "Give a decoder-only model.",
        )
    for dest, what in (
        ("heterogeneous_layers_config_path", "layers of different widths"),
        ("heterogeneous_layers_config_encoded_json", "layers of different widths"),
        ("retro_add_retriever", "a retriever (Retro)"),
        ("yaml_cfg", "its arguments in another file (--yaml-cfg)"),
    ):
        if args.value(dest):
            raise Refusal(f"{args.where} has {what}, which cannot be planned", "Leave it out to plan the rest.")


def _ffn(args: Arguments, hidden: int) -> int:
    if given := args.whole("ffn_hidden_size"):
        return given
    return 4 * hidden * 2 // 3 // SWIGLU_MULTIPLE * SWIGLU_MULTIPLE if args.flag("swiglu") else 4 * hidden


def _kv_channels(args: Arguments, hidden: int, heads: int) -> int:
    if given := args.whole("kv_channels"):
        return given
    if hidden % heads:
        raise Refusal(
            f"{args.where}: --hidden-size {hidden} is not a multiple of --num-attention-heads {heads}",
            "Change one of them, or give --kv-channels.",
        )
    return hidden // heads


def _activation(args: Arguments) -> Activation:
    if args.flag("squared_relu"):
        return Activation.squared_relu
    return Activation.silu if args.flag("swiglu") else Activation.gelu


def _vocabulary(args: Arguments, assumed: list[str]) -> int:
    """The vocabulary before it is padded: as given, else that of the tokenizer's type or name."""
    given, kind = args.whole("vocab_size"), args.text("tokenizer_type")
    if given:
        return given + (kind == "NullTokenizer")  # which adds an end of document
    extra = args.whole("vocab_extra_ids")
    named = args.last("tokenizer_model")
    model = named.value.lower() if named and isinstance(named.value, str) else ""
    by_name = next((size for word, size in bearing().models.items() if word in model), 0)
    size = by_name or bearing().vocabularies.get(kind, 0)
    if by_name:
        args.used.add("tokenizer_model")
    if not size and kind:
        raise Refusal(
            f"{args.where} does not state the vocabulary of --tokenizer-type {kind}",
            "Add --vocab-size to it, or give model.vocab_size=128256.",
        )
    size = size or bearing().vocabularies["GPT2BPETokenizer"]
    assumed.append(f"a vocabulary of {size:,} ({kind or 'no tokenizer is named'}); model.vocab_size= corrects it")
    return size + extra


def _windows(args: Arguments) -> dict[str, Any]:
    window = args.text("window_size").strip("() ")
    if not window:
        return {}
    size, every = int(window.split(",")[0]), args.text("window_attn_skip_freq")
    if size < 1:
        return {}
    if not every:
        return {"window_size": size}
    if "[" not in every:
        return {"window_size": size, "window_every": int(every)}
    windowed = pattern(every, args.where)  # 1: a layer with a window
    for step in range(1, len(windowed) + 1):
        if windowed == [int(not (step > 1 and (i + 1) % step == 0)) for i in range(len(windowed))]:
            return {"window_size": size, "window_every": step}
    raise Refusal(
        f"{args.where}: --window-attn-skip-freq {every} cannot be planned", "Use a window in every layer but each n-th."
    )


def _experts(args: Arguments, ffn: int, layers: int, assumed: list[str]) -> dict[str, Any]:
    """The fields of :class:`Model` for a mixture of experts."""
    if not args.whole("num_experts"):
        return {}
    dense, every = _expert_layers(args, layers, assumed)
    return {
        "num_moe_experts": args.whole("num_experts"),
        "moe_router_topk": args.whole("moe_router_topk"),
        "moe_ffn_hidden_size": args.whole("moe_ffn_hidden_size") or ffn,
        "moe_shared_expert_intermediate_size": args.whole("moe_shared_expert_intermediate_size"),
        "moe_router_topk_scaling_factor": float(args.unpriced("moe_router_topk_scaling_factor") or 0.0),
        "num_dense_layers": dense,
        "moe_every": every,
    }


def _expert_layers(args: Arguments, layers: int, assumed: list[str]) -> tuple[int, int]:
    """The leading dense layers, and of the others every how many holds experts."""
    text = args.text("moe_layer_freq")
    holds = pattern(text, args.where) if "[" in text else [int(i % int(text) == 0) for i in range(layers)]
    return placement_of_experts(holds, layers, f"--moe-layer-freq {text}", args.where, assumed)


def placement_of_experts(holds: list[int], layers: int, said: str, where: str, assumed: list[str]) -> tuple[int, int]:
    """The leading dense layers, and of the others every how many holds experts.

    Args:
        holds: 1 for each layer with experts, else 0.
        said: how the file says it.
        assumed: gains what is planned otherwise than the file says.

    Raises:
        Refusal: another number of layers, or a placement that cannot be planned.
    """
    if len(holds) != layers:
        raise Refusal(f"{where}: {said} is for {len(holds)} layers, and the model has {layers}", "Make them agree.")
    if not any(holds):
        return layers, 1
    for every in range(1, layers + 1):
        for dense in {holds.index(1), 0}:
            if holds == [int(i >= dense and (i + 1) % every == 0) for i in range(layers)]:
                return dense, every
    every = layers // sum(holds)
    if sum((i + 1) % every == 0 for i in range(layers)) == sum(holds):
        assumed.append(
            f"the {sum(holds)} layers with experts are every {every} of {layers}, not in the order of {said}"
        )
        return 0, every
    raise Refusal(f"{where}: {said} cannot be planned", "Use every n-th layer, or dense layers first.")


def pattern(text: str, where: str) -> list[int]:
    """A list such as ``([0]*3+[1]*58)*1``, computed from sums and products of lists.

    Raises:
        Refusal: it is something else.
    """
    tokens = re.findall(r"\d+|[\[\]()+*,]", text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise Refusal(f"{where}: {text} is not a list of layers", "Write it as ([0]*3+[1]*58).")
    try:
        value = _sum(tokens)
        if tokens or not isinstance(value, list):
            raise ValueError(text)
    except (ValueError, IndexError, TypeError, RecursionError):
        raise Refusal(f"{where}: {text} is not a list of layers", "Write it as ([0]*3+[1]*58).") from None
    return value


def _sum(tokens: list[str]) -> Any:
    value = _product(tokens)
    while tokens and tokens[0] == "+":
        tokens.pop(0)
        value = value + _product(tokens)
    return value


def _product(tokens: list[str]) -> Any:
    value = _atom(tokens)
    while tokens and tokens[0] == "*":
        tokens.pop(0)
        by = _atom(tokens)
        size = len(value) * by if isinstance(value, list) else len(by) * value if isinstance(by, list) else 0
        if size > LONGEST_PATTERN:
            raise ValueError
        value = value * by
    return value


def _atom(tokens: list[str]) -> Any:
    first = tokens.pop(0)
    if first.isdigit():
        return int(first)
    if first == "(":
        value = _sum(tokens)
        if tokens.pop(0) != ")":
            raise ValueError
        return value
    if first != "[":
        raise ValueError
    items: list[Any] = []
    while tokens[0] != "]":
        items.append(_sum(tokens))
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return items


def _latent_attention(args: Arguments) -> dict[str, Any]:
    """The fields of :class:`Model` for multi-latent attention."""
    if not args.flag("multi_latent_attention"):
        return {}
    return {
        key: args.whole(key)
        for key in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
    }


def _hybrid(args: Arguments, layers: int, hidden: int) -> dict[str, Any]:
    """The fields of :class:`Model` for a hybrid of Mamba-2 and attention."""
    text = args.text("hybrid_override_pattern").strip("\"'")
    attention, mlp = float(args.value("hybrid_attention_ratio") or 0), float(args.value("hybrid_mlp_ratio") or 0)
    symbols = text or spread(layers, attention, mlp)
    if strange := set(symbols) - set(HYBRID_SYMBOLS):
        raise Refusal(
            f"{args.where}: --hybrid-override-pattern has {sorted(strange)[0]!r}, which cannot be planned",
            f"Its symbols are {' '.join(HYBRID_SYMBOLS)}.",
        )
    if len(symbols) != layers:
        raise Refusal(
            f"{args.where}: --hybrid-override-pattern has {len(symbols)} layers, and --num-layers is {layers}",
            "Make them agree.",
        )
    head = args.whole("mamba_head_dim")
    return {
        "hybrid_override_pattern": symbols,
        "mamba_num_heads": args.whole("mamba_num_heads") or MAMBA_EXPANSION * hidden // head,
        "mamba_head_dim": head,
        "mamba_state_dim": args.whole("mamba_state_dim"),
        "mamba_num_groups": args.whole("mamba_num_groups"),
    }


def spread(layers: int, attention: float, mlp: float) -> str:
    """The layers of a hybrid by shares of attention and feed-forward layers, spread evenly between Mamba layers.

    Attention begins and ends with Mamba; feed-forward layers come as late as an even spread allows.
    Source: megatron/core/ssm/mamba_hybrid_layer_allocation.py at core_v0.15.3.
    """
    symbols = ["M"] * layers
    placed = round(layers * attention)
    _replace(symbols, "*", (layers - placed) / (placed + 1))
    dense = round(layers * mlp)
    if dense:
        _replace(symbols, "-", (layers - placed - dense) / dense)
    return "".join(symbols)


def _replace(symbols: list[str], symbol: str, distance: float) -> None:
    """Turn Mamba layers into ``symbol``, so many Mamba layers apart."""
    left = distance
    for i, found in enumerate(symbols):
        if found != "M":
            continue
        if left < 0.5:  # the nearest whole layer
            symbols[i] = symbol
            left += distance
        else:
            left -= 1


def as_json(model: Model, total: int, active: int) -> dict[str, Any]:
    """The model as ``check --json`` shows it."""
    keys: Sequence[str] = (
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels vocab_size "
        "num_moe_experts moe_router_topk"
    ).split()
    return {key: getattr(model, key) for key in keys} | {"total": total, "active": active}
