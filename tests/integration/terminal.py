"""What a command writes to a terminal."""
import os
import pty
import subprocess
import threading


def shown_on_terminal(stream, command, within, **settings):
    """The bytes of `stream` ("stdout" or "stderr") of a command that ends by itself, with status 0, within so many seconds."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, **{stream: theirs}, **settings)
    os.close(theirs)
    bound = threading.Timer(within, process.kill)
    bound.start()
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    status = process.wait()
    bound.cancel()
    os.close(ours)
    if status != 0:
        raise AssertionError(f"{command} ended with {status}: {shown}")
    return shown
