"""One importable package: from a wheel, an editable install and a job's code, beside packages of any name.

The four folders of the checkout have names that other projects use too. In each test foreign packages of those names
lie in the working directory, which ``python -m``, torchrun and NeMo-Run's runner all put first on the path; importing
one ends the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "planner", "recipes", "launch")
DISTRIBUTION = "nemo_slipway"
GIT = ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org"]
WHERE = """
import slipway, slipway.configs, slipway.launch
for module in slipway, slipway.configs, slipway.launch:
    print(module.__file__)
"""


def _tracked() -> list[str]:
    """Files of the working tree that git tracks or would track."""
    words = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_symlink() or (ROOT / name).is_file()]


def _copy_of_the_checkout(folder: Path) -> Path:
    """Builds happen in a copy: setuptools writes into the folder that it builds from."""
    for name in _tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds Slipway and sees the packages of this one, but not this one's Slipway."""

    folder: Path

    @classmethod
    def with_installed(cls, folder: Path, *what: str) -> Environment:
        venv.create(folder, with_pip=False)
        made = cls(folder)
        # A path in a .pth file is put on sys.path, and the .pth files that lie there are not read: the finder of this
        # environment's own editable install stays out.
        (made.packages / "of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(made.python), "install", "-q"]
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", *what], check=True)
        return made

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python3.*/site-packages"))

    def run(self, *words: str, cwd: Path, path: Path | None = None, ok: bool = True) -> str:
        """What a command prints, started in ``cwd`` with ``path`` (default: ``cwd``) as PYTHONPATH."""
        environment = os.environ | {"PYTHONPATH": str(path or cwd)}
        environment.pop("PYTHONSAFEPATH", None)
        environment["PATH"] = f"{self.folder / 'bin'}:{environment['PATH']}"
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        return done.stdout


STAND_INS = "recipes/reference/stand_ins/"  # a package of their own, for CPU ranks in a checkout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = _copy_of_the_checkout(folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.with_installed(tmp_path_factory.mktemp("installed"), str(wheel))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Somebody's project: packages that bear the names of our folders and must not be imported."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the foreign package {name} was imported')\n")
    return tmp_path


def test_the_wheel_holds_every_file_under_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith(f"{DISTRIBUTION}-")}
    ours = {name for name in _tracked() if not name.startswith(STAND_INS)}
    expected = {f"slipway/{name}" for name in ours if name.split("/")[0] in FOLDERS}
    expected |= {"slipway/__init__.py", "slipway/py.typed", "slipway/lock.txt"}
    assert names - metadata == expected
    assert any(name.endswith("/entry_points.txt") for name in metadata)


