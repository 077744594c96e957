"""A queue that is fair among keys, however many requests each of them sends."""

from bisect import bisect_left, insort
from typing import Generic, TypeVar

T = TypeVar("T")


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

    def pop(self) -> T:
        """The next item."""
        tag, _, item = self._waiting.pop(0)
        del self._tags[id(item)]
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

    def ahead(self, item: T) -> int | None:
        """How many go before it; None if it does not wait here."""
        tag = self._tags.get(id(item))
        return None if tag is None else self._place(tag)

    def _place(self, tag: tuple[float, int]) -> int:
        return bisect_left(self._waiting, tag, key=lambda entry: entry[:2])
