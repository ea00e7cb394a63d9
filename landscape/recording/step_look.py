"""What a looked-at step shows, gathered while it is taken and kept until its rows are written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lossscope.landscape.curvature.host_transfer import Row, settled
from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import Seen
from lossscope.landscape.recording.spectrum_rows import finished_spectra, spectrum_rows
from lossscope.landscape.recording.step_rows import injection_angles, step_numbers, tensor_rows
from lossscope.optimizer import StepRecord
from lossscope.probes.sharpness.step_quality import LayerRemainders

__all__ = ["StepLook"]


class StepLook:
    """The numbers of one step, on the device until they are fetched all at once.

    Args:
        names: All trainable parameters.
        cadence: Says what is due.
        overhead: Counts the time of each instrument.
    """

    def __init__(self, names: dict[Tensor, str], cadence: Cadence, overhead: Overhead) -> None:
        self._everything, self._cadence, self._overhead = names.keys(), cadence, overhead
        self._numbers: Row = {}
        self._tensors: list[Row] = []
        self._spectra: list[Row] = []

    def take(
        self, step: int, seen: Sequence[Seen], losses: tuple[Tensor | None, Tensor | None], record: StepRecord | None
    ) -> None:
        """Look at the parameters of a step while it shows them.

        Args:
            step: Its number, from 1.
            seen: Its parameters; nothing is due where there is none.
            losses: Of its first and of its second pass.
            record: What only our own optimizers show.
        """
        if not seen:
            return
        if self._cadence.tensors(step):
            with self._overhead.counted("instruments"):
                self._tensors = tensor_rows(seen)
                self._numbers = step_numbers(seen, losses, self._everything)
            if record is not None and record.uninjected is not None:
                with self._overhead.counted("counterfactual"):
                    whole, angles = injection_angles(seen, record.uninjected())
                    self._numbers["injection_angle"] = whole
                    self._add("injection_angle", angles)
        if self._cadence.spectra(step):
            with self._overhead.counted("spectra"):
                self._spectra = spectrum_rows(seen, record)

    def add_layers(self, found: LayerRemainders) -> None:
        """Take in the remainders of the step's layers."""
        self._numbers["remainder_rounding"] = found.rounding
        self._add("remainder", found.by_name)

    def rows(self, row: Row) -> list[tuple[str, Row]]:
        """Every row of the step with the name of its table, the one of `steps` last; what was gathered is let go.

        Args:
            row: What else the row of `steps` holds; it goes before the same number measured here.
        """
        tensors, spectra, numbers = self._tensors, self._spectra, self._numbers
        self._numbers, self._tensors, self._spectra = {}, [], []
        with self._overhead.counted("instruments"):
            (step_row, *others) = settled([{**numbers, **row}, *tensors, *spectra])
        with self._overhead.counted("spectra"):
            finished = finished_spectra(others[len(tensors) :])
        found = {"tensors": others[: len(tensors)], "spectra": finished, "steps": [step_row]}
        return [(table, one) for table, rows in found.items() for one in rows]

    def _add(self, column: str, by_name: dict[str, Tensor] | dict[str, float]) -> None:
        """Fill a column of the rows of tensors."""
        for row in self._tensors:
            if row["tensor"] in by_name:
                row[column] = by_name[row["tensor"]]
