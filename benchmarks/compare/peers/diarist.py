"""diarist itself, as a caller of the library has it."""

from collections.abc import Mapping

from compare.peer import Kit, Peer
from compare.protocol import Hear, Heard, Task, Work, serve


def _prepare(_: Kit) -> Mapping[str, str]:
    """Fetch what is not in its cache yet, so that no start of a process waits for the network."""
    from compare import weights
    from diarist import models

    weights.whisper()
    parts = models.diarization_parts("default")
    models.resolve(parts.segmentation, "segmentation")
    models.resolve(parts.embedding, "embedding")
    return {}


PEERS = (
    Peer(
        name="diarist",
        title="diarist",
        settings="as it comes, in a process of its own",
        module="compare.peers.diarist",
        works=("recognition", "diarization", "whole"),
        environment=None,
        prepare=_prepare,
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    from diarist.importing import import_lean

    import_lean("diarist.pipeline")
    from compare import weights
    from diarist import Pipeline, models
    from diarist.audio import open_audio
    from diarist.diarization.stream import Diarizer

    telling = "default" if set(task.works) - {"recognition"} else None
    pipeline = Pipeline(weights.MODEL, telling, language="en", threads=task.threads, offline=True)

    def recognize(path: str) -> Heard:
        return Heard(text=pipeline(path, diarize=False).text)

    def whole(path: str) -> Heard:
        transcript = pipeline(path)
        return Heard(
            text=transcript.text,
            turns=tuple((turn.segment.start, turn.segment.end, turn.speaker) for turn in transcript.turns),
            utterances=tuple((utterance.speaker or "", utterance.text) for utterance in transcript.utterances),
        )

    if telling is None:
        return {"recognition": recognize}
    parts = models.diarization_parts(telling)
    diarizer = Diarizer(
        models.load_segmentation(models.resolve(parts.segmentation, "segmentation", offline=True)),
        models.load_embedding(models.resolve(parts.embedding, "embedding", offline=True)),
        None,
        pipeline.compute,
        clustering="centroid",
    )

    def diarize(path: str) -> Heard:
        stream = diarizer.stream(speakers=True)
        with open_audio(path, block_s=30.0) as audio:
            for block in audio:
                stream.push(block)
        stream.finish()
        found = stream.turns().turns
        return Heard(turns=tuple((turn.segment.start, turn.segment.end, turn.speaker) for turn in found))

    return {"recognition": recognize, "diarization": diarize, "whole": whole}


if __name__ == "__main__":
    serve(_load, ("torch",))
