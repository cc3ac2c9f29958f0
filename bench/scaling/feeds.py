"""Ways to bring the rows of files to the same training steps: bpnet's, and those of grain and PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.scaling.child import Fit
from bench.workloads import Array

Batches = Iterable[tuple[Array, Array]]


class Feed(Fit):
    """One way, by its name in `FEEDS`; an epoch is every row once, in an order drawn anew."""

    def ready(self, batch: int, rows: int) -> None:
        self.fitted, self.batch, self.epoch = self.trainer(self.task), batch, 0
        self.folder = Path(self.order["folder"])
        made = FEEDS[self.order["name"]](self)
        self.once: Callable[[], None] = made

    def epochs(self, count: int) -> dict[str, Any]:
        for _ in range(count):
            self.epoch += 1
            self.once()
        return {}

    def fit(self, *data: Any) -> Callable[[], None]:
        """An epoch by `Trainer.fit`."""
        return lambda: self.fitted.fit(*data, epochs=1, batch_size=self.batch, progress=False) and None

    def steps(self, batches: Callable[[], Batches]) -> Callable[[], None]:
        """An epoch by a step for each batch that somebody else's loader gives, and a look at the last loss."""

        def once() -> None:
            for x, y in batches():
                loss = self.fitted.step(x, y, check=False)
            float(loss)

        return once

    def maps(self) -> tuple[Array, Array]:
        x, y = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in "xy")
        return x, y

    def drawn(self) -> Array:
        """The order of the rows in this epoch."""
        return np.random.default_rng(self.epoch).permutation(len(self.maps()[0]))


def memory(feed: Feed) -> Callable[[], None]:
    return feed.fit(*(array.copy() for array in feed.maps()))


def mapped(feed: Feed) -> Callable[[], None]:
    return feed.fit(*feed.maps())


def memory_steps(feed: Feed) -> Callable[[], None]:
    """What the steps alone take in such a loop: batches gathered from arrays in memory."""
    x, y = (array.copy() for array in feed.maps())

    def batches() -> Iterator[tuple[Array, Array]]:
        order = feed.drawn()
        for start in range(0, len(order), feed.batch):
            rows = order[start : start + feed.batch]
            yield x[rows], y[rows]

    return feed.steps(batches)


def stream_npy(feed: Feed, shuffle: str = "blocks") -> Callable[[], None]:
    import bpnet as bp

    paths = (feed.folder / f"{name}.npy" for name in "xy")
    return feed.fit(bp.data.stream(*paths, buffer=feed.order["buffer"], shuffle=shuffle))


def stream_exact(feed: Feed) -> Callable[[], None]:
    return stream_npy(feed, "exact")


def stream_parquet(feed: Feed) -> Callable[[], None]:
    import bpnet as bp

    return feed.fit(bp.data.stream(feed.folder / "table.parquet", "y", buffer=feed.order["buffer"]))


def torch_npy(feed: Feed, workers: int = 0) -> Callable[[], None]:
    """A Dataset whose `__getitems__` gathers a batch at once from maps of the files, in a DataLoader that shuffles."""
    data = importlib.import_module("torch.utils.data")
    from torch import from_numpy

    x, y = feed.maps()

    class Rows(data.Dataset):  # type: ignore[misc, name-defined]
        def __len__(self) -> int:
            return len(x)

        def __getitems__(self, rows: list[int]) -> Any:
            return from_numpy(x[rows]), from_numpy(y[rows])

    options: dict[str, Any] = {"batch_size": feed.batch, "shuffle": True, "collate_fn": _as_it_is}
    loader = data.DataLoader(Rows(), num_workers=workers, persistent_workers=workers > 0, **options)
    return feed.steps(lambda: ((a.numpy(), b.numpy()) for a, b in loader))


def torch_npy_worker(feed: Feed) -> Callable[[], None]:
    return torch_npy(feed, 1)


def torch_parquet(feed: Feed) -> Callable[[], None]:
    """An IterableDataset that takes the row groups in random order, and the rows of each, read by one worker."""
    data = importlib.import_module("torch.utils.data")
    from torch import from_numpy

    path = feed.folder / "table.parquet"

    class Groups(data.IterableDataset):  # type: ignore[misc, name-defined]
        epoch = 0

        def __iter__(self) -> Iterator[Any]:
            import pyarrow.parquet as parquet

            self.epoch += 1
            rng = np.random.default_rng(self.epoch)
            file = parquet.ParquetFile(path)
            for group in rng.permutation(file.num_row_groups):
                table = file.read_row_group(group)
                x = np.column_stack([table.column(i).to_numpy() for i in range(table.num_columns - 1)])
                y = table.column("y").to_numpy()
                order = rng.permutation(len(y))
                for start in range(0, len(y), feed.batch):
                    rows = order[start : start + feed.batch]
                    yield from_numpy(x[rows]), from_numpy(y[rows])

    loader = data.DataLoader(Groups(), batch_size=None, num_workers=1, persistent_workers=True)
    return feed.steps(lambda: ((a.numpy(), b.numpy()) for a, b in loader))


def grain_rows(feed: Feed) -> Callable[[], None]:
    """A source of single rows, shuffled and put together to batches by grain, as its documentation has it."""
    grain = importlib.import_module("grain")
    x, y = feed.maps()

    class Rows:
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, row: int) -> tuple[Array, Any]:
            return x[row], y[row]

    def batches() -> Batches:
        data = grain.MapDataset.source(Rows()).seed(feed.epoch).shuffle()
        found: Batches = data.to_iter_dataset(grain.ReadOptions(num_threads=2)).batch(feed.batch)
        return found

    return feed.steps(batches)


def grain_batches(feed: Feed) -> Callable[[], None]:
    """A source of whole batches, of which grain has some read ahead by its threads."""
    grain = importlib.import_module("grain")
    x, y = feed.maps()

    def batches() -> Batches:
        order = feed.drawn()

        def gathered(number: int) -> tuple[Array, Array]:
            rows = order[number * feed.batch : (number + 1) * feed.batch]
            return x[rows], y[rows]

        data = grain.MapDataset.range(-(-len(order) // feed.batch)).map(gathered)
        found: Batches = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        return found

    return feed.steps(batches)


def grain_parquet(feed: Feed) -> Callable[[], None]:
    """grain's own Parquet, a dictionary a row, shuffled within a window."""
    experimental = importlib.import_module("grain.experimental")

    def batches() -> Batches:
        data = experimental.ParquetIterDataset(str(feed.folder / "table.parquet"))
        data = experimental.WindowShuffleIterDataset(data, window_size=8 * feed.batch, seed=feed.epoch)
        found: Batches = data.map(_row).batch(feed.batch)
        return found

    return feed.steps(batches)


def _row(row: dict[str, Any]) -> tuple[Array, Any]:
    y = row.pop("y")
    return np.fromiter(row.values(), np.float32, len(row)), np.int64(y)


def _as_it_is(batch: Any) -> Any:
    return batch


FEEDS: dict[str, Callable[[Feed], Callable[[], None]]] = {
    "memory": memory,
    "memory-steps": memory_steps,
    "mapped": mapped,
    "stream-npy": stream_npy,
    "stream-exact": stream_exact,
    "stream-parquet": stream_parquet,
    "torch-npy": torch_npy,
    "torch-npy-worker": torch_npy_worker,
    "torch-parquet": torch_parquet,
    "grain-rows": grain_rows,
    "grain-batches": grain_batches,
    "grain-parquet": grain_parquet,
}
