#!/usr/bin/env python3
"""What the options of `sluice top` for its display change, on a terminal. Those that name the server are in server_test.py.

usage: top_command_test.py <sluice binary>"""
import os
import pty
import subprocess
import sys
import unittest

from terminal import shown_on_terminal

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv.pop()


class TopDisplayTest(unittest.TestCase):
    def worker(self):
        started = Sluice(BINARY, "bench", "worker")
        self.addCleanup(started.kill)
        return started

    def looks(self, worker):
        return call(f"{worker.url}/sim/counters")[2]["load_reads"]

    def watched(self, *flags):
        """A worker that is looked at."""
        worker = self.worker()
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        top = subprocess.Popen([BINARY, "top", "--url", worker.url, *flags], stdout=theirs)
        self.addCleanup(top.wait)
        self.addCleanup(top.kill)
        os.close(theirs)
        wait_until("it is looked at", lambda: self.looks(worker) > 0)
        return worker

    def test_once(self):
        shown = shown_on_terminal("stdout", [BINARY, "top", "--url", self.worker().url, "--once"], within=30)
        self.assertEqual(shown.count(b"1 rank"), 1)
        self.assertNotIn(b"\x1b", shown, "the terminal is not cleared")

    def test_interval(self):
        # By default there would be a second look at the one before there are twelve at the other.
        seldom, often = self.watched("--interval", "3600"), self.watched("--interval", "0.1")
        wait_until("twelve looks", lambda: self.looks(often) >= 12)
        self.assertEqual(self.looks(seldom), 1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
