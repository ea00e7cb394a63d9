"""What the steps of a run did, from its record: memory of directions, the trigger, gradient noise, layers.

Nothing is measured anew, and no part of it loads torch.
"""

from lossscope.landscape.analysis.direction_memory import (
    ArmMemory,
    DirectionOfArm,
    RunMemory,
    memory_of_arm,
    memory_of_run,
)
from lossscope.landscape.analysis.gradient_noise import NoiseRecord, SpectralOrder, mean_order, noise_of, order_of
from lossscope.landscape.analysis.layers import LayerRecord, layers_of
from lossscope.landscape.analysis.seed_pooling import GAP, Pooled, pooled, seed_of
from lossscope.landscape.analysis.trigger import TriggerRecord, trigger_of
from lossscope.probes.dynamics.gradient_noise import NoiseScale
from lossscope.probes.statistics.estimate import Estimate

__all__ = [
    "GAP",
    "ArmMemory",
    "DirectionOfArm",
    "Estimate",
    "LayerRecord",
    "NoiseRecord",
    "NoiseScale",
    "Pooled",
    "RunMemory",
    "SpectralOrder",
    "TriggerRecord",
    "layers_of",
    "mean_order",
    "memory_of_arm",
    "memory_of_run",
    "noise_of",
    "order_of",
    "pooled",
    "seed_of",
    "trigger_of",
]
