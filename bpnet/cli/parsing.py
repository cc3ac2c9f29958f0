"""What words on the command line of `bpnet train` mean, and errors in those words."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import bpnet as bp
from bpnet.cli.options import KINDS
from bpnet.errors import DataError, DTypeError, OptionError, shown
from bpnet.tabular.options import TrainingOptions


def parse_hidden(text: str) -> list[int]:
    """`256,128` as [256, 128]."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise OptionError(
            f"--hidden is {shown(text)}; expected whole numbers of at least 1 and less than a billion, with commas "
            "between, as 256,128"
        )
    return list(map(int, parts))


def quantile_loss(loss: str, text: str) -> bp.Quantile:
    """The loss for the quantiles of `0.05,0.5,0.95`."""
    if loss not in ("auto", "quantile"):
        raise OptionError(f"--quantiles is for --loss quantile, but --loss is {shown(loss)}: leave one out")
    try:
        levels = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise OptionError(
            f"--quantiles is {shown(text)}; expected numbers between 0 and 1, with commas between, as 0.05,0.5,0.95"
        ) from None
    return bp.Quantile(levels)


def parse_types(given: Sequence[str] | None) -> dict[str, str]:
    """`a=number` and `b=text,c=date` as {"a": "number", "b": "text", "c": "date"}."""
    found = {}
    for text in given or ():
        parts = [text] if text.count("=") == 1 else text.split(",")
        for part in parts:
            name, equals, kind = part.rpartition("=")
            if not equals or kind.strip() not in KINDS:
                raise OptionError(f"--types is {shown(text)}; expected COLUMN=KIND, a kind being {', '.join(KINDS)}")
            found[name.strip()] = kind.strip()
    return found


def in_options(text: str) -> str:
    """What `train_table` says of columns, in the words of the command: `types={'a': 'text'}` as `--types 'a=text'`."""
    return re.sub(r"types=\{(['\"])(.*)\1: '(\w+)'\}", r"--types \1\2=\3\1", text)


@contextmanager
def options_named() -> Iterator[None]:
    """Errors about options of `train_table` name those of the command."""
    names = {name: name.replace("_", "-") for name in (*TrainingOptions.__dataclass_fields__, "folds", "quantiles")}
    names["early_stopping"] = "patience"
    try:
        yield
    except OptionError as error:
        word, _, rest = str(error).partition(" ")
        bare = word.partition("[")[0]
        raise type(error)(f"--{names[bare]} {rest}" if bare in names else str(error)) from None
    except (DataError, DTypeError) as error:
        raise type(error)(in_options(str(error))) from None
