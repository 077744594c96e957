import numpy as np
import pytest
import torch
from whisper_oracle import oracle_features

from diarist.asr.features import WINDOW_SAMPLES, LogMel, pad_windows

CPU = torch.device("cpu")


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equal_to_the_reference(n_mels, random):
    noise = random.normal(0, 0.1, 123_457).astype(np.float32)
    tone = np.sin(np.arange(WINDOW_SAMPLES) * 0.05).astype(np.float32)
    batch = LogMel(n_mels, CPU)(pad_windows([torch.from_numpy(noise), torch.from_numpy(tone)], CPU))
    for row, waveform in zip(batch, (noise, tone), strict=True):
        torch.testing.assert_close(row[None], oracle_features(waveform, n_mels), atol=1e-4, rtol=0)


def test_silence_is_finite():
    assert torch.isfinite(LogMel(80, CPU)(torch.zeros(1, WINDOW_SAMPLES))).all()
