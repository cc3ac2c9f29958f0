"""bpnet check: everything that a library has in the place of definitions, tried on a device."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from bpnet import backends, check_backend
from bpnet.cli.terminal import AsJSON, option, printable, report
from bpnet.errors import BpnetError

Device = Annotated[
    str | None, option("DEVICE", "cuda, cuda:1, numpy, torch or jax; CUDA's first device if there is one.")
]


def check(device: Device = None, as_json: AsJSON = False) -> None:
    """Try every technique on the device against its definition, and print a table; exit with 1 if one is wrong."""
    backend, place = backends.device_named(device or default_device())
    found = check_backend(backend.from_host(0.0, device=place))
    report(found.to_dict(), as_json)
    if not as_json:
        console = Console(width=None if sys.stdout.isatty() else 200, soft_wrap=True)
        for line in str(found).splitlines():
            bad = "WRONG" in line or "refused" in line
            console.print(printable(line), style="red" if bad else None, highlight=False, markup=False)
    if not found.ok:
        raise typer.Exit(1)


def default_device() -> str:
    """The first CUDA device where CuPy finds one, else the processor."""
    try:
        backends.check_device("cuda")
    except (BpnetError, ImportError):
        return "numpy"
    return "cuda:0"
