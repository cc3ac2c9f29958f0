"""What is sensible for so many rows: units, dropout, rows in a step, epochs, where nobody says it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Of a network for a table, and of its training."""

    hidden: tuple[int, ...]
    dropout: float
    batch_size: int
    epochs: int
    patience: int


def size_for(rows: int, classes: bool) -> Size:
    """The rule, for so many rows to train on.

    width = 4 sqrt(rows), the nearest power of two within 32 ... 512, then half of it;
    rows in a step = 1.5 sqrt(rows), the nearest power of two within 16 ... 1024;
    dropout = 0 for quantities; for classes 0.2, of 2,000 rows and more 0.3, and of 50,000 and more, which networks of
    these sizes hardly learn by heart, 0.1;
    epochs = as many as make 20,000 steps, within 30 ... 200, and a patience of a tenth of them, at least 8.
    """
    width = power_of_two(4.0 * rows**0.5, 32, 512)
    batch_size = power_of_two(1.5 * rows**0.5, 16, 1024)
    epochs = min(max(20_000 * batch_size // rows, 30), 200)
    dropout = (0.2 if rows < 2_000 else 0.3 if rows < 50_000 else 0.1) if classes else 0.0
    return Size((width, width // 2), dropout, batch_size, epochs, max(epochs // 10, 8))


def power_of_two(value: float, least: int, most: int) -> int:
    """The power of two nearest to a value by their ratio, within bounds that are such."""
    power = least
    while power < most and value > power * 2**0.5:
        power *= 2
    return power
