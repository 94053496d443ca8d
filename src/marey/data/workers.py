"""Work in processes of its own, so that a decoder that crashes or hangs takes nothing along.

Each thread of a pool owns one worker process and one pipe (`marey.data.pipes`): it sends a task, waits for
the answer no longer than the time limit, and replaces a worker that died or hung.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from marey.data.pipes import Message, pack, read, unpack, write
from marey.errors import EnvironmentFault, MareyError, MediaError

Task = TypeVar("Task")
Result = TypeVar("Result")

START_SECONDS = 180.0  # the first worker imports torch, perhaps from a slow disk
_TICK = 0.5  # seconds between looks at whether the pool was closed
_PARENTS_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # may reach all processes of a job, but are its parent's
_PRELOAD = ["marey.data.clips"]  # imported once, in the process that all workers are forked from


class Pool:
    """Worker processes that serve any number of runs.

        with Pool(workers=4, seconds=60) as pool:
            for task, result in pool.run(load, tasks): ...

    workers   processes; 0: everything runs in this one, without a time limit
    seconds   time limit of one task

    A result is what the function returned or the MareyError it raised. Other errors come as MareyError
    INTERNAL with the traceback in their notes; a worker that ends or exceeds the limit gives MediaError
    DECODER_DIED or DECODER_HUNG. All name the task's `path` (or the task).
    """

    def __init__(self, workers: int, seconds: float) -> None:
        self.workers, self.seconds = workers, seconds
        self._threads = ThreadPoolExecutor(max(workers, 1), "marey-worker")
        self._own = threading.local()
        self._started: list[_Worker] = []
        self._closed = threading.Event()
        self._moved = time.monotonic()  # when a task last ended
        atexit.register(self.close)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        prefetch: int | None = None,
        ordered: bool = True,
    ) -> Iterator[tuple[Task, Result | MareyError]]:
        """Each task with its result, in the order of the tasks, or (ordered=False) as they end.

        function is a module's (it is pickled by name); tasks and results are pickled too.
        prefetch is how many tasks are begun and not yet yielded, by default twice the workers; `tasks` may
        be endless. Several runs may go on at once. Raises EnvironmentFault WORKER_START, MareyError
        POOL_STALLED.
        """
        if self.workers == 0:
            for task in tasks:
                yield task, _attempt(function, task)
            return
        begun: deque[tuple[Task, Future[Result | MareyError]]] = deque()
        room = max(prefetch if prefetch is not None else 2 * self.workers, 1)
        try:
            for task in tasks:
                begun.append((task, self._threads.submit(self._call, function, task)))
                if len(begun) >= room:
                    yield self._next(begun, ordered)
            while begun:
                yield self._next(begun, ordered)
        finally:
            for _, future in begun:
                future.cancel()

    def in_flight(self) -> list[str]:
        """What the workers are doing, longest first: "clip.mp4 (12 s)"."""
        doing = [worker.doing for worker in self._started]
        since = sorted((start, name) for start, name in (item for item in doing if item is not None))
        return [f"{name} ({time.monotonic() - start:.0f} s)" for start, name in since]

    def close(self) -> None:
        """End all workers now, whatever they do; unfinished runs get no more results."""
        self._closed.set()
        for worker in self._started:
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._started:
            worker.discard()
        atexit.unregister(self.close)

    def _call(self, function: Callable[[Task], Result], task: Task) -> Result | MareyError:
        if not hasattr(self._own, "worker"):
            self._own.worker = _Worker(self.seconds, self._closed)
            self._started.append(self._own.worker)
        try:
            result: Result | MareyError = self._own.worker.call(function, task)
            return result
        finally:
            self._moved = time.monotonic()

    def _next(
        self, begun: deque[tuple[Task, Future[Result | MareyError]]], ordered: bool
    ) -> tuple[Task, Result | MareyError]:
        """Wait for the first task begun, or for any; remove it from `begun`."""
        self._moved = time.monotonic()
        place = self._ended(begun, ordered)
        while place is None:
            if time.monotonic() - self._moved > self.seconds + START_SECONDS:
                raise MareyError(
                    "POOL_STALLED", f"no worker has answered; in flight: {'; '.join(self.in_flight())}"
                )
            wait([begun[0][1]] if ordered else [future for _, future in begun], 10 * _TICK, FIRST_COMPLETED)
            place = self._ended(begun, ordered)
        task, future = begun[place]
        del begun[place]
        return task, future.result()

    def _ended(self, begun: deque[tuple[Task, Future[Any]]], ordered: bool) -> int | None:
        if ordered:
            return 0 if begun[0][1].done() else None
        return next((place for place, (_, future) in enumerate(begun) if future.done()), None)


def run_isolated(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int, seconds: float
) -> Iterator[tuple[Task, Result | MareyError]]:
    """Each task with its result, in the order of the tasks, from a pool that lives as long as this run."""
    with Pool(workers, seconds) as pool:
        yield from pool.run(function, tasks)


class _Worker:
    """One process, started at its first task and again after it was lost. Used by one thread."""

    def __init__(self, seconds: float, closed: threading.Event) -> None:
        self.seconds, self.closed = seconds, closed
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pipe: Connection | None = None
        self.doing: tuple[float, str] | None = None

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        """The task's result, or the error that names it."""
        if self.process is None or not self.process.is_alive() or self.pipe is None:
            self.discard()
            self.pipe = self.start()
        self.doing = time.monotonic(), name_of(task)
        try:
            write(self.pipe, pack((function, task)))
            if not self.answered(self.seconds):
                self.kill()
                self.discard()
                return _hung(self.doing[1], self.seconds)
            return unpack(read(self.pipe))
        except (EOFError, OSError):  # its end of the pipe is closed: it is gone
            return _died(self.doing[1], self.discard())
        except Exception as error:  # a task or result that cannot be pickled
            self.discard()
            return _internal(error, self.doing[1])
        finally:
            self.doing = None

    def answered(self, seconds: float) -> bool:
        """Wait for an answer or the end of the process; False after `seconds` or once the pool is closed."""
        end = time.monotonic() + seconds
        assert self.pipe is not None
        while not self.pipe.poll(max(min(_TICK, end - time.monotonic()), 0)):
            if self.closed.is_set() or time.monotonic() >= end:
                return False
        return True

    def start(self) -> Connection:
        """A new process that is ready for tasks. Raises EnvironmentFault WORKER_START."""
        self.pipe, theirs = multiprocessing.Pipe()
        with _starting:
            self.process = _new_process(theirs)
            self.process.start()
        theirs.close()
        try:
            if self.answered(START_SECONDS) and self.pipe.recv_bytes() == b"ready":
                return self.pipe
        except (EOFError, OSError):
            pass
        raise EnvironmentFault(
            "WORKER_START",
            f"a worker process did not start (exit code {self.discard()}); a script that uses workers must "
            "do so under `if __name__ == '__main__':`, and workers=0 does without",
        )

    def kill(self) -> None:
        """Send the signal only; any thread may."""
        if self.process is not None and self.process.pid is not None:
            self.process.kill()

    def discard(self) -> int | None:
        """End the process, forget it, and give its exit code."""
        process, pipe, self.process, self.pipe = self.process, self.pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None or process.pid is None:
            return None
        process.join(_TICK)  # one that died on its own has a code to tell
        process.kill()
        process.join(10 * _TICK)  # one that waits for a dead disk cannot be killed; leave it
        return process.exitcode


