"""Measure groups: measures that share one computation, declared by one entry of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lossscope.landscape.measures.measure import Measure

if TYPE_CHECKING:
    from lossscope.landscape.measures.estimate_rows import Rows
    from lossscope.landscape.measures.panel import Panel
    from lossscope.probes.statistics.estimate import Estimate

__all__ = ["Evaluation", "LeastProducts", "MeasureGroup", "Names", "Schedule", "Vectors"]

Names: TypeAlias = frozenset[str]
LeastProducts: TypeAlias = Callable[[Names, int], int]
Vectors: TypeAlias = Callable[[Names, int], int]


@dataclass(frozen=True)
class Evaluation:
    """Conditions of one curvature evaluation of the recorder."""

    long: bool  # the whole panel is due, not only the loss and the largest eigenvalue
    stepped: bool  # a step has been taken
    eigenvalues: int  # number of top eigenvalues of the preset
    tracked: bool  # lambda_max is tracked from evaluation to evaluation
    losses: frozenset[str] = frozenset()  # the losses on other data that are known
    named: bool = False  # the measures to take were named, so that each is wanted at every evaluation
    full: bool = False  # the preset takes all that is worth its time


@dataclass(frozen=True)
class Schedule:
    """Recording schedule of a group: the measures due at an evaluation, and the order of the groups."""

    position: int  # place in the order of the groups of one evaluation, and so of their rows
    names: Callable[[Evaluation], Collection[str]]  # the measures due at an evaluation; empty for none
    after_tracker: bool = False  # the tracker of lambda_max runs right before this group


@dataclass(frozen=True, eq=False)
class MeasureGroup:
    """Declare measures that share one computation, and so its cost.

    Attributes:
        name: Name of the group in `probe --measures` and in tables of cost. If a measure has the same name, it must
            belong to this group.
        measures: The measures.
        run: `run(panel, names)` computes the named measures at the panel's parameters. It returns an `Estimate` for
            each measure, or rows if they need more columns (a block, the product method). It raises `ProbeError` with
            the reason if nothing can be measured.
        least_products: `least_products(names, size)` returns the smallest Hessian-product budget that `run` accepts for
            the named measures with `size` parameters; None if `run` uses no budget.
        vectors: `vectors(names, max_products)` returns the number of vectors of the length of the parameters that `run`
            holds at most for the named measures, see `memory.krylov_vectors`; None for those of one product.
        recorded: Recording schedule; None if the recorder never takes the group.
        usual: True if `probe` takes the group by default.
        reports: Reports that show the measures, the main one first.
        own_table: True if these reports have tables or figures written for these measures. Otherwise the measures are
            shown in the table "Other measures" of the reports, which must be of `sharpness` and `flatness`.
        by_block: True if rows of single parameter blocks belong to this group.
        cost: Cost in words, where it is not a number of Hessian products up to the budget.
        needs_step: True if `run` needs the step that was taken, which no checkpoint stores: recorded only.
        legacy: True if the group is kept for comparison with the literature and not recommended.
    """

    name: str
    measures: tuple[Measure, ...]
    run: Callable[[Panel, Names], Rows | Mapping[str, Estimate]]
    least_products: LeastProducts | None = None
    vectors: Vectors | None = None
    recorded: Schedule | None = None
    usual: bool = False
    reports: tuple[str, ...] = ("sharpness",)
    own_table: bool = False
    by_block: bool = False
    cost: str = ""
    needs_step: bool = False
    legacy: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the measures, in their order."""
        return tuple(measure.name for measure in self.measures)

    @property
    def cost_in_words(self) -> str:
        """Cost in words; empty for a group that declares none."""
        products = "" if self.least_products is None else "up to --max-products Hessian products"
        return self.cost or products

    def measure(self, panel: Panel, names: Collection[str]) -> Rows:
        """Compute some measures of the group.

        Args:
            panel: The loss at the parameters that its model has now.
            names: Measures of this group.

        Returns:
            The rows of the named measures, without provenance columns.

        Raises:
            ProbeError: Nothing can be measured here; the error gives the reason.
        """
        from lossscope.landscape.measures.estimate_rows import Rows, estimate_row

        found = self.run(panel, frozenset(names))
        if isinstance(found, Rows):
            return found
        return Rows([estimate_row(name, one) for name, one in found.items() if name in names])
