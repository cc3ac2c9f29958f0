"""`python -m bpnet`, and the `bpnet` command."""

import os
import sys


def open_standard_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed, or the next file takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal can't show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; say what to install where its libraries are missing."""
    open_standard_streams()
    try:
        from bpnet import cli
    except KeyboardInterrupt:  # while all that is being loaded
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        print(f"bpnet: the command line needs {missing}: pip install 'bpnet-xp[cli]'", file=sys.stderr)
        sys.exit(2)
    cli.ranks.silence()
    cli.app(prog_name="bpnet")


if __name__ == "__main__":
    main()
