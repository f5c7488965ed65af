"""The order of samples, a function of the step alone.

Epoch e is a permutation drawn from (seed, e), divided into whole global batches. The remainder is
dropped, so that no video occurs twice in a global batch and becomes its own negative. Rank r of W
takes the r-th of W equal slices of a global batch and divides it into micro-batches. A global batch
is therefore the same for any number of ranks.

A permutation of many videos is computed for the positions that are asked for and never held.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mofore.errors import UserError

SampleIndex = tuple[int, int]  # (epoch, position), an index of PretrainClips
# Up to this many videos the permutation is drawn and held: every one is equally likely.
MAX_HELD = 2**16
# 4 show in how often neighbours stay neighbours (tests/data/test_order.py), 6 do not.
ROUNDS = 6


def shuffled(positions: np.ndarray, videos: int, seed: int, epoch: int) -> np.ndarray:
    """Where the permutation of an epoch takes `positions`: i64 [n] -> i64 [n], in [0, videos)."""
    if videos <= MAX_HELD:
        return _permutation(videos, seed, epoch)[positions]
    return feistel_shuffled(positions, videos, seed, epoch)


@functools.lru_cache(maxsize=2)  # the sampler may be an epoch ahead of the step that is checked
def _permutation(videos: int, seed: int, epoch: int) -> np.ndarray:
    """i64 [videos]; to be read only."""
    order = np.random.default_rng((seed, epoch)).permutation(videos)
    order.flags.writeable = False
    return order


def feistel_shuffled(
    positions: np.ndarray, videos: int, seed: int, epoch: int, rounds: int = ROUNDS
) -> np.ndarray:
    """`shuffled` without memory, by a keyed bijection on [0, videos).

    The generalised Feistel cipher with cycle walking of Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains" (CT-RSA 2002): a bijection on [0, a b), with a b just above `videos`, is applied
    again where it leads out of [0, videos).
    """
    a = math.isqrt(videos - 1) + 1
    b = -(-videos // a)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(rounds, np.uint64)
    order = _feistel(positions.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(order >= videos)
    while len(outside):
        again = _feistel(order[outside], a, b, keys)
        order[outside] = again
        outside = outside[again >= videos]
    return order.astype(np.int64)


def _feistel(numbers: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """A bijection on [0, a b), u64 [n] -> u64 [n]; an even number of keys, a and b below 2**32."""
    assert len(keys) % 2 == 0
    left, right = numbers % np.uint64(a), numbers // np.uint64(a)
    for key, modulus in zip(keys, itertools.cycle((a, b)), strict=False):
        size = np.uint64(modulus)
        total = left + (((_mix(right + key) >> np.uint64(32)) * size) >> np.uint64(32))
        # total mod size: below 0 the difference wraps around to a large number
        left, right = right, np.minimum(total, total - size)
    return left + np.uint64(a) * right


def _mix(numbers: np.ndarray) -> np.ndarray:
    """u64 [n] -> u64 [n] without visible structure: the end of SplitMix64.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014).
    """
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def global_batch_indices(step: int, videos: int, global_batch: int, seed: int) -> list[SampleIndex]:
    """The (epoch, position) indices of the global batch of a step, counted from 0."""
    return _batch_slice(step, 0, global_batch, videos, global_batch, seed)


def _batch_slice(
    step: int, first: int, stop: int, videos: int, global_batch: int, seed: int
) -> list[SampleIndex]:
    """Indices `first` to `stop` (exclusive) of the global batch of a step."""
    epoch, batch = divmod(step, videos // global_batch)
    positions = batch * global_batch + np.arange(first, stop)
    return [(epoch, position) for position in shuffled(positions, videos, seed, epoch).tolist()]


class RankSampler(Sampler[list[SampleIndex]]):
    """Micro-batches of one rank, for steps `start` to `steps` (exclusive), in order.

    Raises UserError if a global batch needs more videos than there are.
    """

    def __init__(
        self,
        videos: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        start: int,
        steps: int,
        rank: int,
        world_size: int,
    ) -> None:
        if videos < global_batch:
            raise UserError(
                f"global_batch={global_batch} is more than the {videos} usable videos of the "
                f"manifest: a video must not be its own negative. Set global_batch={videos} or "
                "less."
            )
        self.videos, self.global_batch, self.micro_batch = videos, global_batch, micro_batch
        self.seed, self.start, self.steps, self.rank = seed, start, steps, rank
        self.per_rank = global_batch // world_size

    def __len__(self) -> int:
        return (self.steps - self.start) * (self.per_rank // self.micro_batch)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        first = self.rank * self.per_rank
        for step in range(self.start, self.steps):
            local = _batch_slice(
                step, first, first + self.per_rank, self.videos, self.global_batch, self.seed
            )
            for begin in range(0, self.per_rank, self.micro_batch):
                yield local[begin : begin + self.micro_batch]
