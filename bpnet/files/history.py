"""A history in a file: what every epoch has is an array, one number an epoch, and all else is JSON.

    {"epochs": 100, "columns": {"loss": {}, "val_loss": {"ranges": [[50, 100]]},
                                "matmul_precision": {"ranges": [[0, 50], [50, 100]], "values": ["float32", "tf32"]}}}

`ranges` are the epochs that have the quantity, from the first to before the last, where not all do; `values` are those
in JSON, one for each range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpnet.errors import FileFormatError, kind_of

if TYPE_CHECKING:
    from bpnet.files.tensors import Tensors

PREFIX = "history."
"""How the names of the arrays begin."""
RECORDED = {"epoch", "step", "loss", "lr", "seconds"}
"""The numbers in every epoch's record."""


def columns(records: Sequence[Mapping[str, Any]]) -> "tuple[dict[str, Any], Tensors]":
    """Records as a description and arrays, from which `Records` makes them again."""
    import numpy

    told: dict[str, dict[str, Any]] = {}
    arrays: Tensors = {}
    places: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        for name in record:
            places.setdefault(name, []).append(i)
    for name, at in places.items():
        values = [of_python(records[i][name]) for i in at]
        told[name] = {} if len(at) == len(records) else {"ranges": _ranges(at)}
        if all(isinstance(value, float) for value in values):
            arrays[PREFIX + name] = numpy.array(values, numpy.float64)
        elif {type(value) for value in values} == {int} and -(2**63) <= min(values) <= max(values) < 2**63:
            arrays[PREFIX + name] = numpy.array(values, numpy.int64)
        else:
            ranges = _ranges(at, values)
            told[name] = {"ranges": ranges, "values": [of_python(records[start][name]) for start, _ in ranges]}
    return {"epochs": len(records), "columns": told}, arrays


def of_python(value: Any) -> Any:
    """`value`, or the number that a number of another library is."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def _ranges(numbers: Sequence[int], values: Sequence[Any] = ()) -> list[list[int]]:
    """Rising numbers as ranges, in each of which `values`, one for each number, are the same text or such."""
    found: list[list[int]] = []
    last: Any = None
    for k, n in enumerate(numbers):
        value = values[k] if values else None
        same = type(value) is type(last) and value == last and not isinstance(value, list | dict)
        if found and found[-1][1] == n and same:
            found[-1][1] = n + 1
        else:
            found.append([n, n + 1])
        last = value
    return found


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


@dataclass(frozen=True)
class Records:
    """The records of a file's history, made when they are looked at: they take more memory than the arrays."""

    count: int
    columns: dict[str, tuple[list[list[int]], Any]]
    """By the name of a quantity: the epochs that have it, and its values."""

    def __len__(self) -> int:
        return self.count

    def made(self) -> list[dict[str, Any]]:
        """The records, a dict for each epoch."""
        records: list[dict[str, Any]] = [{} for _ in range(self.count)]
        for name, (ranges, values) in self.columns.items():
            if isinstance(values, list):
                for (start, stop), value in zip(ranges, values, strict=True):
                    for i in range(start, stop):
                        records[i][name] = value
            else:
                at = (i for start, stop in ranges for i in range(start, stop))
                for i, value in zip(at, values.tolist(), strict=True):
                    records[i][name] = value
        return records


def restored(plain: Any, tensors: "Tensors") -> Records:
    """The records that `columns` described, whose arrays are taken from `tensors`; raises FileFormatError."""
    count, told = plain["epochs"], plain["columns"]
    found: dict[str, tuple[list[list[int]], Any]] = {}
    if type(count) is not int or not 0 <= count < 2**31:
        raise FileFormatError(f"the history has {count!r:.50} epochs")
    shape: Any
    for name, how in told.items():
        ranges = how.get("ranges", [[0, count]])
        array = tensors.pop(PREFIX + name, None)
        values = how["values"] if array is None else array
        stops = [0]
        for start, stop in ranges:
            if type(start) is not int or type(stop) is not int or not stops[-1] <= start <= stop <= count:
                raise FileFormatError(f"the history has {name!r} of epochs that are not there")
            stops.append(stop)
        if array is None:
            shape, expected = ((len(values),) if isinstance(values, list) else kind_of(values)), (len(ranges),)
        else:
            shape, expected = array.shape, (sum(stop - start for start, stop in ranges),)
        if shape != expected or (array is not None and array.dtype.kind not in "fi"):
            raise FileFormatError(f"the history has {name!r} for {shape} epochs or ranges; expected {expected}")
        found[name] = ranges, values
    for name in RECORDED if count else ():
        if name not in found or sum(stop - start for start, stop in found[name][0]) != count:
            raise FileFormatError(f"the history lacks {name!r} of some epochs")
    for name in RECORDED | {"val_loss", "val_accuracy"}:
        _, values = found.get(name, ([], []))
        if isinstance(values, list) and not all(map(_is_number, values)):
            raise FileFormatError(f"the history has {name!r} that are no numbers")
    return Records(count, found)
