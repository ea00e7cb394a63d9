"""The arrows of the house: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "optimizer": set(),
    "probes": set(),
    "landscape": {"probes", "optimizer"},
    "reports": {"landscape"},
    "cli": {"optimizer", "probes", "landscape", "reports"},
}
LIBRARIES = {
    "optimizer": {"torch"},
    "probes": {"torch", "numpy", "scipy", "pyhessian", "lazy_loader"},
}
# What a laptop with a log alone needs: these modules and all they import, and none of it may load torch.
TORCH_FREE = (
    "__init__",
    "training.config",
    "analysis.density",
    "dynamics",
    "curvature.catalogue",
    "analysis.milestone",
    "recording.overhead",
    "reprobe.result",
    "run",
    "analysis.series",
    "storage.run_store",
)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name in imports(path):
            if name.startswith("lossscope."):
                other = name.split(".")[1]
                assert other == folder or other in MAY_IMPORT[folder], f"{path} imports {name}"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_is_imported_by_its_bare_folder_name(folder: str) -> None:
    for path in [*sources(folder), *sources("tests"), *sources("benchmarks")]:
        assert folder not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("folder", LIBRARIES)
def test_the_leaves_depend_on_few_libraries(folder: str) -> None:
    import sys

    for path in sources(folder):
        tops = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"lossscope"}
        assert tops <= LIBRARIES[folder], f"{path} imports {tops - LIBRARIES[folder]}"


def torch_free() -> set[str]:
    reached: set[str] = set()
    waiting = [f"lossscope.landscape.{stem}" for stem in TORCH_FREE]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        path = (ROOT / Path(*name.split(".")[1:])).with_suffix(".py")
        for other in imports(path, top_level_only=True):
            assert other.split(".")[0] != "torch", f"{path} imports torch"
            if other.startswith("lossscope."):
                assert other.split(".")[1] in ("landscape", "probes"), f"{path} imports {other}"
                waiting += [other] if other not in reached else []
    return reached


def test_reading_a_run_imports_no_torch() -> None:
    assert "lossscope.landscape.storage.schema" in torch_free()


def test_no_module_of_the_probes_has_the_name_of_what_it_gives() -> None:
    # Names are loaded when first asked for: a module of the same name, once imported, would stand in its place.
    import lossscope.probes

    assert not {path.stem for path in (ROOT / "probes").iterdir()} & set(lossscope.probes.__all__)


def test_reports_read_runs_through_the_torch_free_part() -> None:
    free = torch_free() | {"lossscope.landscape"}
    for path in sources("reports"):
        for name in imports(path):
            if name.startswith("lossscope.landscape"):
                assert name in free, f"{path} imports {name}"


def test_no_file_is_called_utils_or_the_like() -> None:
    forbidden = {"utils", "util", "helpers", "common", "misc"}
    assert not [path for folder in MAY_IMPORT for path in sources(folder) if path.stem in forbidden]
