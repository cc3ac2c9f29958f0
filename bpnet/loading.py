"""A trainer, or a model of tables, from the file that it was saved in."""

import os
from typing import Any

from bpnet.backends import backend_of, check_device, device_named, get
from bpnet.backends.interrupts import ends_sessions
from bpnet.callbacks.history import History
from bpnet.errors import ArgumentError, OptionError
from bpnet.files.model import damaged, read_checkpoint
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray


@ends_sessions
def load(
    path: str | os.PathLike[str],
    like: AnyArray | None = None,
    *,
    device: str | None = None,
    dtype: Any = None,
    compile: bool | str = "auto",
) -> Any:
    """The trainer that `Trainer.save` wrote, ready to predict, evaluate or train on; or the `TableModel` of its `save`.

    Its parameters lie where `like` lies, in its library, or on the `device` that the trainer is to have ("cuda",
    "cuda:1": see `Trainer`); without these they are NumPy arrays.  Numbers keep the type they were saved in, or get
    `dtype`, "float32" or "float64".  Products have the precision that they were trained with where the library has it,
    else float32.  A layer of the user's own must have been defined (imported) before.

    Nothing in a file can run code, and whatever it says, loading takes no more memory than twice its size and 64 MiB.

    Raises FileNotFoundError or another OSError where no file can be read, FileFormatError where it is no bpnet model or
    is damaged: a single changed bit is noticed, DTypeError where the library has no numbers of the saved type, and
    OptionError where an option or a parameter does not fit `dtype`.
    """
    if like is not None and device is not None:
        raise ArgumentError("both like and device say where the parameters are to lie: pass one of them")
    backend, place = (get("numpy"), None) if device is None else device_named(check_device(device))
    if like is not None:
        backend = backend_of(like, "like")
        place = backend.device(like)
    saved = read_checkpoint(path, dtype)
    with damaged(path):
        network, options = saved.layout.network, dict(saved.options)
        trainer = Trainer(network, saved.loss, saved.optimizer, device=device, compile=compile, **options)
        dtype = getattr(backend.xp, str(saved.vectors[0].dtype))
        theta, buffers, *state = (  # one after the other, so that few are there twice
            backend.from_host(saved.vectors.pop(0), dtype, place) for _ in range(len(saved.vectors))
        )
        if trainer.precision not in backend.precisions(backend.device(theta)):
            trainer.precision = "float32"
    trainer.history, trainer.metadata, trainer.classes = History.later(saved.history), saved.metadata, saved.classes
    try:
        trainer._set_state(backend, saved.layout, (theta, buffers, tuple(state)), saved.step_count, saved.lr_scale)
    except OptionError as error:  # the file is sound
        raise OptionError(f"{os.fspath(path)} can't be loaded: {error}") from None
    if saved.table is None:
        return trainer
    from bpnet.tabular.model import restored

    with damaged(path):
        return restored(saved.table, trainer)
