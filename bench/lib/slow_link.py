"""Two hosts on one machine with a slow network between them: network namespaces whose packets pass this process, which holds each for a
while. Needs to run in a network namespace of its own, as root there (`enter`), and /dev/net/tun; netem is not in every kernel."""
import collections
import fcntl
import os
import struct
import subprocess
import sys
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
INSIDE = "SLUICE_SLOW_LINK_INSIDE"
# Packets as large as they may be: each costs this process as much as a small one.
MTU = 32000


def enter():
    """Starts the program anew in a network of its own."""
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


def run(*command):
    subprocess.run(command, check=True, timeout=30)


class Host:
    """A namespace: `address` is on the slow network, `near` can be reached from this process."""

    def __init__(self, number):
        self.address, self.near = f"10.214.0.{10 + number}", f"10.215.{number}.2"
        # It ends with this program.
        self._holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._holder.stdout.readline()
        self.enter = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]
        name = f"slow{number}"
        self.tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        pid = str(self._holder.pid)
        run("ip", "link", "set", name, "netns", pid)
        run(*self.enter, "ip", "link", "set", name, "mtu", str(MTU), "up")
        run(*self.enter, "ip", "addr", "add", f"{self.address}/24", "dev", name)
        run(*self.enter, "ip", "link", "set", "lo", "up")
        run("ip", "link", "add", f"near{number}", "type", "veth", "peer", "name", "near", "netns", pid)
        run("ip", "addr", "add", f"10.215.{number}.1/24", "dev", f"near{number}")
        run("ip", "link", "set", f"near{number}", "up")
        run(*self.enter, "ip", "addr", "add", f"{self.near}/24", "dev", "near")
        run(*self.enter, "ip", "link", "set", "near", "up")


class SlowLink:
    """Between two hosts. `delay` in seconds, one way; may be set at any time."""

    def __init__(self, first, second, delay=0.0):
        self.delay = delay
        for source, to in ((first.tun, second.tun), (second.tun, first.tun)):
            waiting, some = collections.deque(), threading.Semaphore(0)
            threading.Thread(target=self._take, args=(source, waiting, some), daemon=True).start()
            threading.Thread(target=self._bring, args=(to, waiting, some), daemon=True).start()

    def _take(self, source, waiting, some):
        while True:
            packet = os.read(source, 65536)
            waiting.append((time.monotonic() + self.delay, packet))
            some.release()

    @staticmethod
    def _bring(to, waiting, some):
        while True:
            some.acquire()
            due, packet = waiting.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                os.write(to, packet)
            except OSError:
                pass  # as packets get lost
