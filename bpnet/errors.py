"""The errors bpnet raises, each also the built-in error a caller would catch.

Checks run once, at the public boundary; a message names the argument, what was expected, what came, and how to mend it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class BpnetError(Exception):
    """Base of every error that bpnet raises on purpose."""


class ShapeError(BpnetError, ValueError):
    """An array has the wrong rank, number of features, or length."""


class DTypeError(BpnetError, TypeError):
    """An array has an element type that can't be used there."""


class DataError(BpnetError, ValueError):
    """Values can't be used: NaN or infinity, a label out of range, no rows."""


class ArrayMismatchError(BpnetError, TypeError):
    """Arrays of different libraries or devices meet, or something that is no array was passed."""


class ArgumentError(BpnetError, TypeError):
    """An argument of another kind than expected: a list where a layer belongs, a class where an instance does."""


class DeviceError(BpnetError, RuntimeError):
    """A library is installed, but the device it needs is not there."""


class NoRoomError(BpnetError, MemoryError):
    """A step needs more memory than there is; parameters, optimizer state and step count are those from before it."""


class OptionError(BpnetError, ValueError):
    """An option has a value outside its range."""


def kind_of(value: object) -> str:
    """What `value` is, for a message: "the class Dense", "None", "of type list"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"


class UnknownNameError(BpnetError, ValueError):
    """A name, of an activation say, that is not in the catalogue."""

    def __init__(self, kind: str, name: str, known: Iterable[str], meant: str | None = None) -> None:
        known = sorted(known)
        close = [meant] if meant else get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


class MissingExtraError(BpnetError, ImportError):
    """Something needs a package that is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}: pip install 'bpnet-xp[{extra}]'")


class RecordError(BpnetError, KeyError):
    """The history has no such quantity."""

    __str__ = Exception.__str__


class FileFormatError(BpnetError, ValueError):
    """A file is not a bpnet model, or is damaged."""


class DivergedError(BpnetError, RuntimeError):
    """The loss became NaN or infinite; the last finite parameters were kept."""


class BusyError(BpnetError, RuntimeError):
    """A trainer is used by one thread while another trains it, or is trained by a callback of its own fit."""


class NotBuiltError(BpnetError, RuntimeError):
    """Parameters are asked for before any data has shown the input's shape."""


class GradientError(BpnetError, AssertionError):
    """A hand-written derivative does not match its finite differences."""
