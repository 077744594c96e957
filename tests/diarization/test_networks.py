"""Both networks against ONNX Runtime on the files that the weights come from."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from diarist import native
from diarist.audio import decode
from diarist.compute import Compute, choose
from diarist.diarization import embedding, features
from diarist.diarization.embedding import EmbeddingModel
from diarist.diarization.segmentation import SegmentationModel
from diarist.models import load_embedding, load_segmentation

EXACT = choose("cpu", "float32")
compiled = pytest.mark.skipif(not native.is_available(), reason="no C compiler, or no AVX2")


def onnx_session(model) -> onnxruntime.InferenceSession:
    (path,) = [path for path in model.files.values() if path.suffix == ".onnx"]
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Three windows with speech-like changes of loudness and pitch."""
    t = np.arange(160_000) / 16_000
    rng = np.random.default_rng(0)
    rows = [
        np.sin(2 * np.pi * f * t * (1 + 0.1 * np.sin(3 * t))) * (np.sin(2 * np.pi * 2 * t) > 0) * 0.2
        + rng.normal(0, 0.01, t.size)
        for f in (110, 180, 260)
    ]
    return np.stack(rows).astype(np.float32)


def test_segmentation_equals_onnx_runtime(segmentation_model, sound):
    session = onnx_session(segmentation_model)
    expected = session.run(None, {session.get_inputs()[0].name: sound[:, None]})[0]
    ours = SegmentationModel(load_segmentation(segmentation_model), EXACT)(torch.from_numpy(sound)).numpy()
    assert ours.shape == (3, 589, 7)
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), atol=1e-3)


def test_windows_cut_from_one_filtered_stretch_equal_windows_alone(segmentation_model, sound):
    model = SegmentationModel(load_segmentation(segmentation_model), EXACT)
    stretch = torch.from_numpy(np.concatenate(sound))
    starts = [0, 270 * 59, 270 * 500]
    together = model.windows(model.filtered(stretch), starts)
    alone = model(torch.stack([stretch[start : start + 160_000] for start in starts]))
    torch.testing.assert_close(together.exp(), alone.exp(), atol=1e-3, rtol=0)


def test_sincnet_of_many_windows_equals_one_after_another(segmentation_model, sound):
    model = SegmentationModel(load_segmentation(segmentation_model), EXACT)
    bands = model.filtered(torch.from_numpy(np.concatenate(sound)))
    starts = [0, 270 * 59, 270 * 500]
    alone = [model._sincnet(bands.cut(start, 160_000)) for start in starts]
    torch.testing.assert_close(model._sincnets(bands, starts), torch.stack(alone, dim=1), atol=1e-3, rtol=0)


def test_embedding_equals_onnx_runtime(embedding_model, sound):
    mel = features.log_mel(torch.from_numpy(sound[:, :64_000]))
    mel = mel - mel.mean(dim=1, keepdim=True)
    session = onnx_session(embedding_model)
    expected = session.run(None, {session.get_inputs()[0].name: mel.numpy()})[0]
    ours = EmbeddingModel(load_embedding(embedding_model), EXACT)(mel).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@compiled
