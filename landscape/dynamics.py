"""What the steps of a run did, from its record: memory of directions, the trigger, gradient noise, layers.

No part of it measures anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossscope.probes.memory import LaggedCosines

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
