"""What tests of exported networks share: files for NumPy as modules, and PyTorch's outputs and gradients."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.export.units import units_of
from bpnet.layer import Run


def batch(x: Any, single: bool) -> Any:
    """Rows in float32 or as they are."""
    if isinstance(x, dict):
        return {name: batch(array, single) for name, array in x.items()}
    return x.astype("float32") if single and x.dtype.kind == "f" else x


def source(model: Any, folder: Path | None = None) -> ModuleType:
    """The module that the file of a model is; or the one that is there, where no folder is given."""
    path = model if folder is None else folder / "model.py"
    if folder is not None:
        bp.files.to_numpy_source(model, path)
    made = ModuleType("model")
    exec(compile(Path(path).read_text(encoding="utf-8"), os.fspath(path), "exec"), made.__dict__)
    return made


def predicted(module: Any, x: Any) -> Any:
    """What a module of PyTorch gives, as an array."""
    return _called(module, x).detach().numpy()


def _called(module: Any, x: Any) -> Any:
    import torch

    return module(*map(torch.asarray, x.values() if isinstance(x, dict) else [x]))


def gradients(module: Any, trainer: bp.Trainer, x: Any) -> int:
    """Hold PyTorch's gradients against those of `backward` while predicting, of a random sum of the outputs.

    How many were compared; raises AssertionError.
    """
    import torch

    layout, backend, network = trainer.layout, trainer.backend, trainer.network
    with backend.session():
        run, p = Run(backend), layout.views(backend, trainer.theta, trainer.buffers)
        y, cache = network.forward(run, p, tuple(x.values()) if isinstance(x, dict) else x)
        dy = np.random.default_rng(0).normal(size=y.shape).astype(y.dtype)
        _, grads = network.backward(run, p, cache, dy, need_dx=False)
        own = layout.unpack(layout.join_gradients(backend, grads))
    (_called(module, x) * torch.asarray(dy)).sum().backward()
    theirs, largest = dict(module.named_parameters()), max(np.max(np.abs(g)) for g in own.values())
    entries = {e.slot.name: (f"{u.path}.{e.torch[0]}", e) for u in units_of(layout) for e in u.values if u.first}
    for name, gradient in own.items():
        path, entry = entries[name]
        if path not in theirs:  # of what nothing is computed with
            assert not np.any(gradient), name
            continue
        found = theirs[path].grad
        found = np.zeros(gradient.shape) if found is None else entry.of_torch(found.numpy()) / entry.factor**2
        np.testing.assert_allclose(found, gradient, rtol=1e-7, atol=1e-9 * largest, err_msg=name)
    return len(own)
