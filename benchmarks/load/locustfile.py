"""Callers that send one clip after the other, and one prober of health, for locust.

`run.py` starts it; by hand: `LOAD_CLIPS=folder LOAD_RESULT=out.json locust -f locustfile.py --headless -u 17 -H URL`.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from clips import seconds_of
from locust import HttpUser, constant, events, task

CLIPS = [
    (path.name, path.read_bytes(), seconds_of(path)) for path in sorted(Path(os.environ["LOAD_CLIPS"]).glob("*.wav"))
]
RESULT = Path(os.environ["LOAD_RESULT"])
HEALTH = os.environ.get("LOAD_HEALTH", "/livez")
_PROBE_S = 0.05
_LONGEST_PAUSE_S = 5.0

answered: list[tuple[float, float]] = []  # seconds of audio, seconds of waiting
probes: list[float] = []
counts = {"rejected": 0, "failed": 0, "empty": 0}
began = time.perf_counter()


class Caller(HttpUser):
    """Sends clips of mixed length, without a pause; when refused, waits as long as it is told."""

    wait_time = constant(0)

    @task
    def transcribe(self) -> None:
        name, content, seconds = random.choice(CLIPS)
        begun = time.perf_counter()
        form = {"parameters": '{"diarize": false, "language": "en"}'}
        with self.client.post("/predict", files={"file": (name, content)}, data=form, catch_response=True) as response:
            if response.status_code == 200:
                answered.append((seconds, time.perf_counter() - begun))
                counts["empty"] += not response.json()["text"].strip()
                response.success()
            elif response.status_code == 429:
                counts["rejected"] += 1
                response.success()
                time.sleep(min(float(response.headers["retry-after"]), _LONGEST_PAUSE_S))
            else:
                counts["failed"] += 1


class Prober(HttpUser):
    """Asks for health all the while."""

    fixed_count = 1
    wait_time = constant(_PROBE_S)

    @task
    def look(self) -> None:
        begun = time.perf_counter()
        if self.client.get(HEALTH).status_code == 200:
            probes.append(time.perf_counter() - begun)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def write(**_: Any) -> None:
    """Hand the raw figures to `run.py`."""
    seconds = time.perf_counter() - began
    RESULT.write_text(json.dumps({"answered": answered, "probes": probes, "seconds": seconds, **counts}))