def test_an_installed_wheel_answers_as_the_checkout_does(installed: Environment, foreign: Path) -> None:
    where = installed.run("python", "-c", WHERE, cwd=foreign).split()
    assert all(path.startswith(str(installed.packages / "slipway")) for path in where), where
    check = ["check", "llama3_8b", "gpus=8", "--json"]
    of_the_checkout = [sys.executable, "-m", "slipway.launch.cli", *check]
    expected = subprocess.run(of_the_checkout, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert installed.run("slipway", *check, cwd=foreign) == expected
    assert installed.run("python", "-m", "slipway.launch.cli", *check, cwd=foreign) == expected
    assert "llama3_8b" in installed.run("slipway", "list", cwd=foreign)


def test_an_installed_wheel_knows_the_lock_that_it_was_built_with(installed: Environment, foreign: Path) -> None:
    """Its hash is part of every run's record; without the file, the record says why it has none."""
    ask = "from slipway.recipes.runtime import source; import json; print(json.dumps(source.source()))"
    recorded = json.loads(installed.run("python", "-c", ask, cwd=foreign))
    assert recorded["lock_sha256"] == hashlib.sha256((ROOT / "requirements/lock.txt").read_bytes()).hexdigest()
    assert recorded["commit"] == "unknown: this is no git repository, and SLIPWAY_COMMIT is not set"
    without = ask.replace("; import json", "; source.LOCK = source.LOCK.with_name('gone.txt'); import json")
    recorded = json.loads(installed.run("python", "-c", without, cwd=foreign))
    assert recorded["lock_sha256"].startswith("unknown: there is no ")
    printed = installed.run("slipway", "doctor", "--only", "packages", "--json", cwd=foreign, ok=False)
    fix = next(finding["fix"] for finding in json.loads(printed) if finding["subject"] == "torch")
    assert Path(fix.split()[3]).is_file(), "the doctor's command names a file that this installation has"


@pytest.mark.slow
def test_an_installed_wheel_is_typed(installed: Environment, foreign: Path) -> None:
    """mypy reads the signatures of the installed package: it knows a result's type and rejects a wrong argument."""
    (foreign / "client.py").write_text(
        "from slipway.configs.errors import Refusal\nreveal_type(Refusal('x').sentence())\nRefusal(1)\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(installed.python), "--follow-imports=silent"]
    printed = installed.run(*mypy, "--cache-dir", str(foreign / "cache"), "client.py", cwd=foreign, ok=False)
    assert 'Revealed type is "builtins.str"' in printed
    assert "client.py:3: error: Argument 1" in printed
    assert "Found 1 error" in printed


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "strict"])
def test_an_editable_install_follows_its_checkout(
    mode: str, foreign: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("editable")
    source = _copy_of_the_checkout(folder / "source")
    options = [f"--config-settings=editable_mode={mode}"] if mode else []
    environment = Environment.with_installed(folder / "environment", "-e", str(source), *options)
    assert "llama3_8b" in environment.run("slipway", "list", cwd=foreign)
    with (source / "planner/__init__.py").open("a") as f:
        f.write("\nEDITED = 1\n")
    edited = "import slipway.planner as p, os; print(p.EDITED, os.path.realpath(p.__file__))"
    assert environment.run("python", "-c", edited, cwd=foreign).split() == ["1", str(source / "planner/__init__.py")]
    for name in FOLDERS:
        find = f"import importlib.util; print(importlib.util.find_spec('{name}'))"
        assert environment.run("python", "-c", find, cwd=folder).strip() == "None", f"{name} is importable by itself"


PACKAGE = """
import sys
import nemo_run as run
from slipway.launch.executors import packager
executor = run.SlurmExecutor(account="a", tunnel=run.LocalTunnel(job_dir=""), packager=packager())
executor.assign("experiment", sys.argv[1], "task", "job")
executor.package(executor.packager, "task")
print(executor.job_dir)
"""


def _shipped(environment: Environment, repository: Path, folder: Path) -> Path:
    """The working directory of a job launched from ``repository``: NeMo-Run's own packing and extraction."""
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as tested"]):
        subprocess.run([*GIT, *words], cwd=repository, check=True)
    (folder / "job").mkdir(parents=True)
    job = environment.run("python", "-c", PACKAGE, str(folder), cwd=repository).split()[-1]
    return Path(job) / "code"


@pytest.mark.nemo
def test_a_job_launched_from_a_checkout_imports_the_code_that_was_shipped(
    installed: Environment, foreign: Path, tmp_path: Path
) -> None:
    """Not the installed package, although that is there too; from ``python -m`` as from torchrun's ranks."""
    repository = _copy_of_the_checkout(tmp_path / "checkout")
    (repository / "where.py").write_text(WHERE)
    code = _shipped(installed, repository, tmp_path / "experiment")
    assert all((code / "slipway" / name).is_symlink() for name in FOLDERS)
    expected = [str(code / f"slipway/{name}__init__.py") for name in ("", "configs/", "launch/")]
    assert installed.run("python", "-m", "where", cwd=code, path=foreign).split() == expected
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc-per-node=1", "-m", "where"]
    assert installed.run(*torchrun, cwd=code, path=foreign).split() == expected
    checked = installed.run(
        "python", "-m", "slipway.launch.cli", "check", "llama3_8b", "--json", cwd=code, path=foreign
    )
    assert json.loads(checked)["legal"]


@pytest.mark.nemo
def test_a_job_launched_from_another_project_imports_the_installed_package(
    installed: Environment, foreign: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (foreign / "where.py").write_text(WHERE)
    code = _shipped(installed, foreign, tmp_path_factory.mktemp("job") / "experiment")
    assert (code / "configs/__init__.py").is_file()
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc-per-node=1", "-m", "where"]
    for words in (["python", "-m", "where"], torchrun):
        found = installed.run(*words, cwd=code).split()
        assert len(found) == 3
        assert all(path.startswith(str(installed.packages / "slipway")) for path in found), found


@pytest.mark.nemo
def test_recipes_load_beside_foreign_packages(installed: Environment, foreign: Path) -> None:
    """As the ``nemo`` command loads them, through the entry points."""
    ask = "import slipway.recipes.llama3 as m; print(m.llama3_8b.__name__, m.__file__)"
    name, path = installed.run("python", "-c", ask, cwd=foreign).split()[-2:]
    assert name == "llama3_8b"
    assert path.startswith(str(installed.packages))
    load = (
        "from importlib.metadata import entry_points\n"
        "found = {e.name: e.load().__name__ for e in entry_points(group='nemo_run.cli') if 'slipway' in e.name}\n"
        "print(sorted(found.values()))"
    )
    assert "['slipway.launch.registry', 'slipway.recipes.registry']" in installed.run("python", "-c", load, cwd=foreign)
