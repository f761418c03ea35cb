"""What a run keeps of the data that it reads, so that a resume on other data of the same shape is noticed. No torch.

Reading a corpus whole takes hours. Sizes, whole small files such as indices, and blocks sampled over the large ones
take a second, and differ between corpora that were prepared from different text or in another order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from slipway.configs import Refusal, Spec
from slipway.configs.blend import prefixes
from slipway.configs.schema import DataKind
from slipway.recipes.runtime.data_manifest import sha256_of
from slipway.recipes.runtime.run_files import RECORD

WHOLE_BYTES = 64 << 20  # a file up to this size is hashed whole
BLOCK_BYTES = 4096
BLOCKS = 1024  # of all files of a run together
LEAST_BLOCKS = 8  # of each file


def fingerprint(spec: Spec) -> dict[str, dict[str, Any]]:
    """For each file that a run reads its size and the hash of what was read of it; nothing for random tokens."""
    if spec.data.kind is DataKind.mock:
        return {}
    ends = (".bin", ".idx") if spec.data.kind is DataKind.indexed else ("",)
    paths = [path for prefix in prefixes(spec.data) for end in ends if (path := Path(f"{prefix}{end}")).is_file()]
    blocks = max(LEAST_BLOCKS, BLOCKS // max(1, len(paths)))
    return {str(path): {"bytes": path.stat().st_size, "sha256": _sampled(path, blocks)} for path in paths}


def _sampled(path: Path, blocks: int) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256_of(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in range(blocks):
            file.seek((size - BLOCK_BYTES) * block // (blocks - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def check_same_data(run_dir: Path, spec: Spec) -> dict[str, dict[str, Any]]:
    """The fingerprint of a run's data, after it was compared with that of the run's folder, where there is one.

    Raises:
        Refusal: a file holds other data than the run was trained on so far.
    """
    found = fingerprint(spec)
    path = run_dir / RECORD
    try:
        before = json.loads(path.read_text()).get("data", {}) if path.is_file() else {}
    except (OSError, ValueError, AttributeError):
        return found  # check_run_dir refuses it
    for name, now in found.items():
        then = before.get(name) if isinstance(before, dict) else None
        if then in (None, now) or spec.run.accept_changed_data:
            continue
        same_size = isinstance(then, dict) and then.get("bytes") == now["bytes"]
        raise Refusal(
            f"{name} is not what {run_dir} has been trained on: "
            + ("its size is the same and its contents differ" if same_size else f"it has {now['bytes']:,} bytes now"),
            "Restore the file, give another name=, or set run.accept_changed_data=true to train on with it.",
        )
    return found
