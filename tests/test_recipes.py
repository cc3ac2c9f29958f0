"""Recipes for engines that start our programs: batch scripts and manifests say what these engines read.

The programs of the recipes run as pages do, in test_docs.py.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from docs import pages

CLUSTERS = pages.HERE / "recipes" / "clusters.md"
FILES = {block.file: block.code for block in pages.blocks(CLUSTERS.read_text(encoding="utf-8")) if block.file}


# ---- Slurm ----------------------------------------------------------------------------------------------------------

SBATCH = {
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d+:\d\d(:\d\d)?",
    "signal": r"([RB]+:)?[A-Z]+@\d+",
    "requeue": None,
    "open-mode": r"append|truncate",
    "output": r"[\w%.-]+",
}
"""Options of sbatch, as its manual has them, and what they may be."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the batch script, and programs in the place of Slurm's."""
    if shutil.which("bash") is None or os.name == "nt":
        pytest.skip("a batch script needs bash")
    (tmp_path / "train.sh").write_text(FILES["train.sh"], encoding="utf-8")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("", encoding="utf-8")
    for name in ("srun", "scontrol"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" "threads=$OMP_NUM_THREADS"\nexit "${{{name}:-0}}"\n')
        program.chmod(0o755)
    return tmp_path


def test_the_options_of_a_batch_script_are_those_of_sbatch(job: Path) -> None:
    assert subprocess.run(["bash", "-n", "train.sh"], cwd=job).returncode == 0
    first, *lines = FILES["train.sh"].splitlines()
    assert first == "#!/bin/bash"
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[: len(options)] == options, "sbatch stops reading at the first command"
    for option in options:
        name, _, value = option.removeprefix("#SBATCH --").partition("=")
        wanted = SBATCH[name]
        assert re.fullmatch(wanted, value) if wanted else not value, option


@pytest.mark.parametrize(("code", "again"), [(0, False), (143, True), (1, False)])
def test_a_job_goes_back_into_the_queue_after_sigterm_alone(job: Path, code: int, again: bool) -> None:
    given = {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "17", "srun": str(code)}
    environment = {**os.environ, **given, "PATH": f"{job}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "train.sh"], cwd=job, env=environment, capture_output=True, text=True)
    begun, *then = done.stdout.splitlines()
    assert begun == "srun --mpi=pmi2 --cpus-per-task=8 python train.py --gpus threads=8"
    assert then == (["scontrol requeue 17 threads=8"] if again else [])
    assert (done.returncode, done.stderr) == (code, "")


# ---- Kubernetes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest() -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which reads the manifest, is not installed")
    return yaml.safe_load(FILES["train.yaml"])


SPEC = {
    "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
    "slotsPerWorker": int,
    "sshAuthMountPath": str,
    "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
    "runLauncherAsWorker": bool,
    "runPolicy": {
        "cleanPodPolicy": {"All", "Running", "None"},
        "ttlSecondsAfterFinished": int,
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "suspend": bool,
    },
    "mpiReplicaSpecs": {
        role: {"replicas": int, "restartPolicy": {"Never", "OnFailure"}, "template": {"spec": dict}}
        for role in ("Launcher", "Worker")
    },
}
"""`spec` of an MPIJob, kubeflow.org/v2beta1, as the operator's resource definition and its validation have it."""


def check(value: Any, wanted: Any, place: str = "spec") -> None:
    if isinstance(wanted, dict):
        assert set(value) <= set(wanted), place
        for name, part in value.items():
            check(part, wanted[name], f"{place}.{name}")
    elif isinstance(wanted, set):
        assert value in wanted, place
    else:
        assert type(value) is wanted, place


def test_a_manifest_is_what_the_mpi_operator_reads(manifest: Any) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", manifest["metadata"]["name"])
    check(manifest["spec"], SPEC)
    assert "cleanPodPolicy" in manifest["spec"]["runPolicy"]
    for role, one in manifest["spec"]["mpiReplicaSpecs"].items():
        pod = one["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes, role
        assert all(isinstance(word, str) for word in container["args"]), role  # a number would be none


def test_there_are_as_many_ranks_as_slots_and_gpus(manifest: Any) -> None:
    spec = manifest["spec"]
    launcher, worker = (spec["mpiReplicaSpecs"][role] for role in ("Launcher", "Worker"))
    assert launcher["replicas"] == 1
    (begins,), (works,) = (one["template"]["spec"]["containers"] for one in (launcher, worker))
    words = begins["args"]
    assert int(words[words.index("-n") + 1]) == worker["replicas"] * spec["slotsPerWorker"]
    assert works["resources"]["limits"]["nvidia.com/gpu"] == spec["slotsPerWorker"]
    assert begins["image"] == works["image"]
    python, program = words[words.index("-n") + 2 :][:2]
    assert f"python3 -m venv {Path(python).parent.parent}" in FILES["Dockerfile"]
    assert program in FILES
