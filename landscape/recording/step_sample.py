"""Sample of one step: the numbers of all its parameters, kept on the device until they are copied at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lossscope.landscape.measures.host_transfer import Row, to_host
from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot, StepSnapshot
from lossscope.landscape.recording.spectrum_rows import finished_spectra, spectrum_rows
from lossscope.landscape.recording.step_rows import (
    injection_angles,
    joined_numbers,
    second_gradient,
    step_numbers,
    tensor_rows,
)
from lossscope.probes.sharpness.step_quality import LayerRemainders

__all__ = ["StepSample"]

_Measure = Callable[[Sequence[ParameterSnapshot]], list[Row]]


class StepSample:
    """The numbers of one sampled step, kept on the device until `rows` copies all of them to the host.

    What cannot be measured of a parameter is missing for this parameter alone.

    Args:
        cadence: The recording schedule.
        overhead: Accumulates the time of each instrument.
        faults: Collects what cannot be measured.
    """

    def __init__(self, cadence: Cadence, overhead: Overhead, faults: Faults) -> None:
        self._cadence, self._overhead, self._faults = cadence, overhead, faults
        self._numbers: list[Row] = []  # of each optimizer
        self._shared: Row = {}
        self._tensors: list[Row] = []
        self._spectra: list[Row] = []
        self._without_spectrum: set[str] = set()
        self.start: dict[str, Tensor] = {}  # matrices before the first step of the run by name, on the host

    def clear(self) -> None:
        """Forget the numbers of a step that was not written."""
        self._numbers, self._shared, self._tensors, self._spectra = [], {}, [], []

    def take(
        self,
        step: int,
        snapshot: StepSnapshot,
        parameters: Sequence[Tensor],
        settings: Mapping[str, Row],
    ) -> None:
        """Measure whatever is due of the parameters of one optimizer.

        Args:
            step: Number of the step, from 1.
            snapshot: The step; if it has no parameters, nothing is measured.
            parameters: All recorded parameters, also those without a gradient in this step.
            settings: Columns of `tensors` of each parameter by name.
        """
        snapshots, record = snapshot.parameters, snapshot.record
        if not snapshots:
            return
        if self._cadence.tensors(step):
            with self._overhead.counted("instruments"):
                found = self._measured("tensors", step, tensor_rows, snapshots)
                self._tensors += [{**row, **settings.get(row["tensor"], {})} for row in found]
                with self._faults.guarded("norms", step):
                    numbers = step_numbers(snapshots, snapshot.losses, parameters)
                    if snapshot.second:
                        numbers |= second_gradient(*zip(*snapshot.second.values(), strict=True))
                    self._numbers.append(numbers)
            if record is not None and record.uninjected is not None:
                with self._overhead.counted("counterfactual"), self._faults.guarded("counterfactual", step):
                    whole, angles = injection_angles(snapshots, record.uninjected())
                    self._shared["injection_angle"] = whole
                    self._add("injection_angle", angles)
        if self._cadence.spectra(step):
            with self._overhead.counted("spectra"):
                self._note_without_spectrum(step, snapshots)
                if step == 1:
                    self.start |= {
                        one.name: one.before.cpu() for one in snapshots if one.track == "matrix" and not one.no_spectrum
                    }
                self._spectra += self._measured(
                    "spectra", step, lambda some: spectrum_rows(some, record, self.start), snapshots
                )

    def add_layers(self, found: LayerRemainders) -> None:
        """Add the Taylor remainders of the layers to the rows of the step."""
        self._shared["remainder_rounding"] = found.rounding
        self._add("remainder", found.by_name)

    def rows(self, step: int, row: Row) -> list[tuple[str, Row]]:
        """Return the rows of the step, each with the name of its table, `steps` last, and reset the sample.

        Args:
            step: Number of the step.
            row: Further columns of the row of `steps`; they take precedence over numbers measured here.
        """
        tensors, spectra, numbers, shared = self._tensors, self._spectra, self._numbers, self._shared
        self.clear()
        plain = {key: value for key, value in row.items() if not isinstance(value, Tensor)}
        found: dict[str, list[Row]] = {"tensors": [], "spectra": [], "steps": [plain]}
        others: list[Row] = []
        with self._overhead.counted("instruments"), self._faults.guarded("rows", step):
            joined = numbers[0] if len(numbers) == 1 else joined_numbers(numbers)
            (step_row, *others) = to_host([{**joined, **shared, **row}, *tensors, *spectra])
            found["steps"], found["tensors"] = [step_row], others[: len(tensors)]
        with self._overhead.counted("spectra"), self._faults.guarded("spectra", step):
            found["spectra"] = finished_spectra(others[len(tensors) :])
        return [(table, one) for table, rows in found.items() for one in rows]

    def _measured(
        self, instrument: str, step: int, measure: _Measure, snapshots: Sequence[ParameterSnapshot]
    ) -> list[Row]:
        """Return the rows of all parameters; if they fail together, those of each that can be measured alone."""
        if len(snapshots) > 1:
            try:
                return measure(snapshots)
            except Exception:
                return [row for one in snapshots for row in self._measured(instrument, step, measure, [one])]
        found: list[Row] = []
        with self._faults.guarded(instrument, step, [one.name for one in snapshots]):
            found = measure(snapshots)
        return found

    def _note_without_spectrum(self, step: int, snapshots: Sequence[ParameterSnapshot]) -> None:
        """Note, once for each parameter, that it has no singular values."""
        for one in snapshots:
            if one.no_spectrum and one.name not in self._without_spectrum:
                self._without_spectrum.add(one.name)
                self._faults.note("spectra", step, f"{one.no_spectrum} (here and at all later steps)", [one.name])

    def _add(self, column: str, by_name: Mapping[str, Tensor | float]) -> None:
        """Set a column of the rows of `tensors`."""
        for row in self._tensors:
            if row["tensor"] in by_name:
                row[column] = by_name[row["tensor"]]
