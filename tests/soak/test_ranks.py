"""Ranks of a training that are killed, stopped, hang or fail: the run ends, and goes on from its last checkpoint."""

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ranked
from support.rank_work import others
from support.ranks import Run, mpiexec

import bpnet as bp

TIMEOUT = 3.0
SLACK = 10.0
"""Seconds beside the time limit until all must have ended: what mpiexec takes, on a machine that does other things."""
HOW = {  # what happens to a rank, and how often of a hundred times
    "SIGKILL": 60,
    "raises": 12,
    "SIGSTOP": 8,
    "SIGTERM": 6,
    "SIGINT": 4,
    "sleeps": 4,
    "loops": 4,
    "mpiexec SIGKILL": 2,
}


def wrong_files(folder, steps):
    """What is wrong with the checkpoints that were left when so many steps were done."""
    newest = 0
    for path in (folder / "run").glob("*.safetensors"):
        try:
            count = bp.load(path).step_count
        except Exception as error:
            return f"{path.name}: {error}"
        newest = max(newest, count if path.name.startswith("step-") else 0)
    if newest < steps - ranked.EVERY:
        return f"after {steps} steps the newest checkpoint is of {newest}"
    return None


def test_trainings_of_which_a_rank_ends_at_a_random_moment(soak, tmp_path):
    rng = np.random.default_rng(soak.seed)
    cases, failures, done, trainings, seen, slowest = soak.count(100, 1), [], 0, 0, {}, 0.0
    epochs = soak.count(20, 4)
    wanted = ranked.train(None, None, epochs)
    while done < cases and not failures:
        folder = tmp_path / str(trainings)
        folder.mkdir()
        finished = False
        while not finished:
            count, how = int(rng.integers(2, 5)), rng.choice([*HOW], p=np.array([*HOW.values()]) / 100.0)
            rank, more = int(rng.integers(count)), int(rng.integers(1, 40))
            how = "" if done >= cases else str(how)
            before = max(ranked.told(folder), default=0) // ranked.EVERY * ranked.EVERY
            for path in folder.glob("steps.*"):
                path.unlink()
            ranked.begin(folder, count)
            inside = how if how.islower() else ""
            args = (str(folder), epochs, inside, before + more, rank)
            run = Run(count, ranked.train, *args, timeout=TIMEOUT)
            struck = time.time()
            if how and not inside:
                struck = strike(run, folder, how, rank, before, more, rng)
            ended = run.end(120.0)
            finished = ended.code == 0
            steps = max(ranked.told(folder))
            where = f"training {trainings}, rank {rank} of {count} {how} after {steps} steps"
            if inside and not finished:
                struck = max(path.stat().st_mtime for path in folder.glob("steps.*"))
            if how and not finished:
                done += 1
                seen[how] = seen.get(how, 0) + 1
                slowest = max(slowest, ended.at - struck)
            if ended.left:
                failures.append(f"{where}: processes {ended.left} are left")
            elif not finished and ended.at - struck > TIMEOUT + SLACK:
                failures.append(f"{where}: it took {ended.at - struck:.1f} s to end")
            elif not finished and not how:
                failures.append(f"{where}: it failed by itself:\n{ended.err[-2000:]}")
            elif ended.err.count("Traceback") > 1:
                failures.append(f"{where}: more than one message:\n{ended.err[-4000:]}")
            elif why := wrong_files(folder, steps):
                failures.append(f"{where}: {why}")
            if failures:
                break
        else:
            trainings += 1
            for rank, theta in ended.values.items():
                if not np.allclose(theta, wanted, rtol=0.0, atol=1e-9):
                    failures.append(f"training {trainings}: rank {rank} ended otherwise than one process would")
            left = [path.name for path in (folder / "run").iterdir() if path.name.endswith(".part")]
            if left:
                failures.append(f"training {trainings} left {left}")
            shutil.rmtree(folder)
    shown = ", ".join(f"{count} {how}" for how, count in seen.items())
    detail = (
        f"{trainings} trainings, resumed with other numbers of ranks ({shown}); the last to end took {slowest:.1f} s"
    )
    soak.record("ranks", done, failures, detail)


