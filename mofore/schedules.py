"""Schedules as pure functions of the step, so a checkpoint need not save their state."""

import math


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`; constant outside."""
    progress = min(max(step / max(steps, 1), 0.0), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear warm-up to `peak`, then half a cosine to `final` (Loshchilov & Hutter 2017).

    Step 0 is the first update; its rate is peak / warmup_steps, not 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(peak, final, step - warmup_steps, steps - warmup_steps)


def teacher_momentum(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` to `end` (Grill et al. 2020)."""
    return cosine(start, end, step, steps)
