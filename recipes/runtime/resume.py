"""Resume from the last good checkpoint, and say which. Upstream stops at an unfinished one, or starts from scratch in
silence.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nemo import lightning as nl
from nemo.utils.app_state import AppState

from slipway.configs import Refusal
from slipway.configs.errors import exit_on_refusal
from slipway.recipes.runtime.checkpoint_files import Held, held

_log = logging.getLogger("nemo_logger")


def nothing_whole(folder: Path, found: Held) -> Refusal:
    """Why a run does not start from step 0 in a folder that holds checkpoints, of which none can be loaded."""
    name, wrong = next(iter(found.passed_over.items()))
    return Refusal(
        f"no checkpoint of {folder} can be loaded: {name} {wrong}",
        "Restore it or move the folder away; run.resume=false starts from step 0 anyway.",
    )


class Resume(nl.AutoResume):
    """:class:`nemo.lightning.AutoResume` that skips damaged checkpoints and logs what it does."""

    def _find_trainer_ckpt_path(self) -> Path | None:
        log_dir = self.resume_from_directory or AppState().log_dir
        if log_dir is None:
            return None
        folder = Path(log_dir) if self.resume_from_directory else Path(log_dir) / "checkpoints"
        found = held(folder)
        for name, wrong in found.passed_over.items():
            _log.warning("passing over checkpoint %s: it %s", name, wrong)
        if found.newest is None and found.lost:
            with exit_on_refusal():
                raise nothing_whole(folder, found)
        if found.newest is None and self.restore_config:
            _log.info("%s holds no whole checkpoint: starting from the weights of %s", folder, self.restore_config.path)
        elif found.newest is None:
            _log.info("%s holds no whole checkpoint: starting from scratch", folder)
        else:
            _log.info("resuming from %s, after step %d", found.newest, found.step)
        return found.newest
