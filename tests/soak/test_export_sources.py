"""Random networks as files for NumPy and modules of PyTorch: outputs, and gradients by PyTorch's autograd."""

import subprocess
import sys

import numpy as np
import pytest
from support.exports import batch, gradients, predicted, source
from support.networks import Draw

import bpnet as bp


def networks(soak, count, types):
    for seed in range(10_000 * soak.seed, 10_000 * soak.seed + count):
        problem = Draw(seed, 0).problem()
        for single in types:
            x = batch(problem.x, single)
            yield (
                f"network {seed}, {'float32' if single else 'float64'}",
                bp.Trainer(problem.network, problem.loss).build(x),
                x,
            )


def apart(found, expected):
    """The largest difference, of large outputs relative to them."""
    return float(np.max(np.abs(found - expected) / np.maximum(1.0, np.abs(expected)), initial=0.0))


def test_files_for_numpy(soak, tmp_path):
    failures, worst, cases = [], 0.0, 0
    for what, trainer, x in networks(soak, soak.count(300, 40), (False, True)):
        cases += 1
        error = apart(source(trainer, tmp_path).predict(x), trainer.predict(x))
        worst = max(worst, error)
        failures += [f"{what}: {error:.1e} apart"] * (not error <= 1e-6)
    soak.record("export to NumPy", cases, failures, f"at most {worst:.1e} apart")


def test_modules_of_pytorch(soak):
    """In float64: two libraries' roundings of float32 grow with depth."""
    pytest.importorskip("torch", reason="torch is not installed")
    failures, worst, cases, compared = [], 0.0, 0, 0
    for what, trainer, x in networks(soak, soak.count(300, 15), (False,)):
        cases += 1
        module = bp.files.to_torch_module(trainer)
        error = apart(predicted(module, x), trainer.predict(x))
        worst = max(worst, error)
        failures += [f"{what}: {error:.1e} apart"] * (not error <= 1e-9)
        try:
            compared += gradients(module, trainer, x)
        except AssertionError as wrong:
            failures.append(f"{what}: {wrong}")
    soak.record("export to PyTorch", cases, failures, f"at most {worst:.1e} apart, {compared} gradients")


def test_a_module_where_there_is_no_bpnet(soak, tmp_path):
    """Loaded in another process; but for a sample also exported and compiled by PyTorch."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    code = """
        import sys
        sys.modules["bpnet"] = None
        import torch
        module, x = torch.load("saved.pt", weights_only=False)
        if sys.argv[1] == "whole":
            made = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}).module()
            fast = torch.compile(module, backend="aot_eager", dynamic=True)
            for rows in (x, x[:2]):
                for found in (made(rows), fast(rows)):
                    torch.testing.assert_close(found, module(rows))
        torch.save(module(x).detach(), "outputs.pt")
    """
    layers = (
        bp.Dense(8, "gelu"),
        bp.BatchNorm(),
        bp.Residual(bp.SwiGLU(8)),
        bp.GroupNorm(2),
        bp.Bilinear(4),
        bp.Dense(3),
    )
    x = np.random.default_rng(soak.seed).normal(size=(9, 6)).astype("float32")
    trainer = bp.Trainer(bp.Sequential(*layers), "mse").build(x)
    torch.save((bp.files.to_torch_module(trainer), torch.asarray(x)), tmp_path / "saved.pt")
    lines = "\n".join(line.removeprefix("        ") for line in code.splitlines())
    run = subprocess.run(
        [sys.executable, "-c", lines, "sample" if soak.sample else "whole"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    failures = [run.stderr[-500:]] if run.returncode else []
    if not failures and apart(torch.load(tmp_path / "outputs.pt").numpy(), trainer.predict(x)) > 1e-5:
        failures = ["other outputs"]
    soak.record("export to PyTorch", 1, failures)
