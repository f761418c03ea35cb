"""Our keys in the words of a configuration whose values have dotted paths: NeMo's, Megatron-Bridge's, torchtitan's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slipway.configs import Layout

_ALONE = ("tp", "pp", "cp", "ep", "etp", "mbs", "vpp")  # keys of the layout that messages name without "layout."


class PathTerms:
    """The words of one kind of file.

    Args:
        paths: our key -> the path of the file's value.
        values: our key and value, as ``layout.fsdp=megatron`` -> the file's words for them.
    """

    def __init__(self, paths: Mapping[str, str], values: Mapping[str, str] | None = None) -> None:
        self._paths = dict(paths)
        self._values = dict(values or {})

    def say(self, text: str) -> str:
        """A message or a fix with the file's own paths in place of our keys."""
        for ours, theirs in self._values.items():
            text = re.sub(rf"(?<![\w.]){re.escape(ours)}(?!\w)", theirs, text)
        for name in _ALONE:
            text = re.sub(rf"(?<![\w.-]){name}=(?=\d)", f"layout.{name}=", text)
        for key in sorted(self._paths, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.]){re.escape(key)}(?!\w)", self._paths[key], text)
        return text

    def changes(self, before: Layout, after: Layout) -> list[str]:
        """What to change in the file so that its layout becomes ``after``."""
        out = []
        for key, path in self._paths.items():
            group, _, name = key.partition(".")
            if group != "layout":
                continue
            old, new = getattr(before, name), getattr(after, name)
            same_experts = name == "etp" and before.expert_tp == after.expert_tp
            if old != new and not same_experts and name not in ("sp", "source"):
                out.append(self._values.get(f"{key}={_word(new)}", f"{path}={_word(new)}"))
        if before.sequence_parallel != after.sequence_parallel and "layout.sp" in self._paths:
            out.append(f"{self._paths['layout.sp']}={_word(after.sequence_parallel)}")
        return out


def _word(value: Any) -> str:
    value = getattr(value, "value", value)
    return str(value).lower() if isinstance(value, bool) else str(value)
