"""Pure functions of the step: nothing of a schedule is saved, so nothing of it can be restored wrongly."""

import math


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`."""
    share = min(max(step / max(steps, 1), 0.0), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def learning_rate(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine down to `final` (Loshchilov & Hutter 2017).

    Step 0 is the first update; its rate is peak / warmup, not 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, final, step - warmup, steps - warmup)


def teacher_momentum(step: int, steps: int, start: float, end: float) -> float:
    """From `start` to `end` along half a cosine (Grill et al. 2020)."""
    return cosine(start, end, step, steps)
