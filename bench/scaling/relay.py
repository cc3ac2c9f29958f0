"""A network of chosen delay, bandwidth and loss: namespaces joined by a relay, ``python -m bench.scaling.relay``.

Linux only, as root.  Each of n hosts is a network namespace with one TUN device, `tun0`, of the address 10.77.0.i.  The
relay reads packets from all devices and writes each to the device of its destination when its time has come: as on a
switch that cuts through, a packet leaves its sender when those before it have left at the rate of the link, arrives
after the delay, and takes the receiver's link for as long as its bytes need.  So an idle link takes delay + bytes /
rate.  The kernel's own netem would do the same where it is built; it often is not, and this needs nothing of it.

The order comes as JSON on the command line, and new delays and rates as lines on the standard input, whose end ends
everything.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from contextlib import suppress

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 65000
"""Long packets cost the relay little; they also keep TCP's slow start out of the figures, since it counts packets."""
SUBNET = "10.77.0"
SETTINGS = (
    *("net.ipv4.tcp_rmem=4096 8388608 67108864", "net.ipv4.tcp_wmem=4096 8388608 67108864"),
    "net.ipv4.tcp_slow_start_after_idle=0",
)
"""Windows of TCP that a link's bandwidth times its delay doesn't fill, as on a cluster that was tuned."""


def name_of(group: str, host: int) -> str:
    """The namespace of a host."""
    return f"{group}-{host}"


def address_of(host: int) -> str:
    return f"{SUBNET}.{host + 1}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def make_host(group: str, host: int) -> int:
    """A namespace with `tun0` in it; returns the file descriptor of the device's other side."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    here = f"{group[-8:]}{host}"  # until it has moved: at most 15 characters
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", here.encode(), IFF_TUN | IFF_NO_PI))
    name = name_of(group, host)
    _ip("netns", "add", name)
    _ip("link", "set", here, "netns", name)
    inside = ("-n", name)
    _ip(*inside, "link", "set", here, "name", "tun0")
    _ip(*inside, "link", "set", "tun0", "mtu", str(MTU), "txqueuelen", "4000")
    _ip(*inside, "addr", "add", f"{address_of(host)}/24", "dev", "tun0")
    for setting in SETTINGS:
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", setting], check=False, capture_output=True)
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "link", "set", "tun0", "up")
    return device


class Relay:
    """Packets on their way between the devices, with the link that each host has."""

    def __init__(self, devices: list[int]) -> None:
        self.devices = devices
        self.delay, self.rate, self.loss = 0.0, float("inf"), 0.0  # seconds, bytes a second, share of packets
        self.leaving = [0.0] * len(devices)  # when the last packet of each host has left, and reached
        self.arriving = [0.0] * len(devices)
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.count = 0
        self.random = random.Random(0)

    def take(self, host: int) -> None:
        """Read what a host sends, and note when each packet is due."""
        while True:
            try:
                packet = os.read(self.devices[host], 65536)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4 or packet[16:19] != bytes(map(int, SUBNET.split("."))):
                continue
            to = packet[19] - 1
            if not 0 <= to < len(self.devices) or self.random.random() < self.loss:
                continue
            now, takes = time.monotonic(), len(packet) / self.rate
            begins = max(now, self.leaving[host])
            self.leaving[host] = begins + takes
            due = max(begins + self.delay, self.arriving[to]) + takes
            self.arriving[to] = due
            self.count += 1
            heapq.heappush(self.waiting, (due, self.count, to, packet))

    def give(self) -> float | None:
        """Write the packets that are due; returns the seconds until the next is, None where there is none."""
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, to, packet = heapq.heappop(self.waiting)
            with suppress(BlockingIOError):  # the host's queue is full: the packet is lost, as on a switch
                os.write(self.devices[to], packet)
        return None

    def run(self) -> None:
        """Relay until the standard input ends; its lines set delay, rate and loss."""
        poll = selectors.DefaultSelector()
        poll.register(0, selectors.EVENT_READ, None)
        for host, device in enumerate(self.devices):
            poll.register(device, selectors.EVENT_READ, host)
        left: float | None = None
        while True:
            for key, _ in poll.select(left):
                if key.data is None:
                    line = os.read(0, 4096)
                    if not line:
                        return
                    for told in line.decode().splitlines():
                        for name, value in json.loads(told).items():
                            setattr(self, name, float(value))
                    print("set", flush=True)
                else:
                    self.take(key.data)
            left = self.give()


def main() -> None:
    group, hosts = json.loads(sys.argv[1])
    with suppress(OSError):  # the relay needs little time, but at once, also while ranks spin on every core
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    devices: list[int] = []
    try:
        devices += [make_host(group, host) for host in range(hosts)]
        print("ready", flush=True)
        Relay(devices).run()
    finally:
        for host in range(hosts):
            subprocess.run(["ip", "netns", "del", name_of(group, host)], check=False, capture_output=True)


if __name__ == "__main__":
    main()
