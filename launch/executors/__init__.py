"""Start a run's ranks through NeMo-Run: on this machine, in a container, or on a SLURM cluster.

A cluster's YAML names its executor, and ``backends/NAME.py`` is that executor (see :mod:`.protocol`). ``prepare``
checks a launch, ``submit`` hands it over, ``front_door`` offers every cluster to the ``nemo`` command as
``run.executor=NAME``. The recipe and its executor are made from one Spec, so that they start the same ranks. Importing
this package imports no NeMo-Run.
"""

from slipway.launch.executors.cluster_check import check_cluster
from slipway.launch.executors.packaging import packager
from slipway.launch.executors.protocol import Executor, Launch, Submission
from slipway.launch.executors.rank_environment import environment
from slipway.launch.executors.select import executor_named, for_spec

__all__ = [
    "Executor",
    "Launch",
    "Submission",
    "check_cluster",
    "environment",
    "executor_named",
    "for_spec",
    "packager",
]
