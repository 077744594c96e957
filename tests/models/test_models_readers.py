"""Weights come out of every layout as the network's own numbers, or not at all."""

import dataclasses
import enum
import json
from pathlib import Path

import makers
import numpy as np
import pytest
import safetensors.torch
import torch

from diarist import models
from diarist.errors import ModelFormatError
from diarist.models.readers import ctranslate2, onnx, tokenizer


def local(folder: Path, kind: models.Kind = "asr") -> models.LocalModel:
    return models.resolve(str(folder), kind, offline=True)


def assert_same(found: models.WhisperCheckpoint, weights: dict[str, torch.Tensor]) -> None:
    assert found.tensors.keys() == weights.keys()
    for name, expected in weights.items():
        assert found.tensors[name].dtype == expected.dtype
        assert torch.equal(found.tensors[name], expected), name


# --- Whisper ---


@pytest.fixture
def hf_model(tmp_path: Path):
    """A Whisper as transformers writes it, and its modules' weights under openai's names, stated part by part."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**makers.hf_config()))
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    makers.tokenizer().save(str(folder / "tokenizer.json"))
    encoder, decoder = model.model.encoder, model.model.decoder
    parts = {
        "encoder.conv1": encoder.conv1,
        "encoder.conv2": encoder.conv2,
        "encoder.ln_post": encoder.layer_norm,
        "decoder.token_embedding": decoder.embed_tokens,
        "decoder.ln": decoder.layer_norm,
    }
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        for index, layer in enumerate(stack.layers):
            block = f"{side}.blocks.{index}"
            attentions = {"attn": (layer.self_attn, layer.self_attn_layer_norm)}
            if side == "decoder":
                attentions["cross_attn"] = (layer.encoder_attn, layer.encoder_attn_layer_norm)
            for name, (attention, norm) in attentions.items():
                parts |= {
                    f"{block}.{name}.query": attention.q_proj,
                    f"{block}.{name}.key": attention.k_proj,
                    f"{block}.{name}.value": attention.v_proj,
                    f"{block}.{name}.out": attention.out_proj,
                    f"{block}.{name}_ln": norm,
                }
            parts |= {
                f"{block}.mlp.0": layer.fc1,
                f"{block}.mlp.2": layer.fc2,
                f"{block}.mlp_ln": layer.final_layer_norm,
            }
    expected = {f"{name}.{end}": value for name, part in parts.items() for end, value in part.state_dict().items()}
    expected["encoder.positional_embedding"] = encoder.embed_positions.weight
    expected["decoder.positional_embedding"] = decoder.embed_positions.weight
    return folder, expected


def test_safetensors_of_transformers(hf_model) -> None:
    folder, expected = hf_model
    found = models.load_whisper(local(folder))
    assert found.dims == makers.DIMS
    assert_same(found, expected)


def test_sharded_safetensors(hf_model, tmp_path: Path) -> None:
    folder, expected = hf_model
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(stored)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        safetensors.torch.save_file({name: stored[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(models.load_whisper(local(folder)), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="not beside it"):
        models.load_whisper(local(folder))


def test_pickled_hub_checkpoint(hf_model) -> None:
    folder, expected = hf_model
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same(models.load_whisper(local(folder)), expected)


def test_generation_settings_of_the_hub_layout(hf_model) -> None:
    folder, _ = hf_model
    settings = {
        "alignment_heads": [[0, 1], [2, 0], [31, 3]],  # the last is its teacher's
        "suppress_tokens": [5, 6],
        "begin_suppress_tokens": [7, 256],
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = models.load_whisper(local(folder))
    assert found.alignment_heads == ((0, 1), (2, 0))
    assert found.suppress_tokens == (5, 6)
    assert found.begin_suppress_tokens == (7, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ctranslate2_splits_the_fused_projections(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = makers.tensors(dtype=dtype)
    makers.write_ct2(tmp_path / "ct2", weights)
    found = models.load_whisper(local(tmp_path / "ct2"))
    assert found.dims == makers.DIMS
    assert_same(found, weights)
    assert found.alignment_heads == ((2, 1),)
    assert found.suppress_tokens == (1, 2, 3)
    assert found.begin_suppress_tokens == (4, 256)
    assert not found.multilingual


def test_openai_checkpoint(tmp_path: Path) -> None:
    weights = makers.write_openai(tmp_path / "mine.pt")
    makers.tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = models.load_whisper(local(tmp_path / "mine.pt"))
    assert found.dims == makers.DIMS
    assert_same(found, weights)
    assert found.alignment_heads == ((1, 0), (1, 1), (2, 0), (2, 1)), "the upper half of the decoder, as whisper has it"


def test_published_alignment_heads_are_taken_by_file_name(tmp_path: Path) -> None:
    dims = dataclasses.replace(makers.DIMS, n_text_layer=4, n_text_head=8, n_text_state=48)
    makers.write_openai(tmp_path / "tiny.pt", dims)
    makers.tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = models.load_whisper(local(tmp_path / "tiny.pt"))
    assert found.alignment_heads == ((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5))


@pytest.mark.weights
def test_the_two_published_forms_of_tiny_en_are_equal(tiny_en_model, openai_tiny_en: Path) -> None:
    """OpenAI's own checkpoint against its CTranslate2 conversion: every number of every tensor."""
    converted = models.load_whisper(tiny_en_model)
    files = {"tiny.en.pt": openai_tiny_en, "tokenizer.json": tiny_en_model.files["tokenizer.json"]}
    original = models.load_whisper(dataclasses.replace(tiny_en_model, files=files))
    assert_same(original, dict(converted.tensors))
    assert original.dims == converted.dims
    assert original.alignment_heads == converted.alignment_heads, "one from the catalogue, one from the model's files"
    assert original.suppress_tokens == tuple(sorted(converted.suppress_tokens)), "one computed, one from the files"
    assert original.begin_suppress_tokens == converted.begin_suppress_tokens


