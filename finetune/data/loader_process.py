"""Set-up of loader processes. A module of its own, as whatever it imports, each of them imports: no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def set_up_loader_process() -> None:
    """Leave signals to the trainer, and end when it has ended, however it died.

    A terminal (Ctrl+C) and some schedulers (SIGTERM) signal the whole process group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # ignoring SIGTERM is no choice: the pool ends its processes with it
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
