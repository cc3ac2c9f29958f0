"""The command line as tests call it."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bpnet as bp
from bpnet import cli


class Result:
    """What a command did."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


def run(*args):
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.app([str(a) for a in args], prog_name="bpnet")
    return Result(stopped.value.code or 0, out.getvalue(), err.getvalue())


def ok(*args):
    """Run a command that must succeed."""
    result = run(*args)
    assert result.status == 0, result.err
    return result


def refused(*args):
    """Run a command that must fail with one line on stderr, exit status 2 and nothing on stdout; the line."""
    result = run(*args)
    assert (result.status, result.out) == (2, ""), result.err
    assert re.fullmatch(r"bpnet: [^\n]+\n", result.err), result.err
    return result.err


def environment():
    """For a subprocess that is to use the bpnet under test, wherever it starts."""
    return os.environ | {"PYTHONPATH": str(Path(bp.__file__).parents[1])}


def start(*args, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "bpnet", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), **(pipes | options))
