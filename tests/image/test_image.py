"""The container image, really built: by buildah, without a daemon, on a stand-in for NVIDIA's base.

The base cannot be pulled here. Its stand-in is Debian with this environment's packages as the base's own: like NVIDIA's
it brings Python, torch and NeMo's dependencies, so the Dockerfile's own steps are what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import CannotStart, install

ROOT = Path(__file__).parents[2]
IMAGE, BASE = "localhost/slipway:test", "localhost/nemo-standin:base"
NOT_OF_THE_BASE = ("slipway", "nemo_slipway", "__editable__")

pytestmark = [pytest.mark.image, pytest.mark.slow]


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "docker/Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _from_here() -> list[str]:
    """pip's way to its registry, where this machine has one of its own: mounted while building, never in the image."""
    paths = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pip.conf",
        str(Path.home() / ".config/pip/pip.conf"),
        os.environ.get("PIP_FIND_LINKS", ""),
    ]
    return [f"--volume={p}:{p}:ro" for p in paths if p and Path(p).exists()]


@dataclass
class Builder:
    """buildah with a store of its own."""

    folder: Path

    def run(self, command: str, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        store = [f"--root={self.folder}/store", f"--runroot={self.folder}/run", "--storage-driver=overlay"]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        done = subprocess.run(
            ["buildah", *store, command, *words], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert not ok or done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done

    def inside(
        self, *command: str, user: str = "0", mount: str = "", ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """What the image does when run with ``command``: through its entry point, as any container engine would."""
        container = self.run("from", "--pull-never", IMAGE).stdout.strip()
        try:
            volume = [f"--volume={mount}"] if mount else []
            return self.run(
                "run", f"--user={user}", *volume, container, "--", "/usr/local/bin/slipway-entrypoint", *command, ok=ok
            )
        finally:
            self.run("rm", container)


def _standin(root: Path) -> None:
    """A root with Debian's Python and, as the base's own, everything that is installed here but Slipway."""
    packages = "--include=ca-certificates,python3,python3-pip,git"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True, capture_output=True
    )
    target = root / "usr/local/lib/python3.11/dist-packages"
    target.mkdir(parents=True, exist_ok=True)
    entries = Path(sysconfig.get_paths()["purelib"]).iterdir()
    of_the_base = [str(e) for e in entries if not e.name.startswith(NOT_OF_THE_BASE) and e.name != "pip"]
    # In place of the base's Transformer Engine: here it is installed as a link to the checkout.
    of_the_base.append(str(ROOT / "recipes/reference/stand_ins/transformer_engine"))
    subprocess.run(["cp", "-a", *of_the_base, str(target)], check=True)
    for name in ("nemo", "torchrun"):
        script = (Path(sys.executable).parent / name).read_text()
        (root / "usr/local/bin" / name).write_text("#!/usr/bin/python3\n" + script.split("\n", 1)[1])
        (root / "usr/local/bin" / name).chmod(0o755)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the stand-in base takes this environment's packages into Debian's Python 3.11")
    try:
        install(["buildah", "debootstrap"])
    except CannotStart as reason:
        pytest.skip(f"no image can be built here: {reason}")
    builder = Builder(tmp_path_factory.mktemp("image"))
    scratch = builder.run("from", "scratch").stdout.strip()
    _standin(Path(builder.run("mount", scratch).stdout.strip()))
    # what marks NVIDIA's image; its PYTHONPATH points at the checkouts that the Dockerfile replaces
    builder.run(
        "config", "--env", "NEMO_VERSION=standin", "--env", "PYTHONPATH=/opt/NeMo", "--cmd", "/bin/bash", scratch
    )
    builder.run("commit", "--rm", scratch, BASE)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    arguments = [
        f"--build-arg=BASE_IMAGE={BASE}",
        f"--build-arg=COMMIT={commit}",
        "--network=host",
        "--format=docker",
        "--pull-never",
    ]
    built = builder.run(
        "build", *arguments, *_from_here(), "--layers=false", "--tag", IMAGE, "--file", "docker/Dockerfile", "."
    )
    print(built.stdout[-3000:])
    yield builder
    for word in ("rm", "rmi"):
        builder.run(word, "--all", ok=False)


def test_the_image_holds_the_pair_and_its_doctor_agrees(image: Builder) -> None:
    found = json.loads(image.inside("doctor", "--only", "packages,container", "--json").stdout)
    versions = {f["subject"]: (f["found"], f["good"]) for f in found}
    assert versions["megatron-core"] == ("0.15.3", True)
    assert versions["nemo_toolkit"] == ("2.7.3", True)
    assert versions["torch"][1]
    told = json.loads(image.run("inspect", "--type", "image", IMAGE).stdout)["OCIv1"]["config"]
    assert told["Entrypoint"] == ["/usr/local/bin/slipway-entrypoint"]
    assert told["Labels"]["org.opencontainers.image.revision"] in " ".join(told["Env"])
    assert not [e for e in told["Env"] if "TOKEN" in e or "KEY" in e]
    assert "stand_ins" not in image.inside("ls", "/opt/slipway/recipes/reference").stdout


def test_any_user_checks_and_an_unknown_command_is_not_swallowed(image: Builder) -> None:
    checked = json.loads(
        image.inside("check", "llama3_70b", "gpus=64", "layout.gbs=128", "--json", user="1234:1234").stdout
    )
    assert checked["legal"]
    assert checked["fits"]
    wrong = image.inside("check", "llama4", user="1234:1234", ok=False)
    assert wrong.returncode == 2
    assert "unknown recipe 'llama4'" in wrong.stderr
    assert image.inside("true").returncode == 0


def test_the_image_trains(image: Builder, tmp_path: Path) -> None:
    recipe = "llama3_tiny(dir=/out,name=a,tp=1,num_gpus_per_node=1,mbs=1,gbs=2,max_steps=3)"
    done = image.inside("nemo", "llm", "pretrain", "--factory", recipe, "-y", mount=f"{tmp_path}:/out")
    assert "iteration 2/2" in done.stdout
    assert (tmp_path / "a/slipway/recipe.json").is_file()


def test_the_tests_that_need_no_gpu_pass_inside(image: Builder, tmp_path: Path) -> None:
    for name in ("tests", "README.md", "pyproject.toml", "docs", "Makefile"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    words = "cd /repo && python3 -m pytest -p no:cacheprovider tests/configs tests/planner -m 'not slow and not nemo'"
    done = image.inside("bash", "-c", words, mount=f"{tmp_path}:/repo")
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
