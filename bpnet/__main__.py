"""`python -m bpnet`, and the `bpnet` command."""

import sys


def main() -> None:
    """Run the command line; say what to install where its libraries are missing."""
    try:
        from bpnet import cli
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        print(f"bpnet: the command line needs {missing}: pip install 'bpnet-xp[cli]'", file=sys.stderr)
        sys.exit(2)
    cli.app(prog_name="bpnet")


if __name__ == "__main__":
    main()
