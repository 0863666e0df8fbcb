#!/usr/bin/env python3
"""A wire between a network namespace and a bridge that takes its time, loses frames, or is cut: netem is not in every kernel. Run in
the bridge's namespace.

usage: slow_wire.py <pid in the namespace> <device to make there> <device to make here>

Lines of its input are commands, each answered by a line "ok": "delay <seconds>" of each frame in each direction, "loss <share>",
"cut" and "join". At the end of its input it ends, and the devices with it."""
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def tap(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


class Wire:
    def __init__(self, here, there):
        self.other = {here: there, there: here}
        self.delay, self.loss, self.joined = 0.0, 0.0, True
        self.rng = random.Random(1)
        self.under_way = []  # (when, number, device, frame)
        self.number = 0

    def take(self, device):
        while True:
            try:
                frame = os.read(device, 65536)
            except BlockingIOError:
                return
            if not self.joined or self.rng.random() < self.loss:
                continue
            self.number += 1
            heapq.heappush(self.under_way, (time.monotonic() + self.delay, self.number, self.other[device], frame))

    def deliver(self):
        """Returns the seconds until the next frame is due, or None."""
        while self.under_way:
            left = self.under_way[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, device, frame = heapq.heappop(self.under_way)
            if self.joined:
                try:
                    os.write(device, frame)
                except OSError:
                    pass  # the device is not up, or full: lost
        return None

    def obey(self, command):
        match command.split():
            case ["delay", seconds]:
                self.delay = float(seconds)
            case ["loss", share]:
                self.loss = float(share)
            case ["cut"]:
                self.joined = False
            case ["join"]:
                self.joined = True
            case _:
                sys.exit(f"what is '{command}'?")
        print("ok", flush=True)


def main():
    pid, there, here = sys.argv[1:4]
    outside, inside = tap(here), tap(f"{here}t")
    subprocess.run(["ip", "link", "set", f"{here}t", "netns", pid, "name", there], check=True)
    wire = Wire(outside, inside)
    print("ok", flush=True)
    text = ""
    while True:
        ready, _, _ = select.select([outside, inside, 0], [], [], wire.deliver())
        for device in ready:
            if device != 0:
                wire.take(device)
                continue
            more = os.read(0, 4096).decode()
            if not more:
                return
            *commands, text = (text + more).split("\n")
            for command in commands:
                wire.obey(command)


if __name__ == "__main__":
    main()
