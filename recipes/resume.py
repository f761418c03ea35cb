"""Resume from the last good checkpoint, and say which. Upstream stops at an unfinished one, or starts from scratch in silence."""

from __future__ import annotations

import logging
from pathlib import Path

from nemo import lightning as nl
from nemo.utils.app_state import AppState

_UNFINISHED = "-unfinished"  # NeMo's marker beside a checkpoint that is being written
_log = logging.getLogger("nemo_logger")


def step_of(checkpoint: Path) -> int:
    """The step in a name such as ``step=199-last``; -1 if there is none."""
    digits = "".join(c for c in checkpoint.name.split("-")[0] if c.isdigit())
    return int(digits) if digits else -1


def good_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of ``folder``, oldest first: no marker beside them, and the writer's metadata, written last, in them."""
    if not folder.is_dir():
        return []
    whole = [
        d
        for d in folder.iterdir()
        if d.is_dir()
        and not d.name.endswith(_UNFINISHED)
        and not d.with_name(d.name + _UNFINISHED).exists()
        and (d / "weights" / ".metadata").is_file()
    ]
    return sorted(whole, key=lambda d: (step_of(d), d.name.endswith("-last")))


class Resume(nl.AutoResume):
    """:class:`nemo.lightning.AutoResume` that passes over damaged checkpoints and tells what it does."""

    def _find_trainer_ckpt_path(self) -> Path | None:
        log_dir = self.resume_from_directory or AppState().log_dir
        if log_dir is None:
            return None
        folder = Path(log_dir) if self.resume_from_directory else Path(log_dir) / "checkpoints"
        good = good_checkpoints(folder)
        if not good:
            _log.info("%s holds no finished checkpoint: starting from scratch", folder)
            return None
        passed = [d.name for d in folder.iterdir() if d.is_dir() and step_of(d) >= step_of(good[-1]) and d not in good]
        if passed:
            _log.warning("passing over unfinished checkpoints: %s", ", ".join(sorted(passed)))
        _log.info("resuming from %s, after step %d", good[-1], step_of(good[-1]))
        return good[-1]
