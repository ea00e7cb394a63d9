"""The arrows of the code: which folder and which room may import which, read from the source."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "optimizer": set(),
    "probes": set(),
    "landscape": {"probes", "optimizer"},
    "reports": {"landscape"},
    "cli": {"optimizer", "probes", "landscape", "reports"},
}
# Inside a folder: what each room, or file beside the rooms, may import. Everything may import `errors`.
ROOMS: dict[str, dict[str, set[str]]] = {
    "optimizer": {
        "update": set(),
        "ascent": {"update"},
        "estimates": {"ascent", "update"},
        "records": {"ascent", "update"},
        "hyperparameters": {"ascent", "update"},
        "base": {"hyperparameters", "records", "estimates", "ascent", "update"},
        "ars2_neo": {"base", "hyperparameters", "records", "ascent", "update"},
        "rule_optimizer": {"base", "hyperparameters", "records", "ascent", "update"},
        "rho_schedule": {"base"},
        "registry": {"ars2_neo", "rule_optimizer", "rho_schedule", "base", "hyperparameters", "ascent", "update"},
        "reference": set(),
    },
    "probes": {
        "sums": set(),
        "objective": set(),
        "statistics": set(),
        "operators": {"objective", "sums"},
        "gauge": {"objective", "operators", "sums"},
        "eigenvalues": {"operators", "statistics", "sums"},
        "sharpness": {"eigenvalues", "gauge", "operators", "objective", "statistics", "sums"},
        "budget": {"eigenvalues", "operators", "objective", "sums"},
        "dynamics": {"statistics"},
        "step_tensors": {"dynamics", "statistics", "sums"},
        "selfcheck": {
            "sharpness",
            "gauge",
            "eigenvalues",
            "operators",
            "objective",
            "step_tensors",
            "dynamics",
            "statistics",
        },
    },
    "landscape": {
        "storage": set(),
        "run": {"storage"},
        "analysis": {"run", "storage"},
        "measures": {"storage"},
        "recording": {"measures", "storage"},
        "training": {"recording", "measures", "storage", "run"},
        "reprobe": {"training", "recording", "measures", "storage", "run"},
        "integrations": {"recording", "measures", "storage", "run"},
        "unrecorded": {"reprobe", "training", "recording", "measures", "storage"},
        "surfaces": {"reprobe", "recording", "analysis", "storage", "run"},
        "export": {"verdicts", "analysis", "run", "storage"},
        "verdicts": {"analysis", "run", "storage"},
        "experiments": {"verdicts", "training", "recording", "analysis", "measures", "storage", "run"},
    },
    "reports": {
        "figure_content": set(),
        "content": {"figure_content"},
        "shared": {"content", "figure_content"},
        "first_screen": {"shared", "content", "figure_content"},
        "render": {"shared", "content", "figure_content"},
        "sharpness": {"first_screen", "shared", "content", "figure_content"},
        "entropy": {"first_screen", "shared", "content", "figure_content"},
        "flatness": {"first_screen", "shared", "content", "figure_content"},
        "dynamics": {"first_screen", "shared", "content", "figure_content"},
        "overview": {"first_screen", "shared", "content", "figure_content"},
        "listings": {"shared", "content", "figure_content"},
        "surfaces": {"shared", "content", "figure_content"},
        "difference": {"shared", "content", "figure_content"},
        "comparison": {"shared", "content", "figure_content"},
        "serving": {
            *("overview", "sharpness", "entropy", "flatness", "dynamics"),
            *("listings", "render", "first_screen", "shared", "content"),
        },
    },
}
# The only imports against these arrows, by file. They stand inside a function, so the file loads without the room above
# it: a run is read without torch, and rebuilt with it.
LATE = {
    "landscape/run.py": {"lossscope.landscape.reprobe.rebuilt_run"},
    "reports/content.py": {"lossscope.reports.render.notebook"},  # what a notebook shows of a report
}
LIBRARIES = {
    "optimizer": {"torch"},
    "probes": {"torch", "numpy", "scipy", "lazy_loader"},
}
# Rooms and files that a laptop with a log alone needs: none of them, nor what they import, may load torch.
TORCH_FREE = (
    "landscape/__init__.py",
    "landscape/analysis",
    "landscape/measures/catalogue.py",
    "landscape/measures/precision.py",
    "landscape/measures/spectrum_columns.py",
    "landscape/recording/overhead.py",
    "landscape/reprobe/result.py",
    "landscape/run.py",
    "landscape/storage",
    "landscape/surfaces/diff.py",
    "landscape/surfaces/difference.py",
    "landscape/surfaces/pictures.py",
    "landscape/surfaces/sides.py",
    "landscape/training/config.py",
    "landscape/unrecorded/measure.py",
    "landscape/verdicts",
    "probes/dynamics",
    "probes/statistics",
    "probes/step_tensors/matrix_spectrum.py",
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    """Return the modules that a file imports by name, those imported inside functions included."""
    nodes = tree(path).body if top_level_only else list(ast.walk(tree(path)))
    found = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{a.name}" if source(f"{module}.{a.name}") else module for a in node.names}
    return frozenset(found)


def source(name: str, root: Path = ROOT) -> Path | None:
    """Return the file of a module of ours; None where there is none."""
    parts = name.split(".")
    if parts[0] != "lossscope" or len(parts) < 2:
        return None
    base = root.joinpath(*parts[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def sources(place: str, root: Path = ROOT) -> list[Path]:
    path = root / place
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def late(path: Path, root: Path = ROOT) -> set[str]:
    """Return the modules that a file may import inside its functions, against the arrows."""
    return LATE.get(path.relative_to(root).as_posix(), set())


def wrong_arrows(folder: str, root: Path = ROOT) -> list[str]:
    """Return each import between two rooms of a folder that the table does not allow."""
    rooms, found = ROOMS[folder], []
    for path in sources(folder, root):
        here = path.relative_to(root / folder).parts[0].removesuffix(".py")
        for name in imports(path) - late(path, root):
            parts = name.split(".")
            if parts[:2] != ["lossscope", folder] or len(parts) < 3 or here == "__init__":
                continue
            assert here in rooms or here == "errors", f"{path}: room {here!r} has no row in ROOMS"
            if parts[2] not in {here, "errors", *rooms.get(here, set())}:
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name in imports(path):
            if name.startswith("lossscope."):
                other = name.split(".")[1]
                assert other in {folder, "errors", *MAY_IMPORT[folder]}, f"{path} imports {name}"


@pytest.mark.parametrize("folder", ROOMS)
def test_arrows_between_rooms_point_one_way(folder: str) -> None:
    assert not wrong_arrows(folder)


def circle(graph: dict[Any, set[Any]]) -> list[Any]:
    """Return nodes each of which leads to the next and the last to the first; none if the graph has no circle."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("folder", ROOMS)
