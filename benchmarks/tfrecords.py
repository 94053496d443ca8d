"""Reading frame-level YouTube-8M records: records per CPU second of Marey and of others, in turns.

    python benchmarks/tfrecords.py [--rounds 5] [--records 400]

Peers are measured where they are installed: the `tfrecord` package (pip install tfrecord) and tf.data (pip
install tensorflow-cpu). Everybody gives id, labels and both streams as uint8 [n, 1024] and [n, 128] of the
same generated file (1 to 300 frames, about 212 on average as in YouTube-8M, cached by the system) to a
function that adds up their last rows; the sums must agree. `tfrecord` never checks the payloads' checksums;
Marey does in `read`, and leaves it out in `unchecked`. `batches` also stacks them in padded batches of 16 by
random access; `packed` does the same from what `marey data pack` makes of the file, checksums verified, too.
"""

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np

from marey.data.packed import SUFFIX
from marey.data.shards import open_shards
from marey.data.tfrecord import RecordWriter, read_records
from marey.data.workers import Pool
from marey.data.youtube8m import Layout, Video, batches, read_video, read_videos, record
from marey.jobs.pack import Task, pack_shard

LAYOUT = Layout()


def ours(path: Path) -> int:
    """Marey, checksums verified, each stream as a copy of its own."""
    total = 0
    for video in read_videos(path, LAYOUT):
        total += used(video.labels, np.ascontiguousarray(video.rgb), np.ascontiguousarray(video.audio))
    return total


def unchecked(path: Path) -> int:
    """Marey, without checksums of payloads."""
    total = 0
    for number, _, data in read_records(path, verify=False):
        video = read_video(data, LAYOUT, f"{path}#{number}")
        total += used(video.labels, np.ascontiguousarray(video.rgb), np.ascontiguousarray(video.audio))
    return total


def packed(path: Path) -> int:
    """The same from the packed file."""
    return batched(path.with_name(path.stem + SUFFIX))


def batched(path: Path) -> int:
    """Marey's batches, index included."""
    shards, total = open_shards([path]), 0
    steps = np.array_split(np.arange(len(shards)), -(-len(shards) // 16))
    with Pool(0, 60) as pool:
        for batch in batches(shards, steps, LAYOUT, pool=pool):
            for labels, rgb, audio, (n, m) in zip(
                batch.labels.numpy(),
                batch.rgb.numpy(),
                batch.audio.numpy(),
                batch.lengths.tolist(),
                strict=True,
            ):
                total += used(np.flatnonzero(labels), rgb[:n], audio[:m])
    return total


def tfrecord_package(path: Path) -> int:
    """The `tfrecord` package's own way to read SequenceExamples."""
    from tfrecord.reader import tfrecord_loader

    total = 0
    names = {"id": "byte", "labels": "int"}, {"rgb": "byte", "audio": "byte"}
    for context, lists in tfrecord_loader(str(path), None, names[0], sequence_description=names[1]):
        rgb, audio = (np.stack([np.frombuffer(row, np.uint8) for row in lists[k]]) for k in ("rgb", "audio"))
        total += used(context["labels"], rgb, audio)
    return total


def tf_data(path: Path) -> int:
    """tf.data as the official readers use it, one thread."""
    import tensorflow as tf

    def parsed(data):
        context, lists = tf.io.parse_single_sequence_example(
            data,
            {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)},
            {k: tf.io.FixedLenSequenceFeature([], tf.string) for k in ("rgb", "audio")},
        )
        rgb, audio = (
            tf.reshape(tf.io.decode_raw(lists[k], tf.uint8), [-1, n])
            for k, n in (("rgb", 1024), ("audio", 128))
        )
        return context["labels"].values, rgb, audio

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.TFRecordDataset(str(path)).map(parsed).with_options(options)
    return sum(used(*(value.numpy() for value in values)) for values in data)


def used(labels: np.ndarray, rgb: np.ndarray, audio: np.ndarray) -> int:
    """A number that depends on all that was read."""
    return int(np.sum(labels)) + len(rgb) + len(audio) + int(rgb[-1].sum()) + int(audio[-1].sum())


def generated(path: Path, count: int) -> None:
    """Records of as many frames as YouTube-8M's: mostly 120 to 300."""
    rng = np.random.default_rng(0)
    with RecordWriter(path) as writer:
        for number in range(count):
            n = int(rng.integers(120, 301)) if rng.random() < 0.99 else int(rng.integers(1, 120))
            rows = (rng.integers(0, 256, (n, width), np.uint8) for width in (1024, 128))
            labels = tuple(sorted(rng.choice(3862, 3, replace=False).tolist()))
            writer.write(record(Video(f"{number:04}", labels, *rows)))


class Contestant:
    """A way in a process of its own (the peers' message types exclude each other in one process)."""

    def __init__(self, way: Callable[[Path], int], path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(way, path, theirs), daemon=True).start()
        theirs.close()
        self.total = self.run()[1]

    def run(self) -> tuple[float, int]:
        """CPU seconds of one pass, and what `used` added up to."""
        self.pipe.send("go")
        seconds, total = self.pipe.recv()
        return seconds, total


def serve(way: Callable[[Path], int], path: Path, pipe: Connection) -> None:
    """One pass for every message, until there are no more."""
    with suppress(EOFError):
        while pipe.recv():
            start = time.process_time()
            total = way(path)
            pipe.send((time.process_time() - start, total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=400)
    options = parser.parse_args()
    ways = {"read": ours, "unchecked": unchecked, "batches": batched, "packed": packed}
    for name, module, way in (("tfrecord", "tfrecord", tfrecord_package), ("tf.data", "tensorflow", tf_data)):
        if importlib.util.find_spec(module):
            ways[name] = way
        else:
            print(f"{name} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.tfrecord"
        generated(path, options.records)
        pack_shard(Task(str(path), str(path.with_name(path.stem + SUFFIX)), skip_damaged=False))
        contestants = {name: Contestant(way, path) for name, way in ways.items()}
        totals = {name: one.total for name, one in contestants.items()}
        assert len(set(totals.values())) == 1, totals
        print(f"{options.records} records, {path.stat().st_size / 1e6:.0f} MB")
        rounds = []
        for turn in range(options.rounds):
            names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            rounds.append({name: contestants[name].run()[0] for name in names})
    for name in ways:
        speed = [options.records / times[name] for times in rounds]
        line = f"{name:10} {median(speed):7.0f} records per CPU s ({min(speed):.0f} to {max(speed):.0f})"
        ratios = [times[name] / times["read"] for times in rounds]
        faster = [times["batches"] / times["packed"] for times in rounds]
        if name == "packed":
            span = f"{min(faster):.1f} to {max(faster):.1f}"
            print(f"{line}   it is {median(faster):.1f} times as fast as batches ({span})")
        else:
            beside = name not in ("read", "batches")
            print(line + (f"   read is {median(ratios):.1f} times as fast" if beside else ""))


if __name__ == "__main__":
    main()
