"""The command line: train a network on a data set, evaluate it, predict with it, export it, show what is installed.

Results go to stdout, progress and errors to stderr.  What a user got wrong is one line and exit status 2.
"""

from typing import Annotated

import typer

from bpnet import __version__
from bpnet.cli import check, evaluate, export, info, predict, ranks, train
from bpnet.cli.terminal import Command, report_errors


def show_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        typer.echo(f"bpnet {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
]


def main(version: Version = False) -> None:
    """Train a network by backpropagation, on whichever array library you choose."""


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(main)
app.command(cls=Command)(report_errors(ranks.as_one(train.train)))
for command in (evaluate.evaluate, predict.predict, export.export, info.info, check.check):
    app.command(cls=Command)(ranks.by_one(report_errors(command)))
