"""Tagging metrics of YouTube-8M: videos per CPU second of Marey and of the official way, in turns.

    python benchmarks/gap.py [--rounds 3] [--videos 4000] [--classes 3862] [--many 0]

The peer is a plain rewriting of what google/youtube-8m@e6f6bf6 does (whose code needs TensorFlow to import):
a partition and a loop over the labels of every video, triplets into lists by class, a heap for every class
and one for all, a shuffled sort and a loop at the end. That both give the same numbers is checked in every
round. --many N also takes N million videos through Marey alone and prints time and peak memory.
"""

import argparse
import heapq
import random
import resource
import time
from statistics import median

import numpy as np

from marey.metrics.gap import TaggingMetrics

BATCH = 160


class Average:
    """Average precision of one ranking, of pairs that come in pieces."""

    def __init__(self):
        self.heap, self.positives = [], 0

    def add(self, scores, labels, positives):
        """Count pairs."""
        self.positives += positives
        for pair in zip(scores, labels, strict=True):
            heapq.heappush(self.heap, pair)

    def value(self):
        """The average precision of all pairs so far."""
        if not self.heap or not self.positives:
            return 0.0
        scores, labels = np.array(list(zip(*self.heap, strict=True)))
        order = random.Random(0).sample(range(len(scores)), len(scores))
        scores, labels = scores[order], labels[order]
        total, found = 0.0, 0.0
        for rank, index in enumerate(sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)):
            if labels[index] > 0:
                found += 1
                total += found / (rank + 1) / self.positives
        return total


class Peer:
    """Loops over videos, labels and pairs."""

    def __init__(self, classes, k=20):
        self.k, self.videos, self.hits, self.precision = k, 0, 0.0, 0.0
        self.each, self.all = [Average() for _ in range(classes)], Average()

    def add(self, scores, labels):
        """Count a batch."""
        labels = labels.astype(np.float64)  # numpy 2 would add up float32 labels in float32
        self.videos += len(scores)
        self.hits += float(labels[np.arange(len(labels)), np.argmax(scores, 1)].sum())
        for row, own in zip(scores, labels, strict=True):
            count = int(own.sum())
            best = np.argpartition(row, -count)[-count:] if count else []
            self.precision += sum(own[c] for c in best if row[c] > 0) / max(count, 1)
        kept = [[] for _ in self.each], [[] for _ in self.each]
        for row, own in zip(scores, labels, strict=True):
            for c in np.argpartition(row, -self.k)[-self.k :]:
                kept[0][c].append(row[c])
                kept[1][c].append(own[c])
        positives = [labels[:, c].sum() for c in range(len(self.each))]
        for average, *piece in zip(self.each, *kept, positives, strict=True):
            average.add(*piece)
        flat = [[value for values in part for value in values] for part in kept]
        self.all.add(*flat, sum(positives))

    def numbers(self):
        """Hit@1, PERR, GAP, mAP."""
        aps = [average.value() for average in self.each if average.positives]
        return self.hits / self.videos, self.precision / self.videos, self.all.value(), float(np.mean(aps))


class Ours:
    """Marey's accumulator."""

    def __init__(self, classes):
        self.metrics = TaggingMetrics(classes)
        self.add = self.metrics.add

    def numbers(self):
        """Hit@1, PERR, GAP, mAP."""
        return tuple(self.metrics.result()[:4])


def drawn(videos, classes, seed):
    """Scores that prefer the right classes, 3 labels per video on average, float32 as upstream."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((videos, classes), np.float32)
    for row in labels:
        row[rng.choice(classes, rng.integers(1, 6), replace=False)] = 1
    u = rng.random((videos, classes), np.float32)
    return np.where(labels > 0, u**0.25, u**64), labels


def run(maker, classes, batches):
    start = time.process_time()
    one = maker(classes)
    for scores, labels in batches:
        one.add(scores, labels)
    middle = time.process_time()
    numbers = one.numbers()
    return middle - start, time.process_time() - middle, numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("rounds", 3), ("videos", 4000), ("classes", 3862), ("many", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    scores, labels = drawn(options.videos, options.classes, 0)
    batches = [(scores[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(scores), BATCH)]
    rows = []
    for turn in range(options.rounds):
        order = (Ours, Peer) if turn % 2 else (Peer, Ours)
        took = {maker: run(maker, options.classes, batches) for maker in order}
        np.testing.assert_allclose(took[Ours][2], took[Peer][2], rtol=1e-6)
        rows.append(took)
    print(f"{options.videos} videos, {options.classes} classes, batches of {BATCH}; CPU ms per video")
    for maker in (Peer, Ours):
        adding, ending = (1000 * median(row[maker][i] for row in rows) / options.videos for i in (0, 1))
        print(f"{maker.__name__:6} adding {adding:.4f}  result {ending:.4f}")
    ratios = [sum(row[Peer][:2]) / sum(row[Ours][:2]) for row in rows]
    print(f"ratio {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    if options.many:
        start, one = time.process_time(), Ours(options.classes)
        for _ in range(options.many * 1_000_000 // options.videos):
            for piece in batches:
                one.add(*piece)
        adding = time.process_time() - start
        one.numbers()
        ending = time.process_time() - start - adding
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{options.many} million videos: adding {adding:.0f} s, result {ending:.0f} s, peak {peak:.0f} MB"
        )


if __name__ == "__main__":
    main()
