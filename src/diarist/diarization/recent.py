"""The recent rows of a table that grows at its end for hours."""

import torch
from torch import Tensor

_SLACK = 1.5  # room made for each row that is there: so rows are copied now and then, not at every block


class Recent:
    """Rows are numbered from the first that ever came, however many have been forgotten.

    Args:
        shape: Of a row.
        device: Where they are kept; float32.

    >>> sound = Recent()
    >>> sound.append(torch.arange(5.0))
    >>> sound.forget(3)
    >>> sound.append(torch.arange(5.0, 7.0))
    >>> sound.cut(4, 9)
    tensor([4., 5., 6.])
    """

    def __init__(self, *shape: int, device: torch.device | None = None) -> None:
        self._room = torch.empty(0, *shape, device=device)
        self._room_from = 0  # row at which it begins
        self.start = 0
        """The first row that is kept."""
        self.stop = 0
        """Rows that have come."""

    def append(self, rows: Tensor) -> None:
        """Take in the next rows."""
        stop = self.stop + len(rows)
        if stop - self._room_from > len(self._room):
            self._move(int(_SLACK * (stop - self.start)))
        self._room[self.stop - self._room_from : stop - self._room_from] = rows
        self.stop = stop

    def cut(self, start: int, stop: int) -> Tensor:
        """Rows from `start`, which is kept, to before `stop` or the end. A view, good until rows are appended."""
        return self._room[start - self._room_from : min(stop, self.stop) - self._room_from]

    def forget(self, before: int) -> None:
        """Nobody will ask for rows before this one any more."""
        self.start = max(self.start, min(before, self.stop))

    def _move(self, size: int) -> None:
        """What is kept, at the beginning of a new room."""
        kept = self.cut(self.start, self.stop)
        room = kept.new_empty(size, *kept.shape[1:])
        room[: len(kept)] = kept
        self._room, self._room_from = room, self.start