def test_a_voice_in_steps_is_the_same(embedding_model, sound):
    """12 bits turn an embedding by 0.2 degrees; the shared trunk turns it by 8."""
    tensors = load_embedding(embedding_model)
    mel = features.log_mel(torch.from_numpy(sound))
    mel = mel - mel.mean(dim=1, keepdim=True)
    exact, ours = (EmbeddingModel(tensors, replace(EXACT, int8=int8))(mel) for int8 in (False, True))
    assert torch.nn.functional.cosine_similarity(exact, ours).min() > 1 - 2e-5
    other = EmbeddingModel(tensors, replace(EXACT, dtype=torch.bfloat16, int8=True))(mel)  # which steps are not made of
    torch.testing.assert_close(other, ours, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_filling_up_to_a_usual_length_changes_nothing(embedding_model, sound, monkeypatch, dtype):
    """Neither a value nor the number of trunk frames, wherever a stretch ends."""
    model = EmbeddingModel(load_embedding(embedding_model), choose("cpu", dtype))
    mel = features.log_mel(torch.from_numpy(sound[0]))
    lengths = [1, 7, 8, 9, 39, 40, 41, 333, 997, 998]
    filled = [model.trunk(mel[None, :frames]) for frames in lengths]
    monkeypatch.setattr(embedding, "_STEP", 1)
    for frames, trunk in zip(lengths, filled, strict=True):
        torch.testing.assert_close(trunk, model.trunk(mel[None, :frames]), atol=1e-6, rtol=1e-6)
        assert trunk.shape[1] == -(-frames // embedding.TRUNK_STRIDE)


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=compiled)])
def test_the_trunk_hears_its_context_and_no_more(embedding_model, sound, int8):
    """So seams between stretches do not show."""
    model = EmbeddingModel(load_embedding(embedding_model), replace(EXACT, int8=int8))
    mel = features.log_mel(torch.from_numpy(sound[0]))[None]
    own, context, rooms = slice(320, 480), embedding.TRUNK_CONTEXT, embedding.new_rooms()
    expected = model.trunk(mel)[:, own.start // embedding.TRUNK_STRIDE : own.stop // embedding.TRUNK_STRIDE]

    def found(reach):
        stretch = model.trunk(mel[:, own.start - reach : own.stop + reach], rooms)
        return stretch[:, reach // embedding.TRUNK_STRIDE :][:, : expected.shape[1]]

    enough, too_little = found(context), found(context - 16)
    torch.testing.assert_close(enough, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(too_little, expected, atol=1e-6, rtol=1e-6)


def test_a_mask_selects_frames(embedding_model, sound):
    """Pooling under a mask equals pooling only what it selects."""
    model = EmbeddingModel(load_embedding(embedding_model), EXACT)
    mel = features.log_mel(torch.from_numpy(sound[0]))
    trunk = model.trunk((mel - mel.mean(dim=0))[None])[0]
    mask = torch.zeros(2, len(trunk))
    mask[0, 20:70] = 1
    mask[1, 80:110] = 1
    whole = model.pool(trunk, mask)
    for row, part in zip(whole, (trunk[20:70], trunk[80:110]), strict=True):
        torch.testing.assert_close(row, model.pool(part, torch.ones(1, len(part)))[0], atol=1e-3, rtol=1e-3)


def test_filter_banks_have_kaldis_shape_and_floor():
    silence = features.log_mel(torch.zeros(16_000))
    assert silence.shape == (98, 80)
    assert torch.allclose(silence, torch.full_like(silence, float(np.log(np.finfo(np.float32).eps))))
    tone = torch.sin(torch.arange(16_000) * 2 * torch.pi * 1000 / 16_000) * 0.1
    peak = features.log_mel(tone).mean(dim=0).argmax()
    edges = [1127 * np.log1p(f / 700) for f in (20, 8000)]
    expected = (1127 * np.log1p(1000 / 700) - edges[0]) / (edges[1] - edges[0]) * 81 - 1
    assert abs(float(peak) - expected) < 1


@pytest.mark.parametrize(
    ("dtype", "int8", "most"),
    [(torch.bfloat16, False, 0.002), pytest.param(torch.float32, True, 0.0002, marks=compiled)],
)
def test_other_types_decide_as_float32_does(segmentation_model, sample_recording, dtype, int8, most):
    """In bfloat16 two frames of a thousand change their class (with bfloat16 cells it was six), in 12 bits a tenth of that."""
    waveform = torch.from_numpy(decode(sample_recording.wav)[0])
    starts = [second * 16_000 for second in range(20)]
    weights = load_segmentation(segmentation_model)
    fast = SegmentationModel(weights, Compute(torch.device("cpu"), dtype, int8=int8))
    exact = SegmentationModel(weights, EXACT)
    one, other = (model.windows(model.filtered(waveform), starts).argmax(dim=2) for model in (exact, fast))
    assert (one != other).float().mean() < most