_starting = threading.Lock()  # multiprocessing starts one process at a time


def _new_process(pipe: Connection) -> multiprocessing.process.BaseProcess:
    """A process that will serve: on Linux forked from a server that has torch loaded, else a fresh one."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn").Process(target=_serve, args=(pipe,), daemon=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context.Process(target=_serve, args=(pipe,), daemon=True)


def _serve(pipe: Connection) -> None:
    """What a worker does until its parent closes the pipe."""
    for name in _PARENTS_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pipe.send_bytes(b"ready")
        while True:
            write(pipe, _answer(read(pipe)))
    except (EOFError, OSError):
        return


def _answer(message: Message) -> Message:
    name = "a task that cannot be read"
    try:
        function, task = unpack(message)
        name = name_of(task)
        return pack(_attempt(function, task))
    except Exception as error:  # neither could be pickled, or the task is of a module that is not here
        return pack(_internal(error, name))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # also out of a hanging decoder


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | MareyError:
    try:
        return function(task)
    except MareyError as error:
        return error
    except Exception as error:
        return _internal(error, name_of(task))


def name_of(task: object) -> str:
    """What a task is called in messages: its path if it has one."""
    return str(getattr(task, "path", task))[:500]


def _internal(error: Exception, name: str) -> MareyError:
    result = MareyError("INTERNAL", f"{name}: {type(error).__name__}: {error}")
    result.add_note("".join(traceback.format_exception(error)))
    return result


def _hung(name: str, seconds: float) -> MediaError:
    return MediaError("DECODER_HUNG", f"{name}: not done after {seconds:g} s; its worker was ended")


def _died(name: str, code: int | None) -> MediaError:
    names = {-one.value: f"signal {one.name}" for one in signal.Signals}
    reason = names.get(code or 0, f"exit code {code}")
    return MediaError("DECODER_DIED", f"{name}: its worker process ended ({reason})")
