from .analysis.series import first_step as first_step
from .errors import LandscapeError as LandscapeError
from .recording.checkpoints import (
    checkpoints as checkpoints,
    load_weights as load_weights,
)
from .recording.recorder import Recorder as Recorder
from .run import (
    Run as Run,
    open_runs as open_runs,
)
from .surfaces.diff import diff as diff
from .surfaces.lines import CellOptions as CellOptions
from .surfaces.surface import surface as surface
from .training.config import TrainConfig as TrainConfig
from .training.parallel import train_all as train_all
from .training.training import train as train
from .unrecorded.measure import (
    Measured as Measured,
    measure as measure,
)
from .verdicts.claims import (
    Claim as Claim,
    founding_claims as founding_claims,
    read_claims as read_claims,
)
from .verdicts.contrasts import contrasts as contrasts
from .verdicts.judge import (
    check as check,
    compare as compare,
    judge as judge,
)
from .verdicts.verdict import Verdict as Verdict
