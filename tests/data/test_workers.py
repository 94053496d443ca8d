"""Workers that crash, hang or fail cost one task each; order, bytes and processes are kept."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from marey.data.workers import Pool, run_isolated
from marey.errors import EnvironmentFault, MareyError, MediaError


class Job(NamedTuple):
    path: str
    value: int = 0


class Answer(NamedTuple):
    frames: torch.Tensor
    flags: np.ndarray
    process: int


class Record(msgspec.Struct):
    weights: torch.Tensor


def work(job: Job) -> object:
    """What a decoder may do, by name."""
    if job.path == "crash":
        os.abort()
    if job.path == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.path == "exit":
        sys.exit(7)
    if job.path == "hang":
        time.sleep(1000)
    if job.path == "bad":
        raise MediaError("MEDIA_TRUNCATED", "bad: half of it is missing")
    if job.path == "bug":
        raise ZeroDivisionError("a bug, not a bad file")
    if job.path == "unpicklable":
        return lambda: None
    if job.path == "slow":
        time.sleep(0.3)
    return job.value


def frames(job: Job) -> Answer:
    pixels = torch.arange(job.value, dtype=torch.int64).to(torch.uint8)
    return Answer(pixels, np.array([True, False]), os.getpid())


def threads(_: Job) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    return torch.get_num_threads()


def record(job: Job) -> Record:
    return Record(torch.full((job.value, 2), 0.5, dtype=torch.float64).t())


@pytest.fixture(scope="module")
def pool():
    with Pool(2, 2.0) as pool:
        yield pool


def codes(results) -> list:
    return [getattr(result, "code", result) for _, result in results]


def test_results_come_in_the_order_of_the_tasks_whatever_ends_first(pool):
    jobs = [Job("slow", 0), *(Job("fast", i) for i in range(1, 8)), Job("slow", 8)]
    assert list(pool.run(work, jobs)) == [(job, i) for i, job in enumerate(jobs)]


def test_results_may_be_taken_as_they_end(pool):
    list(pool.run(work, [Job("fast")] * 4))  # both workers are up
    results = [
        value
        for _, value in pool.run(work, [Job("slow", 9), *(Job("fast", i) for i in range(4))], ordered=False)
    ]
    assert sorted(results) == [0, 1, 2, 3, 9] and results[0] != 9


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("crash", "DECODER_DIED", "signal SIGABRT"),
        ("killed", "DECODER_DIED", "signal SIGKILL"),
        ("exit", "DECODER_DIED", "exit code 7"),
        ("hang", "DECODER_HUNG", "not done after 2 s"),
    ],
)
def test_a_worker_that_ends_or_hangs_costs_its_own_task_only(pool, path, code, reason):
    results = list(pool.run(work, [Job("a", 1), Job(path), Job("b", 2), Job("c", 3)]))
    assert codes(results) == [1, code, 2, 3]
    error = results[1][1]
    assert isinstance(error, MediaError) and path in error.message and reason in error.message


def test_errors_of_a_task_are_results_and_bugs_keep_their_traceback(pool):
    bad, bug, odd = (result for _, result in pool.run(work, [Job("bad"), Job("bug"), Job("unpicklable")]))
    assert (type(bad), bad.code, bad.message) == (MediaError, "MEDIA_TRUNCATED", "bad: half of it is missing")
    assert (bug.code, bug.message) == ("INTERNAL", "bug: ZeroDivisionError: a bug, not a bad file")
    assert "in work" in bug.__notes__[0] and "Traceback" in bug.__notes__[0]
    assert odd.code == "INTERNAL" and "unpicklable" in odd.message


def test_a_task_that_cannot_be_sent_is_an_error_of_that_task(pool):
    results = list(pool.run(work, [Job("a", 1), Job("b", lambda: None), Job("c", 3)]))
    assert codes(results) == [1, "INTERNAL", 3]


def test_without_workers_everything_runs_here_with_the_same_results():
    with Pool(0, 2.0) as here:
        assert codes(here.run(work, [Job("a", 1), Job("bad"), Job("bug"), Job("b", 2)])) == [
            1, "MEDIA_TRUNCATED", "INTERNAL", 2,
        ]  # fmt: skip
    with Pool(0, 2.0) as here:
        assert next(here.run(frames, [Job("x", 3)]))[1].process == os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_tasks_are_pulled_only_as_far_as_results_are_wanted(pool, workers):
    pulled = []

    def endless():
        for i in itertools.count():
            pulled.append(i)
            yield Job("a", i)

    with Pool(0, 2.0) as inline:
        run = (pool if workers else inline).run(work, endless(), prefetch=5)
        assert [value for _, value in itertools.islice(run, 10)] == list(range(10))
        assert len(pulled) <= 15
        run.close()


def test_an_error_of_the_task_list_reaches_the_caller(pool):
    def tasks():
        yield Job("a", 1)
        raise KeyError("list")

    with pytest.raises(KeyError, match="list"):
        list(pool.run(work, tasks()))
    assert codes(pool.run(work, [Job("a", 1)])) == [1]


def test_a_second_run_may_go_on_inside_the_first(pool):
    outer = pool.run(work, [Job("a", i) for i in range(6)], prefetch=2)
    assert next(outer)[1] == 0
    assert codes(pool.run(work, [Job("a", 10 + i) for i in range(6)])) == [10, 11, 12, 13, 14, 15]
    assert codes(outer) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_tensors_and_arrays_arrive_whole_writable_and_of_their_type(size):
    for _, answer in run_isolated(frames, [Job("x", size)] * 2, workers=1, seconds=20):
        assert isinstance(answer, Answer) and answer.process != os.getpid()
        assert answer.frames.dtype == torch.uint8 and len(answer.frames) == size
        assert torch.equal(answer.frames, torch.arange(size).to(torch.uint8))
        assert answer.flags.tolist() == [True, False]
        answer.frames.add_(1)


def test_tensors_inside_records_and_in_any_layout_arrive():
    ((_, result),) = run_isolated(record, [Job("x", 5000)], workers=1, seconds=20)
    assert torch.equal(result.weights, torch.full((2, 5000), 0.5, dtype=torch.float64))


def test_workers_use_one_thread_each_and_leave_signals_of_the_job_to_the_parent():
    results = run_isolated(threads, [Job("x")] * 2, workers=1, seconds=20)
    assert [result for _, result in results] == [1, 1]


def test_one_pool_keeps_its_processes_over_many_runs():
    with Pool(1, 20.0) as pool:
        used = {answer.process for _ in range(3) for _, answer in pool.run(frames, [Job("x", 1)] * 2)}
    assert len(used) == 1


def test_closing_does_not_wait_for_hanging_tasks():
    before = time.monotonic()
    with Pool(2, 500.0) as pool:
        run = pool.run(work, [Job("a", 5), *[Job("hang")] * 6])
        assert next(run)[1] == 5
        while len(pool.in_flight()) < 2:
            time.sleep(0.01)
        assert [text.split()[0] for text in pool.in_flight()] == ["hang", "hang"]
    assert time.monotonic() - before < 60
    assert not pool.in_flight()


UNCLOSED = """
import sys
sys.path.insert(0, {folder!r})
from test_workers import Job, work
from marey.data.workers import Pool
if __name__ == "__main__":
    print(next(Pool(1, 20.0).run(work, [Job("a", 5)]))[1])