@pytest.mark.weights
def test_base(base_model) -> None:
    found = models.load_whisper(base_model)
    assert found.dims == models.WhisperDims(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    assert found.multilingual
    assert found.alignment_heads == ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6))
    assert found.tokenizer.token_to_id("<|notimestamps|>") == 50363
    assert tokenizer.suppressed_by_default(found.tokenizer) == tuple(sorted(found.suppress_tokens))


# --- tokenizers ---


def test_missing_timestamp_tokens_are_added(tmp_path: Path) -> None:
    makers.write_ct2(tmp_path, makers.tensors())
    makers.tokenizer(timestamps=False).save(str(tmp_path / "tokenizer.json"))
    found = models.load_whisper(local(tmp_path)).tokenizer
    assert found.get_vocab_size() == makers.N_VOCAB
    assert found.token_to_id("<|30.00|>") == makers.N_VOCAB - 1
    assert found.encode("<|0.02|>", add_special_tokens=False).ids == [found.token_to_id("<|0.00|>") + 1]


@pytest.mark.weights
def test_tokenizer_from_vocabulary_and_merges(base_model, tmp_path: Path) -> None:
    """The two-file layout writes tokens as the one-file layout does."""
    expected = models.load_whisper(base_model).tokenizer
    table = json.loads(base_model.files["tokenizer.json"].read_text(encoding="utf-8"))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    files = {
        "vocab.json": json.dumps(table["model"]["vocab"]),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges),
        "added_tokens.json": json.dumps({token["content"]: token["id"] for token in table["added_tokens"]}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = tokenizer.read({name: tmp_path / name for name in files}, 51865)
    for text in (" Hello, world!", "Grüße – 你好 🙂", "<|startoftranscript|><|de|><|transcribe|><|0.00|> so<|1.50|>"):
        ids = expected.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)


@pytest.mark.weights
def test_the_v3_tokenizer_is_derived_from_its_predecessor(base_model) -> None:
    found = tokenizer.read({"tokenizer.json": base_model.files["tokenizer.json"]}, tokenizer.MULTILINGUAL_V3)
    # ids as published for large-v3: Cantonese after Sundanese, everything behind it one later
    expected = {
        "<|endoftext|>": 50257,
        "<|startoftranscript|>": 50258,
        "<|su|>": 50357,
        "<|yue|>": 50358,
        "<|translate|>": 50359,
        "<|transcribe|>": 50360,
        "<|notimestamps|>": 50364,
        "<|0.00|>": 50365,
        "<|30.00|>": 51865,
    }
    assert {text: found.token_to_id(text) for text in expected} == expected
    assert found.get_vocab_size() == 51866


