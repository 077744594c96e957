"""The original's design, re-created small and honest, to be measured beside ours on the same weights and machine.

What is kept of it: the model runs inside `async def`, one request at a time; a recording is cut blindly into chunks of
30 s with 5 s of overlap on both sides, and the chunks of one request (never of two) make a batch of up to 24 for
transformers' `generate`. What is left out on both sides is diarization: pyannote.audio is not part of this project.
Decoding is ours, which is faster than the ffmpeg program that the original starts.

    python benchmarks/load/original.py PORT
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.responses import PlainTextResponse

from diarist import models
from diarist.audio import SAMPLE_RATE, decode

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "asr"))
from whisper_oracle import oracle_features, oracle_model  # type: ignore[import-not-found]

CHUNK_S, STRIDE_S, BATCH = 30, 5, 24


class Recognizer:
    """transformers' Whisper over chunks of one recording."""

    def __init__(self, name: str = "base") -> None:
        self.checkpoint = models.load_whisper(models.resolve(name, "asr"))
        self.model: Any = oracle_model(self.checkpoint)
        self.model.generation_config.suppress_tokens = list(self.checkpoint.suppress_tokens)
        self.model.generation_config.begin_suppress_tokens = [220, 50257]
        self.model.generation_config.max_length = 448

    @torch.inference_mode()
    def __call__(self, waveform: np.ndarray) -> str:
        step = (CHUNK_S - 2 * STRIDE_S) * SAMPLE_RATE
        last = max(1, len(waveform) - 2 * STRIDE_S * SAMPLE_RATE)
        chunks = [waveform[start : start + CHUNK_S * SAMPLE_RATE] for start in range(0, last, step)]
        texts: list[str] = []
        for first in range(0, len(chunks), BATCH):
            features = torch.cat(
                [oracle_features(chunk, self.checkpoint.dims.n_mels) for chunk in chunks[first : first + BATCH]]
            )
            prompt = torch.tensor([[50258, 50259, 50359]] * len(features))  # English, transcribe, with timestamps
            tokens = self.model.generate(features, decoder_input_ids=prompt, num_beams=1, do_sample=False)
            texts += [self.checkpoint.tokenizer.decode([t for t in row.tolist() if t < 50257]) for row in tokens]
        return "".join(texts)


def create_app() -> FastAPI:
    app = FastAPI()
    recognizer = Recognizer()

    @app.get("/health")
    async def health() -> PlainTextResponse:
        return PlainTextResponse("OK")

    @app.post("/predict")
    async def predict(file: UploadFile) -> dict[str, Any]:
        waveform, _, _ = decode(await file.read())
        return {"speakers": [], "chunks": [], "text": recognizer(waveform)}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
