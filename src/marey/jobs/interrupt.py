"""Being asked to stop, and stopping with everything saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from marey.errors import MareyError


class Interrupted(MareyError):
    """The run was asked to stop and has saved everything."""

    exit_code = 130


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGUSR1 set; a second SIGINT ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), ask) for name in names}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
