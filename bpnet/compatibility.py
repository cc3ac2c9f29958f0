"""What network, loss, optimizer and options must be to each other, and to the data, before anything runs."""

import warnings
from collections.abc import Mapping
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.backpropagation import type_of
from bpnet.data.checks import check_like
from bpnet.errors import ArgumentError, BpnetWarning, DTypeError, OptionError, ShapeError, kind_of, shown, users_line
from bpnet.layer import InShape, Layer, Params, leaves
from bpnet.layers.activations.others import Softmax
from bpnet.layers.activations.sigmoids import Sigmoid
from bpnet.layers.composition import last_activation
from bpnet.layout import Layout, layout_of
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.options import check_range
from bpnet.protocol import check_network


def check_compile(choice: Any) -> bool | str:
    """`choice` where it says whether steps are compiled; raises OptionError."""
    if choice is True or choice is False or (isinstance(choice, str) and choice == "auto"):
        return choice
    raise OptionError(f"compile is {shown(choice)}; expected 'auto', True or False")


def check_micro_batch(micro_batch: int | None, whole: bool) -> None:
    """Raise OptionError where there are micro-batches, but the network needs the `whole` batch."""
    if whole and micro_batch is not None:
        raise OptionError(
            f"micro_batch is {micro_batch}, but a layer of the network (such as BatchNorm) needs all rows of "
            "a batch at once: leave it out, and take a smaller batch_size"
        )


def layout_for(
    network: Layer, loss: Loss, optimizer: Optimizer, micro_batch: int | None, in_shape: InShape, like: Array
) -> Layout:
    """The layout for rows of `in_shape`; raises where the network, or the loss after it, does not fit them.

    `like` is an array of the library and type that is computed with.
    """
    check_network(network, in_shape, like, loss, optimizer)
    layout = layout_of(network, in_shape)
    loss.target_shape(layout.out_shape)
    check_micro_batch(micro_batch, network.updates_buffers)
    return layout


def check_precision(precision: str, backend: Backend, like: Array) -> None:
    """Raise OptionError or DTypeError where products on the device and of the type of `like` can't have it."""
    if precision == "float32":
        return
    if like.dtype != backend.xp.float32:
        raise DTypeError(
            f"precision is {precision!r}, which is of products of float32 values, but x holds {like.dtype} ones: "
            "convert x to float32, or leave precision out"
        )
    if precision not in backend.precisions(backend.device(like)):
        hint = "" if backend.name == "cupy" else "Pass CuPy arrays, or device='cuda' and NumPy's: "
        raise OptionError(
            f"precision is {precision!r}, which products of {backend.name} arrays do not have here; expected "
            f"'float32'. {hint}tf32 and bfloat16 are for CuPy arrays on an NVIDIA GPU of compute capability 8.0 or "
            "newer, with nvmath-python: pip install 'bpnet-xp[cuda13]', or cuda12 for an older driver"
        )


def check_options(backend: Backend, like: Array, trainer: Any) -> None:
    """Raise OptionError where an option of a trainer is too small or too large for the type of `like`."""
    numbers = type_of(backend, like)
    for part in (trainer.network, trainer.loss, trainer.optimizer, *trainer.penalties):
        part.check_type(*numbers)
    check_range("clip_norm", min(trainer.clip_norm or 0.0, 1.0), *numbers)  # one that is large changes no gradient


def check_parameters(tree: Any, own: Params) -> None:
    """Raise unless `tree` has arrays like all parameters, nested as these are."""
    if not isinstance(tree, Mapping):
        raise ArgumentError(f"parameters is {kind_of(tree)}; expected a nested dict, as trainer.parameters gives")
    have, given = dict(leaves(own)), dict(leaves(tree))
    if given.keys() != have.keys():
        wrong = sorted(given.keys() ^ have.keys())
        raise ShapeError(f"parameters differ from the network's in {', '.join(wrong)}; expected {', '.join(have)}")
    for name, value in given.items():
        what = "parameters" + "".join(f"[{part!r}]" for part in name.split("."))
        check_like(value, have[name], what, "the trainer's parameters")


def warn_of_probabilities(network: Layer, loss: Loss) -> None:
    """Warn where the network ends in probabilities, and the loss would make such of them again."""
    last = last_activation(network)
    if not (loss.logits and isinstance(last, Sigmoid | Softmax)):
        return
    binary = isinstance(last, Sigmoid) and "binary_cross_entropy_with_logits" in loss.names
    text = (
        f"the network ends in {last}, but {loss} takes logits and makes probabilities of them itself, so "
        "that it learns badly: leave the last activation out"
    )
    text += ", or take the loss 'binary_cross_entropy'" if binary else ""
    warnings.warn(text, BpnetWarning, stacklevel=users_line())
