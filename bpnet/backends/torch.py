"""PyTorch, on any of its devices.  bpnet's derivatives are its own, so nothing here records a graph."""

import math
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import array_api_compat.torch as xp
import torch

from bpnet.backends.base import GROUPED, NARROW, SUMMED, SUMMED_PRODUCTS, Array, Backend, Key, by_halves
from bpnet.backends.interrupts import Session, store_rows
from bpnet.backends.masks import draw_mask, mask_chunks
from bpnet.compiler.random import GOLDEN, TRIPLE32, start_of


def dense_forward(run: Any, x: Array, weight: Array, bias: Array | None, activation: Any) -> tuple[Array, Array]:
    z = torch.matmul(x, weight) if bias is None else torch.addmm(bias, x, weight)
    y = activation.value(run.backend, z)
    return y, activation.saved(z, y)


def matmul(run: Any, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """Where a sum is to be in parts, in calls of their own: one call for all takes PyTorch many times as long."""
    left, right = a.mT if transpose_a else a, b.mT if transpose_b else b
    rows, step = a.shape[0], 4 * SUMMED_PRODUCTS
    sums_rows = transpose_a and not transpose_b and a.ndim == b.ndim == 2
    if not sums_rows or rows <= 2 * step or min(a.shape[1], b.shape[1]) > NARROW:
        return torch.matmul(left, right)
    return by_halves((left[:, i : i + step] @ b[i : i + step] for i in range(0, rows, step)), operator.add)


def sum_rows(run: Any, x: Array) -> Array:
    return torch.sum(x, dim=0)


def scatter_add(run: Any, table: Array, index: Array, rows: Array) -> Array:
    """What PyTorch's own embeddings call, which adds in the same order each time, on a GPU too (`index_add` does not).

    It adds all rows of a number one after the other, so of a small table there are several, each for a group of rows.
    """
    (count, width) = table.shape
    groups = max(1, min(-(-index.shape[0] // SUMMED), GROUPED // table.numel()))
    if groups > 1:
        index = torch.arange(index.shape[0], device=index.device) // -(-index.shape[0] // groups) * count + index
    total = torch.ops.aten.embedding_dense_backward(rows, index, groups * count, -1, False)
    return total if groups == 1 else torch.sum(total.reshape(groups, count, width), dim=0)


def batch_norm_forward(
    run: Any, x: Array, scale: Array, shift: Array, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """With a factor and an offset in one pass, for the definition's two."""
    mean, share = torch.mean(x, dim=0), 1.0 / x.shape[0]
    centred = x - mean
    off = torch.sum(centred, dim=0) * share
    var = torch.clamp(torch.sum(centred * centred, dim=0) * share - off * off, min=0.0)
    inverse = torch.rsqrt(var + epsilon)
    xhat = torch.addcmul(-off * inverse, centred, inverse)
    return torch.addcmul(shift, xhat, scale), xhat, mean + off, var, inverse


class NoGrad(Session):
    """PyTorch records no gradients."""

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        super().__enter__()
        torch.set_grad_enabled(False)

    def restore(self) -> None:
        torch.set_grad_enabled(self.before)


class TorchBackend(Backend):
    name = "torch"
    oom_errors: ClassVar = (MemoryError, torch.OutOfMemoryError)
    kernels: ClassVar = {f.__name__: f for f in (matmul, sum_rows, scatter_add, dense_forward, batch_norm_forward)} | {
        "put_rows": store_rows
    }

    def unfit(self, x: Array) -> str | None:
        if x.is_nested:
            return "a nested tensor: pad it, as by torch.nested.to_padded_tensor"
        if x.layout != torch.strided:
            return f"a tensor of the layout {x.layout}: pass its to_dense()"
        if x.is_quantized:
            return "a quantized tensor: pass its dequantize()"
        return "a tensor on the device 'meta', which has no values: pass one that has" if x.is_meta else None

    def detach(self, x: Array) -> Array:
        return x.detach() if x.requires_grad else x

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        return [float(value) for value in torch.stack(list(scalars)).tolist()] if scalars else []

    def to_host(self, x: Array) -> Any:
        return x.detach().cpu().numpy()

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        return torch.tensor(value, dtype=dtype, device=device)

    def synchronise(self, x: Array) -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    def memory(self, x: Array) -> tuple[int, int] | None:
        return torch.cuda.mem_get_info(x.device) if x.is_cuda else None

    def session(
        self, threads: int | None = None, device: Any = None, work: float = 0.0, choice: bool | str = "auto"
    ) -> AbstractContextManager[None]:
        return NoGrad()

    def keep_mask(
        self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any, first: Any = 0
    ) -> Array:
        """On a processor drawn by NumPy, which takes a tenth of the time of PyTorch's own generator."""
        if torch.device(device).type != "cpu":
            return super().keep_mask(key, shape, keep, dtype, device, first)
        mask = torch.empty(shape, dtype=dtype)
        flat = mask.numpy().reshape(-1)
        for chunk in mask_chunks(flat.size):
            draw_mask(flat, chunk, start_of(key, first * math.prod(shape[1:])), keep)
        return mask

    def _bits(self, key: Key, shape: tuple[int, ...], device: Any, first: Any) -> Array:
        """In integers of 64 bits cut to 32, since PyTorch's unsigned ones can't be shifted."""
        start = start_of(key, first * math.prod(shape[1:]))
        bits = torch.arange(math.prod(shape), dtype=torch.int64, device=device) * GOLDEN + start & 0xFFFFFFFF
        for shift, factor in TRIPLE32:
            bits = (bits ^ bits >> shift) * factor & 0xFFFFFFFF
        return (bits ^ bits >> 14).reshape(shape)

    def _uint32(self, value: Any, device: Any) -> Any:
        """Numbers that such integers are compared with, and shifted by."""
        return value

    def erf(self, x: Array) -> Array:
        return torch.erf(x)


BACKEND = TorchBackend(xp)
