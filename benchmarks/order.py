"""What the order of samples costs a step, beside a permutation: python -m benchmarks.order

A rank draws the samples of its global batch in each step. The table has the median of many steps,
each of another epoch, so that nothing is cached; and numpy's permutation of all videos, which would
be drawn once an epoch and held.
"""

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from mofore.data.order import global_batch_indices

STEPS, PERMUTATIONS = 101, 3  # of which the median is taken


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.order", description=__doc__)
    parser.add_argument(
        "--videos", type=int, nargs="+", default=[10**4, 10**5, 10**6, 2 * 10**7, 10**9]
    )
    parser.add_argument("--global-batch", type=int, default=4096, metavar="N", help="default: 4096")
    parser.add_argument(
        "--largest-permutation",
        type=int,
        default=2 * 10**7,
        metavar="N",
        help="draw no permutation of more videos (default: 20,000,000)",
    )
    options = parser.parse_args()
    print(
        f"{'videos':>13}  {'ms a step':>9}  {'MB':>6}  {'ms a permutation':>16}  {'MB':>6}  ratio"
    )
    for videos in options.videos:
        print(compare(videos, options.global_batch, options.largest_permutation), flush=True)
    return 0


def compare(videos: int, global_batch: int, largest_permutation: int) -> str:
    """A line of the table."""
    epoch_steps = videos // global_batch

    def step(epoch: int) -> None:
        global_batch_indices(epoch * epoch_steps, videos, global_batch, 0)

    def permutation(epoch: int) -> None:
        np.random.default_rng((0, epoch)).permutation(videos)

    milliseconds, megabytes = cost(step, STEPS)
    line = f"{videos:>13,}  {milliseconds:>9.3f}  {megabytes:>6.2f}"
    if videos > largest_permutation:
        return f"{line}  {'not drawn':>16}"
    whole, held = cost(permutation, PERMUTATIONS)
    return f"{line}  {whole:>16.2f}  {held:>6.1f}  {whole / milliseconds:>5.1f}"


def cost(work: Callable[[int], object], times: int) -> tuple[float, float]:
    """Median milliseconds of `times` calls, and the memory that one takes at its peak, in MB."""
    seconds = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    work(times)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return 1000 * statistics.median(seconds), peak / 1e6


if __name__ == "__main__":
    sys.exit(main())
