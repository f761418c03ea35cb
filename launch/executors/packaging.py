"""The code that a job runs: the committed code of the repository around the current folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slipway.recipes.runtime.source import repository

if TYPE_CHECKING:
    import nemo_run as run


def packager(*, check: bool = True) -> run.Packager:
    """NeMo-Run's packager of the repository around this folder; without a repository, one that packs nothing.

    NeMo-Run extracts the archive into the job's working directory, which Python puts first on the path of every rank. A
    job launched from a checkout of Slipway therefore imports the commit's code, and any other job the installed
    package.

    Args:
        check: refuse uncommitted changes; NeMo-Run's default leaves them out silently.
    """
    import nemo_run as run

    root = repository()
    return run.GitArchivePackager(basepath=str(root), check_uncommitted_changes=check) if root else run.Packager()
