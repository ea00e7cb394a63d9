"""The two sides of a comparison: arms in a folder of runs, or two runs or folders of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossscope.landscape.errors import ConfigError

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Sides", "sides"]

_FOLDER: Final = Path("runs")
_MOST_NAMES: Final = 6


@dataclass(frozen=True)
class Sides:
    """The two sides: names of arms among the runs, or the runs of each."""

    a: str | Sequence[Run]
    b: str | Sequence[Run]
    runs: Sequence[Run]
    folder: Path | None  # None where the sides are paths


def sides(a: str, b: str, folder: Path | None) -> Sides:
    """Return the sides that two words name.

    With a folder, both are arms in it. Without one they are paths if both exist, and else arms in `runs`.

    Raises:
        ConfigError: One of them is neither, or a path holds runs of several arms.
        RunError: There is no run, or one cannot be opened.
    """
    from lossscope.landscape.run import open_runs

    if folder is None and Path(a).exists() and Path(b).exists():
        return _of_paths(Path(a), Path(b))
    if folder is None and sum(_is_place(one) for one in (a, b)) == 1:
        place, other = (a, b) if _is_place(a) else (b, a)
        raise ConfigError(f"{other} is no run and no folder of runs, as {place} is; give two of them, or two arms")
    if folder is None and not _FOLDER.is_dir():
        missing = next(one for one in (a, b) if not Path(one).exists())
        raise ConfigError(f"{missing} is no run and no folder of runs; give two paths, or arms with --in DIR")
    folder = folder or _FOLDER
    return Sides(a, b, open_runs(folder), folder)


def _is_place(word: str) -> bool:
    """Return True if a word is the path of a folder, and no name of an arm."""
    return len(Path(word).parts) > 1 and Path(word).is_dir()


def _of_paths(a: Path, b: Path) -> Sides:
    """Return the sides that two paths hold, named by their arms, or by their paths where the arms have one name."""
    from lossscope.landscape.run import open_runs

    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} and {b} are the same place; compare it with another")
    both = [(path, open_runs(path)) for path in (a, b)]
    names = [_arm(path, runs) for path, runs in both]
    if names[0] == names[1]:
        for path, runs in both:
            for run in runs:
                run.manifest["arm"] = path.name  # in memory: two recordings of one arm are two sides here
    (_, of_a), (_, of_b) = both
    return Sides(of_a, of_b, [*of_a, *of_b], None)


def _arm(path: Path, runs: Sequence[Run]) -> str:
    """Return the name of the only arm at a path."""
    found = list(dict.fromkeys(str(run.manifest.get("arm") or run.name) for run in runs))
    if len(found) > 1:
        named = ", ".join(found[:_MOST_NAMES]) + (" …" if len(found) > _MOST_NAMES else "")
        raise ConfigError(f"{path} holds runs of several arms ({named}); compare two of them with --in {path}")
    return found[0]