@pytest.mark.weights
def test_another_models_tokenizer_is_refused(base_model, tiny_en_model) -> None:
    for files, size in ((base_model.files, 51864), (tiny_en_model.files, 51865), (tiny_en_model.files, 51866)):
        with pytest.raises(ModelFormatError):
            tokenizer.read({"tokenizer.json": files["tokenizer.json"]}, size)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    for text in ("", "{}", '{"added_tokens": [], "model": {"type": "BPE"}}', "[" * 10_000):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelFormatError):
            tokenizer.read({"tokenizer.json": tmp_path / "tokenizer.json"}, makers.N_VOCAB)


# --- what is wrong with a Whisper is said ---


def test_missing_extra_and_misshapen_tensors(tmp_path: Path) -> None:
    makers.tokenizer().save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "x.pt"
    makers.write_openai(path, **{"decoder.ln.weight": torch.zeros(9)})
    with pytest.raises(ModelFormatError, match=r"decoder\.ln\.weight has shape \[9\]"):
        models.load_whisper(local(path))
    makers.write_openai(path, **{"adapter.weight": torch.zeros(1)})
    with pytest.raises(ModelFormatError, match=r"does not have: adapter\.weight"):
        models.load_whisper(local(path))
    torch.save({"dims": {}, "model_state_dict": {}}, path)
    with pytest.raises(ModelFormatError, match="n_mels is None"):
        models.load_whisper(local(path))
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ModelFormatError, match="not an openai-whisper checkpoint"):
        models.load_whisper(local(path))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    makers.tokenizer().save(str(tmp_path / "tokenizer.json"))
    makers.write_openai(tmp_path / "x.pt", **{"decoder.ln.weight": torch.zeros(8, dtype=torch.int32)})
    with pytest.raises(ModelFormatError, match="not floating point"):
        models.load_whisper(local(tmp_path / "x.pt"))


def test_quantised_ctranslate2_is_refused_with_the_cure(tmp_path: Path) -> None:
    variables = makers.ct2_variables(makers.tensors())
    name = "decoder/layer_0/ffn/linear_0/weight"
    variables[name] = variables[name].astype(np.int8)
    path = tmp_path / "model.bin"
    path.write_bytes(makers.ct2_bytes(variables))
    with pytest.raises(ModelFormatError, match=r"quantised.*float16"):
        ctranslate2.read(path, "WhisperSpec")


def test_bias_on_the_keys_is_refused(tmp_path: Path) -> None:
    makers.write_ct2(tmp_path, makers.tensors())
    variables = makers.ct2_variables(makers.tensors())
    variables["encoder/layer_0/self_attention/linear_0/bias"][makers.DIMS.n_audio_state] = 1
    (tmp_path / "model.bin").write_bytes(makers.ct2_bytes(variables))
    with pytest.raises(ModelFormatError, match="bias on its keys"):
        models.load_whisper(local(tmp_path))


def test_ctranslate2_model_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(makers.ct2_bytes({}, spec="TransformerSpec"))
    with pytest.raises(ModelFormatError, match="'TransformerSpec'"):
        ctranslate2.read(path, "WhisperSpec")


def test_loading_neither_copies_nor_changes_the_stored_dtype(tmp_path: Path) -> None:
    makers.write_openai(tmp_path / "x.pt")
    makers.tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = models.load_whisper(local(tmp_path / "x.pt"))
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}
    before = (tmp_path / "x.pt").read_bytes()
    found.tensors["decoder.ln.weight"].zero_()
    assert (tmp_path / "x.pt").read_bytes() == before, "mapped privately: writing into a tensor leaves the file alone"


# --- ONNX ---


