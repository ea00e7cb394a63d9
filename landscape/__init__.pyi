from .config import TrainConfig as TrainConfig
from .errors import LandscapeError as LandscapeError
from .milestone import first_step as first_step
from .recorder import Recorder as Recorder
from .run import (
    Run as Run,
    open_runs as open_runs,
)
from .training import train as train
