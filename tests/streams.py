"""Live sources for tests: a server that sends what it is given, and waits where it is told to."""

import socket
import threading
from contextlib import contextmanager

PATIENCE = 60.0  # seconds after which a test that hangs fails


@contextmanager
def streaming(*parts):
    """The address of a source that sends these bytes; at an Event among them it waits until that is set."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send():
            try:
                connection, _ = server.accept()
                with connection:
                    for part in parts:
                        if isinstance(part, threading.Event):
                            part.wait(PATIENCE)
                        else:
                            connection.sendall(part)
            except OSError:  # the reader went away
                pass

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            for part in parts:
                if isinstance(part, threading.Event):
                    part.set()
            thread.join(PATIENCE)
