"""Packaging: contents of the wheel, versions, citation, and environments made by the Makefile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("optimizer", "probes", "landscape", "reports", "cli")
ROOT_FILES = ("__init__.py", "__init__.pyi", "errors.py", "py.typed")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIP = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that a build leaves nothing in the checkout and finds nothing stale there."""
    copy = tmp_path_factory.mktemp("source")
    for folder in (*FOLDERS, "typings", ".ci"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "utils.py").write_text("STRAY = True\n")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "-w", str(out), str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_contains_only_lossscope(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    version = PROJECT["project"]["version"]
    assert {name.split("/")[0] for name in names} == {"lossscope", f"lossscope-{version}.dist-info"}
    for name in ROOT_FILES:
        assert f"lossscope/{name}" in names
    for folder in FOLDERS:
        assert f"lossscope/{folder}/py.typed" in names
        for pattern in ("*.py", "*.pyi", "*.j2", "*.css", "*.js", "*.json"):
            missing = {f"lossscope/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob(pattern)} - names
            assert not missing, f"list the sub-package and its data in pyproject.toml: {sorted(missing)}"
    assert "lossscope/reports/render/page.html.j2" in names
    licenses = [name for name in names if name.endswith("LICENSE") and "/licenses/" in name]
    assert any("uplot" in name for name in licenses), "the plotting library is shipped with its license"
    assert not [name for name in names if "axe.min" in name or "browser" in name]


def test_the_code_of_the_wheel_is_imported_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys, lossscope\nfrom lossscope import LossscopeError, Run\n"
        "print(lossscope.__file__, lossscope.__version__, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    where, version, torch_loaded = done.stdout.split()
    assert Path(where) == tmp_path / "lossscope" / "__init__.py"
    assert version == PROJECT["project"]["version"]
    assert torch_loaded == "False"


@pytest.mark.slow
def test_the_wheel_records_two_steps_in_an_empty_environment(source: Path) -> None:
    done = subprocess.run(
        [str(source / ".ci" / "wheel"), sys.executable], capture_output=True, text=True, check=False, cwd=source
    )
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout  # the help
    (line,) = (line for line in done.stdout.splitlines() if " steps, from " in line)
    assert line.startswith("2 steps, from ")
    assert line.endswith("site-packages/lossscope/__init__.py")
    assert [path.suffix for path in (source / "dist").iterdir()] == [".whl"]


@pytest.mark.slow
def test_a_type_error_in_any_folder_is_found(tmp_path: Path) -> None:
    for name in (*FOLDERS, "typings"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    places = (*FOLDERS, "typings/lossscope")
    for folder in places:
        (tmp_path / folder / "injected.py").write_text('"""Wrong."""\n\nCOUNT: int = "three"\n')
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for folder in places:
        assert f"{folder}/injected.py:3: error: Incompatible types" in done.stdout, done.stdout
    assert f"Found {len(places)} errors" in done.stdout


def test_the_typings_folder_links_to_the_five_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "typings" / "lossscope" / folder
        assert link.is_symlink()
        assert link.resolve() == (ROOT / folder).resolve()


def test_the_citation_and_the_changelog_have_the_version_of_the_project() -> None:
    version = PROJECT["project"]["version"]
    cited = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    newest, date = re.findall(r"^## \[?([\d.]+)\]? - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert cited["cff-version"] == "1.2.0"
    assert (cited["version"], newest) == (version, version)
    assert cited["date-released"] == date
    assert cited["license"] == PROJECT["project"]["license"]


STUB = """#!/bin/sh
# Stands in for a Python and for the environments it makes: answers its version, writes down every call.
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  *print*) echo "$VERSION" ;;
  *"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    echo "version = $VERSION.1" > "$folder/pyvenv.cfg"
    cp "$0" "$folder/bin/python" ;;
esac
"""


class Make:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, version: str) -> tuple[str, list[str]]:
        """Return what `make` printed, and the calls of the stand-ins."""
        log = self.folder / "log"
        log.write_text("")
        path = f"{self.folder / 'path'}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "LOG": str(log), "VERSION": version}
        done = subprocess.run(
            ["make", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, [line for line in log.read_text().splitlines() if "import sys" not in line]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that runs `make` in a folder with stand-ins for `python3` and `python3.12`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "path").mkdir()
    for name in ("python3", "python3.12"):
        (tmp_path / "path" / name).write_text(STUB)
        (tmp_path / "path" / name).chmod(0o755)
    return Make(tmp_path)


def test_make_keeps_an_environment_of_its_own_for_a_python_named_on_its_command_line(make: Make) -> None:
    printed, calls = make("test", version="3.11")
    assert "Python 3.11 in .venv\n" in printed
    assert calls[0] == "python3 -m venv --clear .venv"
    assert calls[-1].startswith("python -m pytest")
    printed, calls = make("test", "PYTHON=python3.12", version="3.12")
    assert "Python 3.12 in .venv-3.12\n" in printed
    assert calls[0] == "python3.12 -m venv --clear .venv-3.12"
    for arguments, version in (((), "3.11"), (("PYTHON=python3.12",), "3.12")):
        printed, calls = make("test", *arguments, version=version)
        assert len(calls) == 1, calls  # both are reused: the tests, and no installation
        assert calls[0].startswith("python -m pytest")


def test_make_replaces_an_environment_of_another_python_and_says_so(make: Make) -> None:
    make("test", version="3.11")
    printed, calls = make("test", version="3.13")
    assert "replacing .venv: it has Python 3.11, and python3 is Python 3.13" in printed
    assert calls[0] == "python3 -m venv --clear .venv"
    assert sum("pip install" in call for call in calls) == 2


def test_make_names_a_python_that_is_not_there(make: Make) -> None:
    done = subprocess.run(
        ["make", "test", "PYTHON=python3.99"], cwd=make.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "python3.99 is not a Python that runs here. Try: make PYTHON=python3.12 test" in done.stdout
