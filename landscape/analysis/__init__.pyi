from .arm_memory import ArmMemory as ArmMemory, DirectionOfArm as DirectionOfArm
from .direction_memory import memory_of_arm as memory_of_arm
from .gradient_noise import (
    NoiseRecord as NoiseRecord,
    NoiseScale as NoiseScale,
    SpectralOrder as SpectralOrder,
    mean_order as mean_order,
    noise_of as noise_of,
    order_of as order_of,
)
from .layers import LayerRecord as LayerRecord, layers_of as layers_of
from .seed_pooling import (
    MISSING as MISSING,
    Estimate as Estimate,
    Pooled as Pooled,
    pooled as pooled,
    seed_of as seed_of,
)
from .spikes import Departure as Departure, Spike as Spike, spikes_of as spikes_of
from .trigger import TriggerRecord as TriggerRecord, trigger_of as trigger_of
