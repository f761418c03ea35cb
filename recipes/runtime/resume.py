"""Resume from the last good checkpoint, and say which. Upstream stops at an unfinished one, or starts from scratch in
silence.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nemo import lightning as nl
from nemo.utils.app_state import AppState

from slipway.configs.errors import exit_on_refusal
from slipway.recipes.runtime.checkpoint_files import held, nothing_whole

_log = logging.getLogger("nemo_logger")


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

    def _get_base_model_path_for_adapter(self, adapter_meta_path: Path, model: Any) -> Path:
        """The base that the recipe names: an adapter's checkpoint holds the path that it had when it was saved."""
        if self.restore_config:
            return Path(self.restore_config.path)
        return Path(super()._get_base_model_path_for_adapter(adapter_meta_path, model))
