"""Transcribe recordings with faster-whisper and print seconds and words as JSON.

Runs in an interpreter that has faster-whisper and need not have diarist. Sequential, greedy, int8, English given;
loading the model is not counted, and the first recording is heard once beforehand.
"""

import argparse
import json
import time
from importlib import import_module
from importlib.metadata import version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a CTranslate2 model")
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    # imported by name, so that types can be checked where it is not installed
    peer = import_module("faster_whisper")
    model = peer.WhisperModel(options.model, device="cpu", compute_type="int8", cpu_threads=options.threads)

    def transcribe(recording: str) -> str:
        segments, _ = model.transcribe(recording, language="en", beam_size=1, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    transcribe(options.recordings[0])
    results = []
    for recording in options.recordings:
        begun = time.perf_counter()
        text = transcribe(recording)
        results.append({"seconds": time.perf_counter() - begun, "text": text})
    print(json.dumps({"version": version("faster-whisper"), "recordings": results}))


if __name__ == "__main__":
    main()
