"""The network and the optimizer that `bpnet train` trains."""

import dataclasses
import os
import re
from collections.abc import Sequence

from bpnet.cli.dataset import Dataset
from bpnet.cli.preprocessing import Preprocessing
from bpnet.errors import OptionError, shown
from bpnet.layer import Layer
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.layers.flatten import Flatten
from bpnet.layout import layout_of
from bpnet.losses import BinaryCrossEntropy, Loss
from bpnet.optimizers import SGD, Adam, Optimizer


def parse_hidden(text: str) -> list[int]:
    """`256,128` as [256, 128]."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise OptionError(
            f"--hidden is {shown(text)}; expected whole numbers of at least 1 and less than a billion, with commas "
            "between, as 256,128"
        )
    return list(map(int, parts))


def build_network(dataset: Dataset, prep: Preprocessing, loss: Loss, hidden: Sequence[Layer]) -> Sequential:
    """The hidden layers, and what the rows need before and the target after them."""
    first = [Flatten()] if dataset.x.ndim > 2 else []
    units = len(prep.classes or ()) if loss.labels else dataset.y[:1].size
    last = Dense(units, "sigmoid" if isinstance(loss, BinaryCrossEntropy) else "identity")
    return Sequential(*first, prep.inputs, *hidden, last, *([] if prep.outputs is None else [prep.outputs]))


def check_memory(network: Layer, in_shape: Sequence[int]) -> None:
    """Raise OptionError where a network, and what it takes to train it, is more than the memory."""
    size = layout_of(network, tuple(in_shape)).size
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not tell
        return
    holds = memory // 32  # start values, parameters, gradient, the optimizer's state, and something to work with
    if size > holds:
        raise OptionError(f"--hidden makes a network of {size:,} parameters; this machine has memory for {holds:,}")


def in_unit(optimizer: Optimizer, unit: float) -> Optimizer:
    """`optimizer` for a target in its own unit, whose squared error has a gradient unit**2 times as large.

    Its steps are those that it would take for the standardized target, so the network that is saved, which answers in
    the target's unit, is the one that was trained, and can be trained on.
    """
    if isinstance(optimizer, Adam):
        return dataclasses.replace(optimizer, epsilon=optimizer.epsilon * unit**2)
    if isinstance(optimizer, SGD) and isinstance(optimizer.lr, float):
        return dataclasses.replace(optimizer, lr=optimizer.lr / unit**2)
    return optimizer
