"""`check_backend` and `bpnet check`: every technique against its definition, and what is wrong is switched off."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet import checking
from bpnet.backends.techniques import Finding, difference
from bpnet.registry import Registered, examples

FAMILIES = (bp.Layer, bp.Loss, bp.Optimizer, bp.Schedule)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_in_the_catalogue_has_an_example(family: type[Registered]) -> None:
    found = examples(family)
    assert found
    assert all(isinstance(example, family) for example in found.values())


@pytest.mark.parametrize("name", ["numpy", "numpy-jit", "torch"])
def test_everything_is_right_here(name: str, library: Any) -> None:
    if name == "numpy-jit":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    report = bp.check_backend(library(name).array(np.zeros(2, "float32")))
    assert report.ok, str(report)
    assert {f.part for f in report.findings} == {"layers", "losses", "optimizers", "training steps"}
    assert not any(f.refused for f in report.findings)
    for family in FAMILIES[:3]:
        for each, example in examples(family).items():
            if not getattr(example, "traceable", True):  # as a line search, which is not compiled
                continue
            assert any(f.problem.startswith(f"{each}, ") for f in report.findings), each


@pytest.mark.gpu
def test_everything_is_right_on_the_device(library: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path / "cache"))
    report = bp.check_backend(library("cupy").array(np.zeros(2, "float32")))
    assert all(f.ok for f in report.findings), str(report)


def test_a_wrong_derivative_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one entry alone, which the report names."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    right = bp.Tanh.derivative

    def derivative(self: bp.Tanh, b: Any, y: Any, dy: Any) -> Any:
        return right(self, b, y, dy) * (1.0 + 1e-3 * (b.name == "torch"))  # not of the definition

    monkeypatch.setattr(bp.Tanh, "derivative", derivative)
    report = bp.check_backend(torch.zeros(2))
    wrong = {f.problem.partition(",")[0] for f in report.findings if not f.ok and f.part == "layers"}
    assert wrong == {"tanh", "Sequential", "Residual"}
    assert not report.ok
    assert "WRONG" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_a_difference_is_of_the_largest_value() -> None:
    assert difference(np.array([1.0, -4.0]), np.array([1.0, -4.4])) == pytest.approx(0.4 / 4.4)
    assert difference(np.array([np.nan]), np.array([1.0])) == np.inf
    assert difference(np.zeros(2), np.zeros(3)) == np.inf


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_the_command(option: list[str]) -> None:
    command = [sys.executable, "-m", "bpnet", "check", "--device", "numpy", *option]
    pytest.importorskip("typer", reason="typer is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] if option else "everything is right" in done.stdout


def test_the_command_exits_with_1_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer", reason="typer is not installed")
    from typer.testing import CliRunner

    from bpnet import cli

    wrong = Finding("compiled code", "layers", "tanh, 1 x 12", 0.5, 1e-5)
    monkeypatch.setattr(checking, "_everything", lambda *_: iter([wrong]))
    done = CliRunner().invoke(cli.app, ["check", "--device", "numpy"])
    assert done.exit_code == 1
    assert "tanh, 1 x 12" in done.output
