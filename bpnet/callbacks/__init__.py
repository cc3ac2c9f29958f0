"""What happens between epochs: the history, early stopping, the progress bar, logs, and whatever a user adds."""

from bpnet.callbacks.base import Callback, Record, check_callbacks, end, needs_each_step
from bpnet.callbacks.checkpoints import ModelCheckpoint
from bpnet.callbacks.history import History
from bpnet.callbacks.loggers import CSVLogger, MLflow, TensorBoard
from bpnet.callbacks.monitors import EarlyStopping, ReduceOnPlateau
from bpnet.callbacks.norms import Norms
from bpnet.callbacks.progress import Progress, default_stream, redraws

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "History",
    "MLflow",
    "ModelCheckpoint",
    "Norms",
    "Progress",
    "Record",
    "ReduceOnPlateau",
    "TensorBoard",
    "check_callbacks",
    "default_stream",
    "end",
    "needs_each_step",
    "redraws",
]
