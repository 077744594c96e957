"""Fairness among keys, however many requests each of them sends: who gets in, and who goes next."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_MOST_PER_FREE = 7


def has_room(limit: float, taken: float, own: float, more: float = 1.0) -> bool:
    """Whether a key that holds `own` of what is `taken` may take `more`, where `limit` is all that there is.

    Dynamic thresholds (Choudhury and Hahne 1998): nobody may hold more than seven times what is free. So one key alone
    fills seven eighths, and whoever holds nothing finds a place however many others press.

    >>> has_room(256, taken=224, own=224), has_room(256, taken=224, own=0)
    (False, True)
    """
    return taken + more <= limit and own < _MOST_PER_FREE * (limit - taken)


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal, Vin and Cheng 1996).

    A request's tag is where its key's own work has got to, or where the queue has got to if that is further; the least
    tag goes first. So a key that asks seldom goes next, and one that sends a thousand waits behind its own.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, T]] = []  # tag, number, item; in order
        self._tags: dict[int, tuple[float, int]] = {}  # by the item's identity
        self._ends: dict[str, float] = {}  # where each key's work has got to
        self._reached = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, item: T, key: str, cost: float) -> None:
        """Let an item wait. `cost`: what it takes, in any unit."""
        tag = max(self._reached, self._ends.get(key, 0.0))
        self._ends[key] = tag + cost
        self._number += 1
        self._tags[id(item)] = tag, self._number
        insort(self._waiting, (tag, self._number, item), key=lambda entry: entry[:2])

    def __iter__(self) -> Iterator[T]:
        """What waits, the next one first."""
        return (item for _, _, item in self._waiting)

    def pop(self, item: T | None = None) -> T:
        """Take out the next item, or one that waits here and goes before its turn."""
        place = 0 if item is None else self._place(self._tags[id(item)])
        tag, _, item = self._waiting.pop(place)
        del self._tags[id(item)]
        if place == 0:
            self._reached = max(self._reached, tag)
        if not self._waiting:  # whoever comes next begins anew
            self._reached = max([self._reached, *self._ends.values()])
        # A key that has got no further than everybody has no past: the table stays as long as the queue.
        self._ends = {key: end for key, end in self._ends.items() if end > self._reached}
        return item

    def remove(self, item: T) -> bool:
        """Take an item out; False if it does not wait here."""
        tag = self._tags.pop(id(item), None)
        if tag is None:
            return False
        del self._waiting[self._place(tag)]
        return True

    def lead(self, item: T) -> float:
        """How far its key is ahead of the queue, in the unit of costs: 0 for one that has had less than its share."""
        return max(0.0, self._tags[id(item)][0] - self._reached)

    def ahead(self, item: T) -> int | None:
        """How many go before it; None if it does not wait here."""
        tag = self._tags.get(id(item))
        return None if tag is None else self._place(tag)

    def _place(self, tag: tuple[float, int]) -> int:
        return bisect_left(self._waiting, tag, key=lambda entry: entry[:2])
