"""Starts the command of this container with what a mounted model repository holds.

As `diarist.handler` has it: weights in the repository are used instead of `ASR_MODEL`, and its folder `diarist-models`
is the cache of models. The command takes this process's place, so that it gets the signals.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from diarist.handler import WEIGHTS_FOLDER, holds_weights


def environment(repository: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The variables for the command.

    Args:
        repository: Where a model repository may be mounted.
        given: The container's own variables.
    """
    found = dict(given)
    if holds_weights(repository):
        found["ASR_MODEL"] = str(repository)
    if (repository / WEIGHTS_FOLDER).is_dir():
        found["DIARIST_CACHE"] = str(repository / WEIGHTS_FOLDER)
    return found


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], environment(Path("/repository"), os.environ))  # noqa: S606 (no shell is meant)
