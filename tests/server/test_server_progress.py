"""What is remembered of requests that are over."""

import gc
import weakref

from diarist.engine.messages import Status
from diarist.server.progress import Registry, new_id


class Ticket:
    """Holds a transcript, as the engine's does."""

    def __init__(self, status):
        self.status = status
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


def test_h39_a_request_that_is_over_is_remembered_without_its_transcript():
    registry = Registry()
    entry = registry.add(new_id(), "", "mine")
    entry.ticket = Ticket(Status("done", fraction=1.0, seconds_left=0.0))
    held = weakref.ref(entry.ticket)
    entry.end("done")
    gc.collect()
    assert held() is None
    assert registry.open == 0
    view = registry.find(entry.id, "").view()
    assert (view["status"], view["percent"], view["step"], view["ahead"]) == ("done", 100.0, "", 0)


def test_one_that_is_given_up_says_how_far_it_came_and_cannot_be_cancelled_again():
    entry = Registry().add(new_id(), "", "")
    ticket = entry.ticket = Ticket(Status("running", "transcribing", 0.5, 1.5, 0))
    assert entry.view()["seconds_left"] == 1.5
    entry.end("cancelled")
    entry.cancel()
    assert not ticket.cancelled
    assert (entry.view()["percent"], entry.view()["seconds_left"]) == (50.0, None)


def test_one_that_never_came_to_the_engine_has_no_share():
    entry = Registry().add(new_id(), "", "")
    assert entry.view()["status"] == "uploading"
    entry.end("failed")
    assert (entry.view()["status"], entry.view()["percent"]) == ("failed", None)
