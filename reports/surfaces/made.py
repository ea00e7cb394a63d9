"""Provenance of a picture: loss, data, version and command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lossscope.reports.content import Column, Table

__all__ = ["Made"]


@dataclass(frozen=True)
class Made:
    """Origin of a report of surfaces."""

    version: str  # of lossscope
    command: str  # that makes it again
    data: str  # hash of the data of the loss
    samples: str  # number of terms of the loss
    unit: str = ""  # of the loss
    notes: tuple[str, ...] = ()

    def table(self, facts: Mapping[str, str]) -> Table:
        """Return the table of provenance.

        Args:
            facts: Further items with their values.
        """
        columns = (Column("item", "item", words=True), Column("value", "value", words=True))
        known = {
            **facts,
            "loss": f"mean over {self.samples} samples, data {self.data[:12]}",
            "lossscope": self.version,
            "command": self.command,
        }
        return Table("provenance", "Provenance", columns, tuple(known.items()))
