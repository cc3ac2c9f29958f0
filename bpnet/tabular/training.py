"""A model for a table, from the table: `train_table`, which the command line calls too."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpnet.backends import Array, check_device
from bpnet.callbacks.base import Callback
from bpnet.callbacks.history import History
from bpnet.callbacks.monitors import EarlyStopping
from bpnet.errors import BpnetWarning, DataError, OptionError, plural
from bpnet.layer import Layer
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric
from bpnet.optimizers.base import Optimizer
from bpnet.schedules import Schedule
from bpnet.tabular.frames import Frame
from bpnet.tabular.model import TableModel
from bpnet.tabular.remarks import remarks_on
from bpnet.tabular.schema import Schema
from bpnet.tabular.sizing import size_for
from bpnet.tabular.splits import held_out_rows
from bpnet.tabular.target import Target
from bpnet.trainer import Trainer