def strike(run, folder, how, rank, before, more, rng):
    """Send a signal to a rank, or to mpiexec, at a random moment; gives the time."""
    limit = time.monotonic() + 30.0
    while time.monotonic() < limit and run.process.poll() is None:
        if len(processes := run.processes()) and max(ranked.told(folder)) >= before + more:
            break
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.02))
    processes = run.processes()
    to = run.process.pid if how.startswith("mpiexec") else processes.get(rank)
    if to is not None and run.process.poll() is None:
        os.kill(to, getattr(signal, how.split()[-1]))
    return time.time()


ENDS = {  # what all ranks do: the exit status, and what is said once
    "all raise": (1, "ValueError: the same on all"),
    "all raise, marked": (1, "ValueError: the same on all"),
    "each raises another": (1, "ValueError: row 0"),
    "out of step": (1, r"the ranks are not at the same place of the program: rank 0 \(.*\) is at broadcast; rank 1 \("),
    "exits": (None, r"rank 2 \(.*\) is at the end of its program"),
    "a pause": (0, ""),
}


def test_errors_of_several_ranks_are_shown_once(soak):
    failures, tried = [], list(ENDS)[:: soak.count(1, 3)]
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda how: Run(3, others, how, timeout=2.0).end(60.0), tried))
    for how, ended in zip(tried, ends, strict=True):
        code, text = ENDS[how]
        if (code is not None and ended.code != code) or (code is None and ended.code == 0) or ended.left:
            failures.append(f"{how}: it ended with {ended.code}, {len(ended.left)} left:\n{ended.err[-2000:]}")
        elif ended.err.count("Traceback") != (code != 0) or (text and not re.search(text, ended.err, re.DOTALL)):
            failures.append(f"{how}: it said {ended.err[-3000:]}")
    soak.record("ranks", len(tried), failures, "errors of several ranks at once, shown once")


NEVER_COMES = """
    import os
    import time

    import bpnet as bp

    if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
        time.sleep(100.0)
    bp.distributed.MPI(timeout=1.0).connect()
"""


def test_a_rank_that_never_comes(soak):
    """The others wait for ten time limits, since ranks may start late; also where MPI itself waits."""
    if soak.sample:
        pytest.skip("not in a sample")
    ended = Run(3, NEVER_COMES).end(60.0)
    said = re.findall(r"rank 0 \(.*\) has waited 10 s for the others to connect", ended.err)
    failures = [] if ended.code and len(said) == 1 and not ended.left else [f"it ended with {ended.code}: {ended.err}"]
    soak.record("ranks", 1, failures, "a rank that never comes")


@pytest.mark.parametrize("what", ["slow", "down"])
def test_networks(what, soak):
    """Two ranks in network namespaces, with a delay and lost packets; and a link that is gone in the middle."""
    network = pytest.importorskip("bench.scaling.network", reason="bench is not here")
    if why := network.why_not():
        pytest.skip(why)
    if "HYDRA" not in subprocess.run([mpiexec(), "--version"], capture_output=True, text=True).stdout:
        pytest.skip("namespaces are hosts for MPICH's mpiexec alone")
    if soak.sample and what == "slow":
        pytest.skip("not in a sample")
    failures = []
    with network.Network(2) as net:
        net.set(delay=5e-3, rate=12.5e6, loss=0.01)
        launcher = net.mpiexec(mpiexec())
        run = Run(
            2,
            others,
            "sums" if what == "slow" else "sums for ever",
            env=net.environment,
            launcher=launcher,
            timeout=TIMEOUT,
        )
        if what == "down":
            limit = time.monotonic() + 30.0
            while len(run.processes()) < 2 and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(2.5)
            net.set(delay=5e-3, rate=12.5e6, loss=1.0)
        struck = time.time()
        ended = run.end(120.0)
        if what == "slow" and (ended.code != 0 or ended.err):
            failures.append(f"a slow network: it ended with {ended.code}: {ended.err[-2000:]}")
        if what == "down":
            # each rank may find that the other does not answer, or has ended for that reason
            if ended.code == 0 or not re.search(r"rank \d \(.*\) (does not answer|is gone)", ended.err):
                failures.append(f"a link that is gone: it ended with {ended.code}: {ended.err[-2000:]}")
            if ended.at - struck > TIMEOUT + SLACK:
                failures.append(f"a link that is gone: it took {ended.at - struck:.1f} s to end")
    soak.record("ranks", 1, failures, f"a network that is {what}")
