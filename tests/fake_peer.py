"""A peer of the comparison that needs no model: it answers at once, or fails as it is told to."""

import os
import sys
import time
from collections.abc import Mapping

from compare.protocol import Hear, Heard, Task, Work, serve


def _load(task: Task) -> Mapping[Work, Hear]:
    trouble = task.options.get("trouble")
    if trouble == "load":
        raise ValueError("the weights are of another kind\nand more that nobody reads")

    def hear(path: str) -> Heard:
        print("libraries print")
        os.write(1, b"from C too\n")
        if trouble == "hear":
            raise RuntimeError("too loud")
        if trouble == "die":
            print("fatal error: out of luck", file=sys.stderr, flush=True)
            os._exit(3)
        if trouble == "hang":
            time.sleep(60)
        time.sleep(task.options.get("seconds", 0))
        return Heard(
            text=task.models["text"],
            turns=((0.0, 1.0, "S0"), (1.0, 2.0, "S1")),
            utterances=(("S0", "one two"), ("S1", "three four")),
            parts={"recognition": 0.25, "diarization": 0.5} if task.works == ("whole",) else {},
        )

    return dict.fromkeys(("recognition", "diarization", "whole"), hear)


if __name__ == "__main__":
    serve(_load, ("numpy",))
