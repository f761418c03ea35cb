"""Models that have no recipe: what a recipe of theirs would hold, so that they are planned for by their own name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipway.configs.errors import Refusal
from slipway.configs.files import choices, model_names, path_of, read

_BYTES_PER_PARAMETER = 18  # weights, gradients and Adam's states in mixed precision: arXiv:1910.02054 section 3.1, + 2
_ROOM_BYTES = 40 * 2**30  # of a GPU with 80 GiB, for these states; the rest is for activations
_FEWEST_GPUS = 8  # one node


def planned_only_names() -> list[str]:
    """The models without a recipe of their name."""
    return sorted(set(model_names()) - set(choices("recipe")))


def recipe_body(name: str) -> dict[str, Any]:
    """The content of recipe/NAME.yaml, or what stands in for it where NAME is a model without a recipe.

    Raises:
        Refusal: there is neither.
    """
    if path_of("recipe", name) or not path_of("model", name):
        body = read("recipe", name)
        _require_defaults(name, body.get("defaults"))
        return body
    return {"defaults": [{"override /model": name}], "name": name, "gpus": starting_gpus(read("model", name))}


def _require_defaults(recipe: str, defaults: Any) -> None:
    entries = defaults if isinstance(defaults, list) else [None]
    for entry in entries:
        pairs = entry.items() if isinstance(entry, Mapping) else [("", None)]
        if not all(isinstance(key, str) and isinstance(value, str) for key, value in pairs):
            raise Refusal(
                f"recipe/{recipe}.yaml has no list of defaults",
                "Each line of it is like - override /model: llama3_8b; see configs/recipe/llama3_8b.yaml.",
            )


def starting_gpus(model: Mapping[str, Any]) -> int:
    """GPUs whose memory holds the states of a model, as a power of two: where a plan starts, not a recommendation."""
    width = model.get("moe_ffn_hidden_size") or model["ffn_hidden_size"]
    blocks = 3 * max(1, model.get("num_moe_experts", 0)) * width + 4 * model["hidden_size"]
    parameters = model["num_layers"] * model["hidden_size"] * blocks + model["vocab_size"] * model["hidden_size"]
    gpus = _FEWEST_GPUS
    while gpus * _ROOM_BYTES < parameters * _BYTES_PER_PARAMETER:
        gpus *= 2
    return gpus
