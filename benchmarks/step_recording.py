"""Cost of each of the recorder's instruments on training steps of modadd-113."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from step_timing import Arm, medians
from step_training import Training

from lossscope.landscape.recording.overhead import INSTRUMENTS
from lossscope.landscape.recording.recorder import Recorder
from lossscope.probes import CrossEntropy, Objective

KINDS = {kind: words for kind, words in INSTRUMENTS.items() if kind not in ("curvature", "checkpoints")}


def recorded(name: str, preset: str, folder: Path) -> tuple[Arm, Recorder]:
    """Return a recorded training without curvature evaluations, which have their own budget."""
    training = Training.of(name)
    fixed = Objective(training.model, CrossEntropy(), training.batches[:1])
    pairs = Objective(training.model, CrossEntropy(), training.batches[1:5])
    recorder = Recorder(
        folder / preset, training.model, training.optimizer, fixed, preset, minibatches=pairs, evaluations=0
    )
    return Arm(preset, lambda: recorder.step(training.step())), recorder


def recording_table(name: str, presets: Sequence[str], *, rounds: int, repeats: int) -> str:
    """Return a markdown table with one row per preset: total cost from interleaved rounds, and each instrument's share.

    Args:
        name: A registered optimizer.
        presets: Presets of the recorder.
        rounds: Number of timed rounds.
        repeats: Steps per round; a multiple of every preset's periods.
    """
    with TemporaryDirectory() as folder:
        return _table(name, presets, Path(folder), rounds, repeats)


def _table(name: str, presets: Sequence[str], folder: Path, rounds: int, repeats: int) -> str:
    """Return the table, with the runs written to a folder."""
    plain = Training.of(name)
    arms = [recorded(name, preset, folder) for preset in presets]
    times = medians([Arm("not recorded", plain.step), *(arm for arm, _ in arms)], rounds, repeats)
    lines = [f"| preset | ms a step | / not recorded | {' | '.join(f'{words}, % of it' for words in KINDS.values())} |"]
    lines += ["|---" * (3 + len(KINDS)) + "|", f"| not recorded | {1e3 * times[0]:.3f} | 1.00 |" + " - |" * len(KINDS)]
    for (arm, recorder), seconds in zip(arms, times[1:], strict=True):
        spent, steps = recorder.overhead, recorder.steps
        shares = [100 * spent[f"{kind}_seconds"] / steps / times[0] for kind in KINDS]
        cells = " | ".join(f"{share:.1f}" for share in shares)
        lines.append(f"| {arm.label} | {1e3 * seconds:.3f} | {seconds / times[0]:.2f} | {cells} |")
        recorder.close(quiet=True)
    return "\n".join(lines)
