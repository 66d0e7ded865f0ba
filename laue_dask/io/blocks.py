"""How many patterns make a block of work: the unit of a task, of a receipt and of what a stage writes."""

import numpy as np

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 512


def block_size(n_patterns: int) -> int:
    """Return the patterns in a block of work, a power of two that depends on the scan's size alone.

    About 32 blocks for a small scan, so that every core has work; at most 512 patterns, so that a task takes seconds
    and the scheduler sees two tasks per thousand patterns and stage.
    """
    return int(np.clip(1 << max(0, n_patterns // 32).bit_length(), SMALLEST_BLOCK, LARGEST_BLOCK))
