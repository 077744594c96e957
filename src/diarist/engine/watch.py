"""When a worker is taken for hung. A decision over what is heard and seen of it; reads no clock itself.

A worker may be busy for long and be well: the first batch on a cold machine, the clustering of four hours, a page fault
storm. It is hung when nothing at all moves: no message and no processor time of the process for `hang_s`; or the
computing thread is in one piece of work and uses no processor time for as long; or one piece lasts longer than
`unit_s`, whatever it does.
"""

from diarist.engine.wire import Pulse

_SIGN_S = 0.02  # processor time that counts as a sign of life: more than a thread needs to wake up and sleep again


class Watch:
    """What is known of one worker. All times in seconds of one monotonic clock."""

    def __init__(self, hang_s: float, unit_s: float, now: float) -> None:
        self._hang_s, self._unit_s = hang_s, unit_s
        self._heard = now
        self._moved = now  # the process used the processor
        self._process_cpu_s = 0.0
        self._progress = now  # the computing thread used it, or was between two pieces of work
        self._cpu_s = 0.0  # of the computing thread, at `_progress`
        self._last = Pulse()
        self._computing = False

    def loaded(self, now: float) -> None:
        """The models are there: from now on there are pieces of work."""
        self._computing = True
        self._heard = self._progress = now

    def heard(self, now: float, pulse: Pulse) -> None:
        """A heartbeat came."""
        self._heard = now
        moved = pulse.compute_cpu_s - self._cpu_s > _SIGN_S
        if moved or pulse.units != self._last.units or not pulse.busy_s:
            self._progress = now
            self._cpu_s = pulse.compute_cpu_s
        self._last = pulse

    def seen(self, now: float, process_cpu_s: float) -> None:
        """The process has used so much processor time since it began."""
        if process_cpu_s - self._process_cpu_s > _SIGN_S:
            self._process_cpu_s = process_cpu_s
            self._moved = now

    def verdict(self, now: float) -> str:
        """Why it is hung; empty if it is not."""
        if now - max(self._heard, self._moved) > self._hang_s or now - self._heard > self._unit_s:
            return "the worker does not answer"
        if self._computing and now - self._progress > self._hang_s:
            return "the worker stands still"
        if self._computing and self._last.busy_s > self._unit_s:
            return "the worker does not get on"
        return ""
