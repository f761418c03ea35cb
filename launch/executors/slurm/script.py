"""The lines of Slipway's own in a job's script, between NeMo-Run's exports and its srun."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from slipway.configs import Spec
from slipway.recipes.runtime.run_files import STOP_AT

_BARE_SRUN = """\
# No container: the same job, in this folder instead of /nemo_run.
srun() {
    local word next= job= words=()
    for word in "$@"; do
        case "$next" in
            mounts) job=${word##*,}; job=${job%:/nemo_run}; next=; continue ;;
            drop) next=; continue ;;
        esac
        case "$word" in
            --container-mounts) next=mounts ;;
            --container-*) next=drop ;;
            /nemo_run/*) words+=("$job/${word#/nemo_run/}") ;;
            *) words+=("$word") ;;
        esac
    done
    command srun --chdir="$job/code" "${words[@]}"
}"""


def setup_lines(spec: Spec) -> str:
    """Shell lines that load secrets, replace srun where there is no container, and set the time to stop."""
    cluster = spec.cluster
    lines = []
    if cluster.secrets_file:
        path = shlex.quote(str(Path(cluster.secrets_file).expanduser()))
        lines.append(f"{{ set +vx; }} 2>/dev/null; set -a; . {path}; set +a; set -vx  # unseen by the log")
    if not cluster.container_image:
        lines += [_BARE_SRUN, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"']
    grace = int(60 * cluster.grace_minutes)
    lines += [
        f"# {grace} s before the time limit the ranks save and stop, and this script asks to be run again.",
        'ends=$(squeue -h -j "$SLURM_JOB_ID" -o %e) && ends=$(date -d "$ends" +%s 2>/dev/null) || ends=',
        f"export {STOP_AT}=${{ends:+$((ends - {grace}))}}",
        *cluster.setup,
    ]
    return "\n".join(lines)
