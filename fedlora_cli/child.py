"""Starts a service so that it never outlives the process that started it.

    python -m fedlora_cli.child PARENT_PID MODULE [ARGUMENT...]

On Linux the kernel is asked to kill this process when its parent dies (prctl PR_SET_PDEATHSIG; the
request survives exec), so even a parent that is killed with SIGKILL leaves nothing behind; the
services are built to be killed at any moment. Elsewhere a thread waits for standard input, a pipe
whose other end only the parent holds, to close.

The request is tied to the thread that started this process: the parent must start its children
from its main thread.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends.

    Args:
        parent: process id of that thread's process.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the request was made.
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _end_when_input_closes() -> None:
    while os.read(0, 4096):
        pass
    os._exit(128 + signal.SIGKILL)


def main() -> None:
    """Arranges the end, then becomes the module named."""
    parent, module, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        die_with_parent(int(parent))
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
    threading.Thread(target=_end_when_input_closes, daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
