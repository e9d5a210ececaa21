"""Set-up of loader processes. A separate module without torch, as every loader process imports what it imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def set_up_loader_process() -> None:
    """Ignore signals meant for the trainer, and exit when the trainer has exited for any reason.

    A terminal (Ctrl+C) and some schedulers (SIGTERM) signal the whole process group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # SIGTERM cannot be ignored instead: the pool ends its processes with it
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