def test_onnx_values_in_every_encoding(tmp_path: Path) -> None:
    floats = np.array([[1.5, -2.0, 0.25]], np.float32)
    packed = makers.proto(1, makers.varint(1) + makers.varint(3)) + makers.proto(2, 1) + makers.proto(8, "packed")
    packed += makers.proto(4, floats.tobytes())
    ints = makers.proto(1, 2) + makers.proto(2, 7) + makers.proto(8, "ints")
    ints += makers.proto(7, makers.varint(5) + makers.varint((1 << 64) - 3))
    scalar = makers.onnx_tensor("scalar", np.array(7.0, np.float64))
    half = makers.onnx_tensor("half", np.array([0.5], np.float16))
    (tmp_path / "m.onnx").write_bytes(makers.onnx_model(makers.onnx_tensor("raw", floats), packed, ints, scalar, half))
    found = onnx.read(tmp_path / "m.onnx").constants
    assert found["raw"].tolist() == found["packed"].tolist() == floats.tolist()
    assert found["ints"].tolist() == [5, -3]
    assert found["scalar"].item() == 7.0
    assert found["half"].dtype == torch.float16


@pytest.mark.weights
def test_onnx_reader_agrees_with_the_library(segmentation_model, embedding_model) -> None:
    reference = pytest.importorskip("onnx", reason="a second opinion; the structure is checked without it below")
    from onnx import numpy_helper

    for model in (segmentation_model, embedding_model):
        (path,) = model.files.values()
        expected = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in reference.load(str(path)).graph.initializer
        }
        found = onnx.read(path).constants
        assert expected.keys() <= found.keys()
        for name, values in expected.items():
            assert np.array_equal(found[name].numpy(), values), name


@pytest.mark.weights
def test_segmentation_runs_as_a_torch_network(segmentation_model) -> None:
    """The LSTM's gates, the linear layers' orientation and SincNet's filters, against ONNX Runtime on noise."""
    import onnxruntime
    from torch.nn import functional

    tensors = models.load_segmentation(segmentation_model)
    lstm = torch.nn.LSTM(60, 128, 4, bidirectional=True, batch_first=True)
    lstm.load_state_dict({name.removeprefix("lstm."): t for name, t in tensors.items() if name.startswith("lstm.")})
    wave = torch.randn(1, 1, 32_000, generator=torch.Generator().manual_seed(0)) * 0.1

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.instance_norm(x, weight=tensors[f"{name}.weight"], bias=tensors[f"{name}.bias"])

    with torch.inference_mode():
        x = functional.conv1d(norm(wave, "sincnet.wav_norm1d"), tensors["sincnet.conv1d.0.filters"], stride=10).abs()
        x = functional.leaky_relu(norm(functional.max_pool1d(x, 3), "sincnet.norm1d.0"))
        for index in (1, 2):
            x = functional.conv1d(x, tensors[f"sincnet.conv1d.{index}.weight"], tensors[f"sincnet.conv1d.{index}.bias"])
            x = functional.leaky_relu(norm(functional.max_pool1d(x, 3), f"sincnet.norm1d.{index}"))
        x = lstm(x.transpose(1, 2))[0]
        for index in (0, 1):
            x = functional.linear(x, tensors[f"linear.{index}.weight"], tensors[f"linear.{index}.bias"])
            x = functional.leaky_relu(x)
        x = functional.linear(x, tensors["classifier.weight"], tensors["classifier.bias"]).log_softmax(-1)
    (path,) = segmentation_model.files.values()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": wave.numpy()})
    assert np.abs(x.numpy() - expected).max() < 1e-3


# --- pyannote's checkpoints ---


@pytest.mark.weights
def test_sinc_filters_reproduce_the_evaluated_ones(segmentation_model) -> None:
    """From the cut-off frequencies alone come the 80 filters that the ONNX export of the real network holds."""
    from diarist.models.readers import segmentation

    expected = models.load_segmentation(segmentation_model)["sincnet.conv1d.0.filters"].double()
    spectrum = torch.fft.rfft(expected[:40, 0], n=16_000).abs()  # one bin per hertz
    inside = spectrum > spectrum.amax(1, keepdim=True) / 2
    low = inside.float().argmax(1).double() - 50
    band = inside.sum(1).double() - 50
    parameters = torch.stack([low, band], 1).requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-14)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = ((segmentation.sinc_filters(parameters[:, :1], parameters[:, 1:]) - expected) ** 2).sum() * 1e4
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found = segmentation.sinc_filters(parameters[:, :1], parameters[:, 1:])
    assert (found - expected).abs().max() < 1e-5


