"""Hosts on this machine with a network between them that is as slow as one asks: see ``bench.scaling.relay``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from bench.plan import ROOT
from bench.scaling.relay import address_of, name_of

LAUNCHER = """#!/bin/sh
# Called as ssh would be, by mpiexec: the options, then an address, then a command.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec GROUP-$((${host##*.} - 1)) sh -c "$*"
"""


def why_not() -> str | None:
    """Why there can be no such network here; None where there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the program ip (iproute2) is missing"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    return None


class Network:
    """So many hosts, from `with` on; `set` chooses what a link takes: delay in seconds, bytes a second, share lost."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.group = f"bench{os.getpid() % 10**6}"
        self.folder = Path(tempfile.mkdtemp(prefix="bench-net-"))
        self.launcher = self.folder / "launcher"
        self.launcher.write_text(LAUNCHER.replace("GROUP", self.group), encoding="utf-8")
        self.launcher.chmod(0o755)
        self.relay = subprocess.Popen(
            [sys.executable, "-m", "bench.scaling.relay", json.dumps([self.group, hosts])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer("ready")

    def _answer(self, expected: str) -> None:
        assert self.relay.stdout is not None
        if self.relay.stdout.readline().strip() != expected:
            self.close()
            raise RuntimeError("the network could not be made; the relay's message stands above")

    def set(self, delay: float, rate: float, loss: float = 0.0) -> None:
        assert self.relay.stdin is not None
        print(json.dumps({"delay": delay, "rate": rate, "loss": loss}), file=self.relay.stdin, flush=True)
        self._answer("set")

    def inside(self, host: int) -> list[str]:
        """What goes before a command that is to run on the host."""
        return ["ip", "netns", "exec", name_of(self.group, host)]

    def mpiexec(self, program: str, ranks: int | None = None) -> list[str]:
        """What goes before a command to run it on every host, a rank each: MPICH's mpiexec, at work on the first."""
        ranks = self.hosts if ranks is None else ranks
        addresses = ",".join(address_of(host) for host in range(self.hosts))
        where = ["-launcher", "ssh", "-launcher-exec", str(self.launcher), "-localhost", address_of(0)]
        return [*self.inside(0), program, *where, "-hosts", addresses, "-n", str(ranks)]

    @property
    def environment(self) -> dict[str, str]:
        """By which MPI takes the network also between processes that could share memory.

        UCX's own pieces of 8 KB make a large all-reduce take twice as long where a link is slow: as if it could not
        send and receive at once.
        """
        chosen = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "tun0", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "tun0"}
        return chosen | dict.fromkeys(("UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE"), "256k")

    def sent(self, host: int) -> int:
        """Bytes that have left the host, with the headers of IP and TCP."""
        path = "/sys/class/net/tun0/statistics/tx_bytes"
        found = subprocess.run([*self.inside(host), "cat", path], check=True, capture_output=True, text=True)
        return int(found.stdout)

    def close(self) -> None:
        if self.relay.stdin is not None:
            self.relay.stdin.close()
        self.relay.wait(10)
        if self.relay.stdout is not None:
            self.relay.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
