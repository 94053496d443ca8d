"""Long-term feature banks: importing, looking up, memory, beside the pickled dictionary of MMAction2.

    python benchmarks/bank.py [--videos 299] [--seconds 800] [--persons 1.7] [--channels 2048]
                              [--dtype float16] [--boxes 400] [--rounds 5] [--workers 2] [--folder F]

A bank like AVA's is drawn, saved as MMAction2 saves it, and imported. Times are CPU seconds. A look-up makes
the window of a box, 60 seconds x 5 slots. The peer does what open-mmlab/mmaction2@v0.24.1 is documented to
do, written anew: every process loads the dictionary, and for each box the persons of every second of the
window are chosen by numpy and copied into a block of zeros, float32; Marey's stays in the bank's precision
until it is on the device. In seconds with at most 5 persons both must find the same ones. "apart" are boxes
that each have draws of their own, as in training; "together" those of a clip in a test. Memory is what /proc
says that a worker has for itself (private, written) and maps in all (Rss) after it has looked all over the
bank, beyond what it had before it opened it.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from marey.data.bank import Bank
from marey.jobs.bank import check_bank, import_bank

WINDOW, SLOTS = 60, 5


def drawn(videos, seconds, persons, channels, dtype):
    """A bank as MMAction2 holds it: for each second a list of tensors; 3 % have 6 to 9 persons."""
    stream = np.random.RandomState(0)
    found = {}
    for number in range(videos):
        steps = np.sort(stream.choice(np.arange(902, 1799), min(seconds, 897), replace=False))
        counts = 1 + stream.poisson(persons - 1, len(steps))
        counts = np.where(stream.rand(len(steps)) < 0.03, stream.randint(6, 10, len(steps)), counts)
        found[f"video{number:05}"] = {
            int(second): list(torch.randn(int(count), channels).to(dtype))
            for second, count in zip(steps, counts, strict=True)
        }
    return found


def peer_window(bank, video, second):
    """The window of one box from the dictionary."""
    channels = next(iter(next(iter(bank.values())).values()))[0].numel()
    block = np.zeros((WINDOW * SLOTS, channels), np.float32)
    for step in range(WINDOW):
        rows = bank[video].get(second - WINDOW // 2 + step)
        if rows:
            chosen = np.random.choice(len(rows), min(len(rows), SLOTS), replace=False)  # noqa: NPY002
            for slot, number in enumerate(chosen):
                block[step * SLOTS + slot] = rows[number].numpy()
    return torch.from_numpy(block)


def memory():
    """(private and written, all that is mapped) of this process, MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sizes["Private_Dirty"] / 1024, sizes["Rss"] / 1024


def worker(kind, path, keys, queue):
    """Open a bank, look up all over it, tell the seconds to open it and the memory."""
    before, start = memory(), time.process_time()
    bank = Bank(path) if kind == "marey" else torch.load(path, map_location="cpu", weights_only=True)
    opened = time.process_time() - start
    for video, second in keys:
        if kind == "marey":
            bank.look_up([(video, second)], epoch=0)
        else:
            peer_window(bank, video, second)
    queue.put((opened, *(after - first for after, first in zip(memory(), before, strict=True))))


def in_workers(kind, path, keys, count):
    """The means over some processes that look up at once."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    started = [context.Process(target=worker, args=(kind, path, keys, queue)) for _ in range(count)]
    for one in started:
        one.start()
    found = [queue.get() for _ in started]
    for one in started:
        one.join()
    return np.mean(found, axis=0)


def timed(call, keys):
    """CPU milliseconds per key."""
    start = time.process_time()
    for key in keys:
        call(*key)
    return 1000 * (time.process_time() - start) / len(keys)


def compare(bank, found, keys):
    """Where no second has more persons than slots, both hold the same."""
    checked = 0
    for video, second in keys:
        steps = [found[video].get(second - WINDOW // 2 + step, ()) for step in range(WINDOW)]
        if max(map(len, steps)) <= SLOTS:
            ours = bank.look_up([(video, second)])[0].float().view(WINDOW, SLOTS, -1)
            theirs = peer_window(found, video, second).view(WINDOW, SLOTS, -1)
            order = lambda block: torch.sort(block, dim=1).values  # noqa: E731 - slots are in any order
            assert torch.equal(order(ours), order(theirs))
            checked += 1
    return checked


def main():
    """Draw, import, look up, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=299)
    parser.add_argument("--seconds", type=int, default=800)
    parser.add_argument("--persons", type=float, default=1.7)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--boxes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="marey-bank-"))
    try:
        report(given, folder)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


def report(given, folder):
    """All measurements, with files in the folder."""
    source, out = folder / "lfb_train.pkl", folder / "bank"
    found = drawn(given.videos, given.seconds, given.persons, given.channels, getattr(torch, given.dtype))
    torch.save(found, source)
    start = time.process_time()
    told = import_bank(source, out)
    spent = time.process_time() - start
    rows, size = told.rows, source.stat().st_size
    print(f"{told.videos} videos, {rows:,} features of {told.channels} {told.dtype}, {told.shards} shards")
    print(f"import: {spent:.2f} s, {rows / spent:,.0f} features/s, {size / spent / 1e6:.0f} MB/s")
    print(f"size: {told.bytes / 1e6:.1f} MB ({told.bytes / rows:.0f} bytes a feature); "
          f"pickle {size / 1e6:.1f} MB ({size / rows:.0f})")  # fmt: skip
    start = time.process_time()
    assert not check_bank(out).problems
    print(f"check: {time.process_time() - start:.2f} s")
    bank, stream = Bank(out), np.random.RandomState(1)
    videos = list(found)
    keys = [(videos[stream.randint(len(videos))], int(stream.randint(902, 1799))) for _ in range(given.boxes)]
    same = compare(bank, found, keys[:40])
    ways = {
        "dictionary": lambda video, second: peer_window(found, video, second),
        "marey, apart": lambda video, second: bank.look_up([(video, second)], epoch=0),
        "marey, together": lambda video, second: bank.look_up([(video, second)]),
        "marey, 4 boxes of a clip apart": lambda v, s: bank.look_up([(v, s)], [4], epoch=0),
    }
    times = {name: [] for name in ways}
    for number in range(given.rounds):
        names = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in names:
            times[name].append(timed(ways[name], keys) / (4 if "4 boxes" in name else 1))
    print(f"look-up of a box, CPU ms, medians of {given.rounds} rounds ({same} windows compared):")
    for name, values in times.items():
        ratio = median(a / b for a, b in zip(times["dictionary"], values, strict=True))
        print(f"  {name:<32} {median(values):6.3f} ({min(values):.3f} .. {max(values):.3f})  {ratio:.1f} x")
    print(f"a worker of {given.workers} at once:")
    for name, kind, path in (("dictionary", "peer", source), ("marey", "marey", out)):
        opened, private, mapped = in_workers(kind, path, keys, given.workers)
        print(f"  {name:<12} opens in {opened:.2f} CPU s; {private:.0f} MB private, Rss {mapped:.0f} MB")


if __name__ == "__main__":
    main()
