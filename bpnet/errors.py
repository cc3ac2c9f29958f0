"""The errors bpnet raises, each also the built-in error a caller would catch.

Checks run once, at the public boundary; a message names the argument, what was expected, what came, and how to mend it.
"""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

INNER = ("bpnet", "sklearn", "joblib")
"""Packages whose lines are none that a user wrote."""


class BpnetError(Exception):
    """Base of every error that bpnet raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:  # its text is kept, whatever a subclass makes it from
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[BpnetError], args: tuple[Any, ...]) -> BpnetError:
    made = kind.__new__(kind, *args)
    made.args = args  # which OSError leaves to the constructors that subclasses have
    return made


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


class OutOfMemoryError(BpnetError, MemoryError):
    """A step needs more memory than there is; parameters, optimizer state and step count are those from before it."""


class OptionError(BpnetError, ValueError):
    """An option has a value outside its range."""


class BpnetWarning(UserWarning):
    """What was asked for can be done, but is probably a mistake."""


def users_line() -> int:
    """The `stacklevel` by which a warning names the line that called bpnet, be it through scikit-learn."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INNER:
        level, frame = level + 1, frame.f_back
    return level


def kind_of(value: object) -> str:
    """What `value` is, for a message: "the class Dense", "None", "of type list"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: case, "_", "-" and blanks do not matter; None if no name is similar."""
    plain = {_plain(word): word for word in known}
    close = get_close_matches(_plain(name), plain, n=1, cutoff=0.65)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def shown(value: object) -> str:
    """A value as a message shows it: itself, or what it is where that takes more than a few words."""
    try:
        text = repr(value)
    except Exception:  # as of a whole number of thousands of digits
        return kind_of(value)
    if isinstance(value, int | str | bytes) and len(text) > 80:
        return f"{text[:60]}..."
    return text if len(text) <= 80 and text.isprintable() and " at 0x" not in text else kind_of(value)


def fit_for_a_screen(message: str) -> str:
    """`message` with control characters escaped, which could command a terminal, and cut where it is very long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:1000])
    return text + "..." * (len(message) > 1000)


def plural(count: int, noun: str) -> str:
    """How many of what: "1 row", "2 classes", "1,797 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


class UnknownNameError(BpnetError, ValueError):
    """A name, of an activation say, that is not in the catalogue."""

    def __init__(self, kind: str, name: str, known: Iterable[str], meant: str | None = None) -> None:
        known = sorted(known)
        meant = meant or closest(name, known)
        hint = f"did you mean {meant!r}? " if meant else ""
        super().__init__(f"unknown {kind} {shown(name)}: {hint}known are {', '.join(known)}")


class MissingExtraError(BpnetError, ImportError):
    """Something needs a package that is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        verb = "need" if " and " in what else "needs"
        super().__init__(f"{what} {verb} {package}: pip install 'bpnet-xp[{extra}]'")


class MissingPackageError(MissingExtraError):
    """Something needs a package that is no part of an extra, and it is not installed."""

    def __init__(self, what: str, package: str) -> None:
        ImportError.__init__(self, f"{what} needs {package}: pip install {package}")


class RecordError(BpnetError, KeyError):
    """The history has no such quantity."""

    __str__ = Exception.__str__


class FileFormatError(BpnetError, ValueError):
    """A file is not a bpnet model, or is damaged.

    What the message quotes from the file is cut at what a screen holds, and its control characters are escaped, so that
    they can't command a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(fit_for_a_screen(message))


class OtherFormatError(FileFormatError):
    """A file is a bpnet model of another version of bpnet, and nothing says that it is damaged."""


class ExportError(BpnetError, ValueError):
    """A model, or a layer of it, can't be written in another format; the message names the layer and what it does."""


class PathError(BpnetError, OSError):
    """Nothing can be read or written where a path says."""

    def __init__(self, message: str) -> None:
        super().__init__(fit_for_a_screen(message))


class NoSuchPathError(PathError, FileNotFoundError):
    """A path leads to no file, or into no folder."""


class FolderError(PathError, IsADirectoryError):
    """A path leads to a folder where a file is expected."""


class DeniedError(PathError, PermissionError):
    """A file or folder may not be read or written."""


def path_error(what: str, error: OSError) -> PathError:
    """`error` as one that says what failed, and can be caught as the same built-in one."""
    if isinstance(error, PathError):
        return error
    kinds = (NoSuchPathError, FileNotFoundError), (FolderError, IsADirectoryError), (DeniedError, PermissionError)
    kind = next((own for own, built_in in kinds if isinstance(error, built_in)), PathError)
    made = kind(f"{what}: {error.strerror or error}")
    made.errno = error.errno
    return made


class DivergedError(BpnetError, RuntimeError):
    """Training, or parameters that are not finite, gave a loss, state or output that is no number.

    A trainer that diverged is back at its last good state.
    """


class BusyError(BpnetError, RuntimeError):
    """A trainer is used by one thread while another trains it, or is trained by a callback of its own fit."""


class RankError(BpnetError, RuntimeError):
    """Another process of a distributed training has failed, died or stopped answering; the message names it."""


class NotBuiltError(BpnetError, RuntimeError):
    """Parameters are asked for before any data has shown the input's shape."""


class BuiltError(BpnetError, RuntimeError):
    """What start values depend on, or these themselves, would change, but there are parameters already."""


class GradientError(BpnetError, AssertionError):
    """A hand-written derivative does not match its finite differences."""