def test_pyannote_segmentation_checkpoint(tmp_path: Path) -> None:
    """As pyannote writes it: under `state_dict`, beside a description made of its own classes, filters as frequencies."""
    from diarist.models.readers import segmentation

    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in segmentation.shapes().items()}
    low, band = torch.linspace(30, 6000, 40)[:, None], torch.full((40, 1), 120.0)
    expected = dict(state) | {"sincnet.conv1d.0.filters": segmentation.sinc_filters(low, band)}
    del state["sincnet.conv1d.0.filters"]
    state |= {"sincnet.conv1d.0.filterbank.low_hz_": low, "sincnet.conv1d.0.filterbank.band_hz_": band}
    state |= {"sincnet.conv1d.0.filterbank.window_": torch.zeros(125)}
    save_as_pyannote(tmp_path / "pytorch_model.bin", state)
    found = models.load_segmentation(local(tmp_path, "segmentation"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def save_as_pyannote(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Pickled with classes under pyannote's names, which are not importable where it is read."""
    problem = enum.Enum("Problem", ["MONO_LABEL_CLASSIFICATION"])
    specifications = dataclasses.make_dataclass("Specifications", ["problem", "classes"])
    described = specifications(problem=problem.MONO_LABEL_CLASSIFICATION, classes=["a", "b"])
    versions = {"torch": torch.torch_version.TorchVersion("2.0")}
    about = {"versions": versions, "specifications": described}
    with makers.importable("pyannote.audio.core.task", problem, specifications):
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.0", "pyannote.audio": about}, path)


def test_pyannote_embedding_checkpoint_folds_batch_norm(tmp_path: Path) -> None:
    """Folded weights give what convolution and BatchNorm give one after the other."""
    from diarist.models.readers import embedding

    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {
        "resnet.seg_1.weight": torch.randn(256, 5120),
        "resnet.seg_1.bias": torch.randn(256),
    }
    pairs = {}
    for name, (rows, columns, kernel) in embedding._convolutions().items():
        norm = torch.nn.BatchNorm2d(rows).eval()
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        convolution = torch.nn.Conv2d(columns, rows, kernel, bias=False, padding=kernel // 2)
        shortcut = name.endswith("shortcut")
        stem = f"resnet.{name}"
        state[f"{stem}.0.weight" if shortcut else f"{stem}.weight"] = convolution.weight.detach()
        prefix = f"{stem}.1" if shortcut else stem.replace("conv", "bn")
        state |= {f"{prefix}.{part}": value for part, value in norm.state_dict().items()}
        pairs[name] = (convolution, norm)
    save_as_pyannote(tmp_path / "pytorch_model.bin", state)
    found = models.load_embedding(local(tmp_path, "embedding"))
    assert found.keys() == embedding.shapes().keys()
    for name in ("conv1", "layer1.0.conv2", "layer3.0.shortcut", "layer4.2.conv1"):
        convolution, norm = pairs[name]
        x = torch.randn(1, convolution.in_channels, 6, 6)
        folded = torch.nn.functional.conv2d(
            x, found[f"{name}.weight"], found[f"{name}.bias"], padding=convolution.padding
        )
        with torch.inference_mode():
            assert torch.allclose(folded, norm(convolution(x)), atol=1e-4)


@pytest.mark.weights
def test_embedding_and_plda_are_whole(embedding_model, plda_model) -> None:
    from diarist.models.readers import embedding

    found = models.load_embedding(embedding_model)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == embedding.shapes()
    assert len([name for name in found if "shortcut" in name]) == 6, "where the width changes: layers 2, 3 and 4"
    plda = models.load_plda(plda_model)
    assert plda["tr"].shape == (128, 128)
    assert plda["lda"].shape == (256, 128)
    assert (plda["psi"] > 0).all()


def test_models_without_hub_names_round_trip_through_safetensors(tmp_path: Path) -> None:
    from diarist.models.readers import segmentation

    weights = {name: torch.randn(shape) for name, shape in segmentation.shapes().items()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    found = models.load_segmentation(local(tmp_path, "segmentation"))
    assert all(torch.equal(found[name], weights[name]) for name in weights)
