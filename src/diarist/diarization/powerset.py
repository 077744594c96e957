"""The classes of the segmentation network: sets of at most two of a window's three local speakers.

(Plaquet and Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023.)
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

LOCAL_SPEAKERS = 3
_MOST_AT_ONCE = 2

SETS = tuple(s for size in range(_MOST_AT_ONCE + 1) for s in combinations(range(LOCAL_SPEAKERS), size))
"""Local speakers of each class, in the order of the network's outputs."""

CLASSES = len(SETS)
SILENCE = SETS.index(())

_MEMBERS = np.array([[speaker in s for speaker in range(LOCAL_SPEAKERS)] for s in SETS], dtype=np.uint8)


def activity(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which local speakers speak.

    Args:
        classes: Any shape.

    Returns:
        Zeros and ones, that shape + (3,).

    >>> activity(np.array([0, 2, 5], np.uint8)).tolist()
    [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    """
    return _MEMBERS[classes]
