"""Whether this process runs in a container, and on which base."""

from __future__ import annotations

from pathlib import Path

import yaml

from slipway.configs import Spec
from slipway.configs.load import ROOT
from slipway.launch.doctor.finding import Finding
from slipway.launch.doctor.installed import nvidia_image

POSITION = 50
MARKS = ("/.dockerenv", "/run/.containerenv")  # files that Docker and Podman put into every container


def findings(spec: Spec | None) -> list[Finding]:
    base = yaml.safe_load((ROOT / "supported.yaml").read_text())["base_image"]
    if nvidia_image():
        return [Finding("container", f"NVIDIA's, {nvidia_image()}", f"an image on {base}", True)]
    if any(Path(mark).exists() for mark in MARKS):
        return [Finding("container", "yes", f"an image on {base}", True)]
    return [Finding("container", "none", f"on a GPU machine: an image on {base}", True)]