"""


def test_a_pool_that_nobody_closed_does_not_hold_up_the_end():
    text = UNCLOSED.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


def test_a_pool_that_is_closed_starts_nothing_anew():
    with Pool(1, 5.0) as pool:
        assert codes(pool.run(work, [Job("a", 1)])) == [1]
    with pytest.raises(RuntimeError):
        list(pool.run(work, [Job("a", 1)]))


# Processes --------------------------------------------------------------------------------------------

# A shell that starts pytest in the background makes it, and what it starts, ignore SIGINT.
SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
from test_workers import Job, work
from marey.data.workers import Pool
if {guard}:
    with Pool(2, 500.0) as pool:
        for job, result in pool.run(work, [Job("a", 1), Job("a", 2)]):
            print(result, flush=True)
        print("up", flush=True)
        for job, result in pool.run(work, [Job("hang"), Job("hang")]):
            print(result, flush=True)
"""


def script(guard: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process whose descendants can be told by that environment."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    text = SCRIPT.format(folder=str(Path(__file__).parent), guard=guard)
    return [sys.executable, "-c", text], os.environ | {"MAREY_TEST_MARK": mark}


def alive(mark: str) -> list[int]:
    """Processes with our mark in their environment, zombies aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MAREY_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_parent_that_is_interrupted_or_killed(end):
    command, environment = script("True")
    parent = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [parent.stdout.readline().strip() for _ in range(3)] == ["1", "2", "up"]
    time.sleep(0.5)
    assert len(alive(environment["MAREY_TEST_MARK"])) >= 3
    if end == signal.SIGINT:
        os.killpg(parent.pid, end)  # as a terminal does
    else:
        parent.send_signal(end)
    _, text = parent.communicate(timeout=60)
    for _ in range(100):
        if not alive(environment["MAREY_TEST_MARK"]):
            break
        time.sleep(0.1)
    assert alive(environment["MAREY_TEST_MARK"]) == []
    if end == signal.SIGINT:
        assert text.count("KeyboardInterrupt") == 1 and parent.returncode != 0


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    command, environment = script("True")
    file = tmp_path / "script.py"
    file.write_text(command[2])
    done = subprocess.run(
        [sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "under `if __name__ == '__main__':`" in done.stderr


def not_ready(_: object) -> None:
    sys.exit(3)


def test_a_worker_that_cannot_start_is_a_fault_of_the_environment(monkeypatch):
    monkeypatch.setattr("marey.data.workers._serve", not_ready)
    with pytest.raises(EnvironmentFault, match=r"did not start \(exit code 3\)") as caught:
        list(run_isolated(work, [Job("x")], workers=1, seconds=5))
    assert caught.value.code == "WORKER_START"


def test_a_stalled_pool_names_the_files_in_flight(monkeypatch):
    with Pool(1, 5.0) as pool:
        assert codes(pool.run(work, [Job("a", 1)])) == [1]
        monkeypatch.setattr("marey.data.workers.START_SECONDS", -4.5)
        monkeypatch.setattr("marey.data.workers._TICK", 0.05)
        with pytest.raises(MareyError, match=r"in flight: hang \(\d+ s\)") as caught:
            list(pool.run(work, [Job("hang")]))
    assert caught.value.code == "POOL_STALLED"
