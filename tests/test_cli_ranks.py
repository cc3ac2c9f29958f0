"""`mpiexec -n N bpnet train ...`: several processes that act as one program."""

import re

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import MissingExtraError

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("pyarrow", reason="reading tables needs pyarrow (the cli extra)")

from support.ranks import Run, threads

from bpnet.cli import ranks
from tests.support.command import ok
from tests.test_streamed_tables import OPTIONS, flights, write

SMALL = ("--hidden", "8", "--epochs", "3", "--batch-size", "64", "--dropout", "0", "--drop", "delay")

COMMANDS = """
    import sys
    from bpnet.__main__ import main

    words = " ".join(sys.argv[1:])
    for command in words.split(" then "):
        sys.argv = ["bpnet", *command.split()]
        try:
            main()
        except SystemExit as ended:
            print(f"code {ended.code or 0}", file=sys.stderr, flush=True)
"""
"""Several commands, one after the other, in each of the processes."""


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def without_times(text):
    """What is printed, but for what no two runs have in common."""
    return re.sub(r"\d+\.\d s", "N s", text.replace(", by 2 processes", ""))


def test_processes_act_as_one_program():
    path = write(flights())
    train = f"train {path} -t kind {' '.join(SMALL)}"
    commands = (
        f"{train} --checkpoint steps --every 10 -o two.safetensors",
        f"{train} --stream -q --json -o three.safetensors",
        f"train {path} -t kinds",
        "train nowhere.csv -t kind",
        f"train {path} -t kind --epoch 3",
        f"{train} --search 2",
        f"evaluate two.safetensors {path} -q",
    )
    run = Run(2, COMMANDS, *" then ".join(commands).split())
    ended = run.end(100.0)
    assert ended.code == 0, ended.err
    alone = ok(*train.split(), "-o", "two.safetensors")
    result, _, rest = ended.out.partition('{"loss"')
    assert without_times(result) == without_times(alone.out)
    streamed, _, rest = rest.partition("\n")
    assert '"backend": "numpy"' in streamed
    assert re.fullmatch(r"accuracy .* on 300 rows, held out from training\n", rest)
    told, lines = ended.err.splitlines(), alone.err.splitlines()
    assert re.fullmatch(r"2 ranks: processes \d+, \d+ on .*", told.pop(1))
    assert told[: len(lines)] == lines
    errors = [line for line in told[len(lines) :] if line.startswith("bpnet: ") and "never varies" not in line]
    starts = f"{path} has no column 'kinds'", "nowhere.csv: No such file", "--search tries out options in one process"
    assert len(errors) == len(starts)
    assert all(line.startswith(f"bpnet: {start}") for line, start in zip(errors, starts, strict=True)), errors
    assert ended.err.count("No such option: --epoch") == 1
    assert [line for line in told if line.startswith("code")] == [f"code {code}" for code in (0, 0, 2, 2, 2, 2, 0)]
    for name in ("two.safetensors", "three.safetensors"):
        assert bp.load(name).trainer.step_count == 3 * 19
    resumed = ok(*train.split(), "--checkpoint", "steps", "--resume")  # by one process what two have begun
    assert "the training in steps was complete after epoch 3" in resumed.out


def trained(communicator, path, stream):
    """A model that this rank has helped to train."""
    options = OPTIONS | {"drop": "delay", "progress": False, "distributed": communicator, "stream": stream}
    return bp.train_table(path, "kind", **options)


@pytest.mark.filterwarnings("ignore:column")
@pytest.mark.parametrize("stream", [False, True])
def test_models_are_those_of_one_process(stream):
    path = write(flights())
    alone = trained(None, path, stream)
    for model in threads(2, trained, path, stream):
        np.testing.assert_allclose(model.trainer.theta, alone.trainer.theta, atol=2e-5)
        assert model.schema == alone.schema


def test_what_one_cannot_read_ends_all():
    write(flights())

    def reads(communicator):
        return trained(communicator, "flights.parquet" if communicator.rank else "flight.parquet", True)

    with pytest.raises(FileNotFoundError, match=r"flight\.parquet.* \(on rank 0\)"):
        threads(2, reads)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}, (1, 2)),
        ({"PMIX_RANK": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, (3, 8)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, (0, 1)),  # srun without MPI
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, (0, 1)),
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, (0, 1)),
    ],
)
def test_launchers_are_known_by_what_they_say(environment, expected):
    assert ranks.launched(environment) == expected


def test_what_is_missing_for_several_processes_is_named(monkeypatch):
    monkeypatch.setattr(ranks, "launched", lambda: (0, 4))
    monkeypatch.setattr("bpnet.distributed.mpi.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"training by 4 processes needs mpi4py: pip install 'bpnet-xp\[mpi\]'"):
        ranks.connected().__enter__()
