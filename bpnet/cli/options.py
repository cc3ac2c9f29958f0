"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[str, typer.Argument(metavar="DATA", help="digits, or a .npz (x, y), .csv or .parquet file.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that bpnet train has written.")]
Target = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column of a .csv or .parquet file to be learnt.")
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="The array library: numpy, cupy, torch or jax.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
