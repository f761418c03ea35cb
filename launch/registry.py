"""The ``nemo_run.cli`` entry point of the executors: ``run.executor=NAME`` for every cluster."""

from __future__ import annotations

from slipway.launch.executors.front_door import register

register()