def test_the_table_of_rooms_has_every_room_and_no_circle(folder: str) -> None:
    present = {path.relative_to(ROOT / folder).parts[0].removesuffix(".py") for path in sources(folder)}
    assert set(ROOMS[folder]) == present - {"__init__", "errors"}
    assert not circle(ROOMS[folder])


def test_a_planted_wrong_arrow_is_found(tmp_path: Path) -> None:
    for name, line in {
        "probes/objective/planted.py": "from lossscope.probes.operators.base import SymmetricOperator\n",
        "reports/entropy/planted.py": "def late():\n    from lossscope.reports.flatness.report import flatness\n",
        "landscape/storage/planted.py": "from lossscope.landscape.run import Run\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(line)
    assert len([*wrong_arrows("probes", tmp_path), *wrong_arrows("reports", tmp_path)]) == 2
    assert wrong_arrows("landscape", tmp_path) == ["landscape/storage/planted.py imports lossscope.landscape.run"]


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {path: imports(path) - late(path) for folder in MAY_IMPORT for path in sources(folder)}
    graph = {path: {at for name in names if (at := source(name)) and at != path} for path, names in modules.items()}
    packages = {path for path in graph if path.name == "__init__.py"}
    graph = {path: below - packages for path, below in graph.items() if path not in packages}
    assert not circle(graph)


@pytest.mark.parametrize("place", LATE)
def test_an_import_against_the_arrows_stands_inside_a_function_and_is_needed(place: str) -> None:
    path = ROOT / place
    assert LATE[place] <= imports(path)
    assert not LATE[place] & imports(path, top_level_only=True)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_is_imported_by_its_bare_folder_name(folder: str) -> None:
    for path in [*sources(folder), *sources("tests"), *sources("benchmarks")]:
        assert folder not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("folder", LIBRARIES)
def test_the_leaves_depend_on_few_libraries(folder: str) -> None:
    for path in sources(folder):
        tops = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"lossscope"}
        assert tops <= LIBRARIES[folder], f"{path} imports {tops - LIBRARIES[folder]}"


def torch_free() -> set[Path]:
    """Return the torch-free files and all that they import at the top; fail where one of them imports torch."""
    waiting = [path for place in TORCH_FREE for path in sources(place)]
    assert waiting
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        reached.add(path)
        for name in imports(path, top_level_only=True):
            assert name.split(".")[0] != "torch", f"{path} imports torch"
            below = source(name)
            waiting += [below] if below is not None and below not in reached else []
    return reached


def test_the_rooms_that_read_logs_import_no_torch() -> None:
    assert ROOT / "landscape" / "storage" / "schema.py" in torch_free()


def test_reports_read_runs_through_the_torch_free_part() -> None:
    free = torch_free()
    for path in sources("reports"):
        for name in imports(path):
            if name.startswith("lossscope.landscape"):
                assert source(name) in free, f"{path} imports {name}"


def test_no_file_is_called_utils_or_the_like() -> None:
    forbidden = {"utils", "util", "helpers", "common", "misc"}
    assert not [path for folder in MAY_IMPORT for path in sources(folder) if path.stem in forbidden]


def test_every_folder_of_modules_is_a_package_that_is_installed() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for folder in MAY_IMPORT for path in sources(folder)}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
    assert {f"lossscope.{'.'.join(folder.parts)}" for folder in folders} <= listed
