"""Wires that take time: what enters at a host's end leaves at the switch's end later.

    ip netns exec SWITCH python delayed_wire.py WIRES SECONDS

Makes two TAP interfaces for each wire, wireK (to be moved into a host, where it becomes eth0)
and portK, says "ready", and hands every frame on until it is killed. On the way from a host it
waits for so many seconds, on the way back not at all: from host to host is one delay. tc's netem
does the same inside the kernel, but a kernel need not have it; TUN is nearly always there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
LARGEST_FRAME = 65_536
AT_ONCE = 64
"""Frames that are taken from one interface before the others have their turn."""


def tap(name: str) -> int:
    """A new TAP interface; it lives as long as the file."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def frames(file: int) -> list[bytes]:
    """What waits there, some of it."""
    found = []
    for _ in range(AT_ONCE):
        try:
            found.append(os.read(file, LARGEST_FRAME))
        except BlockingIOError:
            break
    return found


def put(file: int, frame: bytes) -> None:
    """Hands a frame over; as on any wire, it is lost where the other end is down."""
    try:
        os.write(file, frame)
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def carry(wires: int, delay: float) -> None:
    hosts = [tap(f"wire{k}") for k in range(wires)]
    ports = [tap(f"port{k}") for k in range(wires)]
    other = dict(zip((*hosts, *ports), (*ports, *hosts), strict=True))
    from_host = set(hosts)
    print("ready", flush=True)
    # All wait equally long: the first to come is the first to go.
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(other, (), (), pause)
        now = time.monotonic()
        for file in ready:
            for frame in frames(file):
                if file in from_host:
                    waiting.append((now + delay, other[file], frame))
                else:
                    put(other[file], frame)
        while waiting and waiting[0][0] <= now:
            _, file, frame = waiting.popleft()
            put(file, frame)


if __name__ == "__main__":
    carry(int(sys.argv[1]), float(sys.argv[2]))
