"""What is installed: the wheel holds the five folders under one name, and works on its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOT_FILES = ("__init__.py", "__init__.pyi", "errors.py", "py.typed")
FOLDERS = ("optimizer", "probes", "landscape", "reports", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy, so that building leaves nothing in the checkout and finds nothing stale there.
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    root = source / "typings" / "lossscope"
    root.mkdir(parents=True)
    for name in ROOT_FILES:
        shutil.copy(ROOT / "typings" / "lossscope" / name, root / name)
    (source / "utils.py").write_text("STRAY = True\n")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_contains_only_lossscope(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lossscope", f"lossscope-{wheel.name.split('-')[1]}.dist-info"}
    for folder in FOLDERS:
        assert f"lossscope/{folder}/py.typed" in names
        for path in (ROOT / folder).rglob("*.py"):
            assert f"lossscope/{path.relative_to(ROOT)}" in names
    assert "lossscope/reports/render/page.html.j2" in names
    assert {f"lossscope/{name}" for name in ROOT_FILES} <= set(names)


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    command = [str(tmp_path / "env" / "bin" / "lossscope"), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "demo" in done.stdout
    code = "import lossscope.optimizer as o; print(o.__file__)"
    where = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "site-packages/lossscope/optimizer" in where.stdout


@pytest.mark.slow
def test_a_type_error_in_any_folder_is_found(tmp_path: Path) -> None:
    for name in (*FOLDERS, "typings"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for folder in FOLDERS:
        (tmp_path / folder / "injected.py").write_text('"""Wrong."""\n\nCOUNT: int = "three"\n')
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for folder in FOLDERS:
        assert f"{folder}/injected.py:3: error: Incompatible types" in done.stdout, done.stdout
    assert f"Found {len(FOLDERS)} errors" in done.stdout


def test_the_typings_folder_links_to_the_five_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "typings" / "lossscope" / folder
        assert link.is_symlink()
        assert link.resolve() == (ROOT / folder).resolve()
