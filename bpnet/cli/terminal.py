"""What several commands take and print, and what they make of an error or a signal."""

import functools
import importlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
import typer.core

from bpnet import backends
from bpnet.cli.ranks import tells
from bpnet.disk import write_atomically
from bpnet.errors import BpnetError, MissingExtraError, OptionError, UnknownNameError, path_error

P = ParamSpec("P")
R = TypeVar("R")
JSON = dict[str, Any]


def option(metavar: str, text: str, *names: str, **more: Any) -> Any:
    """An option with a value, and its help; `names` where there is more than that of the argument."""
    return typer.Option(*names, metavar=metavar, help=text, **more)


OPTIONAL = {"--plot": "terminal"}
"""Options whose value may be left out, and what it then is."""


class Command(typer.core.TyperCommand):  # type: ignore[misc]
    """A command whose options may lack the values of OPTIONAL."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_values(args))  # type: ignore[no-any-return]


def with_values(args: Sequence[str]) -> list[str]:
    """The words of a command line, with the values that are left out."""
    last = args.index("--") if "--" in args else len(args)
    given: list[str] = []
    for i, word in enumerate(args):
        given.append(word)
        if word in OPTIONAL and i < last and (i + 1 == len(args) or args[i + 1].startswith("-")):
            given.append(OPTIONAL[word])
    return given


DATA = (
    "A table: .csv, .tsv (also .gz, .zst), .parquet, .arrow, .feather; arrays x, y: .npz; - for standard input; "
    "or digits, an example."
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA)]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A file that bpnet train, or save in Python, has written.")
]


def device_of(backend: str) -> str:
    """What a trainer calls the place where an array library computes."""
    device = "cuda" if backend == "cupy" else backend
    try:
        backends.device_named(device)
    except UnknownNameError:
        raise UnknownNameError("--backend", backend, ("numpy", "cupy", "torch", "jax")) from None
    return device


AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: control characters, changes of direction, lone surrogates."""


def printable(text: str) -> str:
    """`text` with its control characters written out, as `\\x1b`: it may come from a stranger's file."""
    return CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def show(*lines: str) -> None:
    """Lines on stdout."""
    typer.echo("\n".join(map(printable, lines)))


def report(result: JSON, as_json: bool, *lines: str) -> None:
    """What a command found, on stdout: in words, or as one JSON object, in which numbers that JSON lacks are null."""
    if as_json:
        typer.echo(json.dumps(json.loads(json.dumps(result), parse_constant=lambda name: None)))
    elif lines:
        show(*lines)


def note(line: str) -> None:
    """A line on stderr about the course of the work; that nobody may be there to read it is no reason to fail."""
    with suppress(OSError):
        typer.echo(printable(line), err=True)


def warn(message: str) -> None:
    """One line on stderr; that nobody may be there to read it is no reason to fail."""
    with suppress(OSError):
        typer.echo(printable(f"bpnet: {' '.join(message.split())}"), err=True)


def names(several: Iterable[str]) -> str:
    """The names with commas between, of many the first."""
    listed = list(several)
    return ", ".join(listed[:20]) + (f", ... ({len(listed):,} in all)" if len(listed) > 20 else "")


def reason(error: Exception) -> str:
    """What another library's error says, or its kind where it says nothing."""
    return str(error) or type(error).__name__


def load_extra(module: str, what: str, package: str, extra: str = "cli") -> Any:
    """A module, for which `what` needs a package of an extra; raises MissingExtraError."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(what, package, extra) from error


def check_output(option: str, path: Path, **inputs: str | Path) -> None:
    """Raise OptionError, before any work is done, where no file can be written at `path`, or one of `inputs` is it."""
    for name, other in inputs.items():
        if os.path.realpath(other) == os.path.realpath(path):
            raise OptionError(f"{option} is {path}, and so is {name}: expected another file")
    try:
        with suppress(EOFError), write_atomically(path):
            raise EOFError  # a trial that leaves no file, and replaces none
    except OSError as error:
        raise OptionError(f"{option}: {error}") from error


STOP_SIGNALS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)
}
"""The signals that ask a command to end, each with the word for it; the exit status is 128 and its number."""


@contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Have `handler` called on the STOP_SIGNALS, except for those that the caller ignores, as nohup does SIGHUP."""
    numbers = [n for n in STOP_SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, own in zip(numbers, before, strict=True):
            signal.signal(number, own)


def stop(number: int, frame: FrameType | None = None) -> NoReturn:
    """End the command because of a signal."""
    raise KeyboardInterrupt(number)


def signal_of(interrupt: KeyboardInterrupt | SystemExit) -> signal.Signals:
    """The signal that `stop` was called with; Python's own handler, which knows only Ctrl-C, leaves none."""
    if isinstance(interrupt, SystemExit):  # by which a program ends of whom nobody else knows
        return signal.Signals(int(interrupt.code or 128 + signal.SIGTERM) - 128)
    return signal.Signals(interrupt.args[0] if interrupt.args and isinstance(interrupt.args[0], int) else signal.SIGINT)


def in_a_line(error: Exception) -> str:
    """What an error says to a user."""
    if isinstance(error, OSError) and not isinstance(error, BpnetError):
        return str(path_error(str(error.filename or "reading or writing"), error))
    short = isinstance(error, MemoryError) and not isinstance(error, BpnetError)
    return f"there is not enough memory: {error}" if short else str(error)


def report_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what the user got wrong into one line on stderr and exit status 2, and a signal into its own status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with signals_handled(stop):
                return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of the output left, as `head` does: Typer's matter
            raise
        except (OSError, BpnetError, UnicodeError, MemoryError) as error:
            if tells(error):
                warn(in_a_line(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            number = signal_of(error)
            if tells(error):
                warn(f"{STOP_SIGNALS[number]}, nothing was saved")
            raise typer.Exit(128 + number) from None

    return run
