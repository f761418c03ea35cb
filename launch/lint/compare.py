"""The same files at an earlier revision of their repository: what is new, slower, or silently another pipeline."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch.lint.judge import Problem, Run

SLOWER = 0.06  # of the tokens per second: what a prediction is used to decide, and above its noise between two runs


@contextlib.contextmanager
def at_revision(revision: str, paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """The folders of ``paths`` as they were at a revision: the repository's root, and a folder with its content.

    Raises:
        Refusal: no repository, or no such revision.
    """
    start = paths[0] if paths[0].is_dir() else paths[0].parent
    root = Path(_git(start, "rev-parse", "--show-toplevel").decode().strip())
    commit = _git(start, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    folders = {str(_inside(path if path.is_dir() else path.parent, root)) for path in paths}
    known = [folder for folder in sorted(folders) if _is_there(root, commit, folder)]
    with tempfile.TemporaryDirectory(prefix="slipway-lint-") as folder:
        if known:
            content = _git(root, "archive", commit, "--", *known)
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="data")
        yield root, Path(folder)


def _is_there(root: Path, commit: str, folder: str) -> bool:
    return folder == "." or bool(_git(root, "ls-tree", "-d", commit, "--", folder))


def _inside(path: Path, root: Path) -> Path:
    try:
        return path.resolve().relative_to(root.resolve())
    except ValueError:
        raise Refusal(f"{path} is not in the repository {root}", "Give paths of one repository.") from None


def _git(where: Path, *words: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(where), *words], check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise Refusal("git is not installed", "Install it, or leave out --against.") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        what = said[-1] if said else f"git {words[0]} fails"
        raise Refusal(
            f"--against: {what} ({' '.join(words[-1:])})", "Give a revision that is in this checkout."
        ) from None


def compared(now: Sequence[Run], before: Sequence[Run]) -> list[Problem]:
    """The problems of ``now``, those that were there before as not new, with what got slower or another pipeline."""
    old = {(run.path, run.gpu): run for run in before}
    keys = {problem.key for run in before for problem in run.problems}
    out = []
    for run in now:
        out += [replace(problem, new=problem.key not in keys) for problem in run.problems]
        if was := old.get((run.path, run.gpu)):
            out += _changes(run, was)
    return out


def _changes(run: Run, was: Run) -> Iterator[Problem]:
    if run.tokens_per_s and was.tokens_per_s and run.tokens_per_s < was.tokens_per_s * (1 - SLOWER):
        lost, rates = 1 - run.tokens_per_s / was.tokens_per_s, f"{was.tokens_per_s:,.0f} to {run.tokens_per_s:,.0f}"
        yield Problem(run.path, run.gpu, "slower", f"predicted tokens/s per GPU fall by {lost:.0%}, from {rates}")
    if run.vpp and was.vpp and run.vpp != was.vpp and run.chunks_said == was.chunks_said:
        by = ", ".join(run.chunks_said) or "nothing"
        yield Problem(
            run.path, run.gpu, "silent-vpp",
            f"VPP is {run.vpp} and was {was.vpp}, and what sets it is the same: {by}. Set it again",
        )  # fmt: skip
