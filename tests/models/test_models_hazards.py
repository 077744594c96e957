"""Hazard 13: weights from outside are hostile. Nothing in them runs, and nothing broken in them passes."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import makers
import numpy as np
import pytest
import safetensors.torch
import torch

from diarist import models
from diarist.errors import ModelFormatError, ModelNotFoundError
from diarist.models.readers import arrays, ctranslate2, onnx, pickles
from diarist.models.readers import safetensors as safetensors_reader


class Planted:
    """Pickled code: reading it without protection creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


class PlantedState(Planted):
    """The same through the second door of the protocol, called on a class that would be let in."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.path.join, ("a",), None, None, iter([(Planted(self.canary), 1)])


@pytest.fixture
def canary(tmp_path: Path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a weight file ran"


def local(path: Path, kind: models.Kind = "asr") -> models.LocalModel:
    return models.resolve(str(path), kind, offline=True)


def refuse(path: Path, kind: models.Kind = "asr") -> str:
    """Load it as its kind; it must fail, by name and with the file in the message."""
    load = {
        "asr": models.load_whisper,
        "segmentation": models.load_segmentation,
        "embedding": models.load_embedding,
        "plda": models.load_plda,
    }[kind]
    with pytest.raises(ModelFormatError) as caught:
        load(local(path, kind))
    assert str(path) in str(caught.value)
    return str(caught.value)


def whisper_folder(folder: Path) -> Path:
    """A folder with everything but the weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(makers.hf_config()))
    makers.tokenizer().save(str(folder / "tokenizer.json"))
    return folder


# --- code ---


def test_the_canary_sings_without_protection(tmp_path: Path) -> None:
    """The planted pickle is a live one: plain torch.load runs it."""
    torch.save({"dims": Planted(tmp_path / "sung")}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "sung").exists()


@pytest.mark.parametrize("planted", [Planted, PlantedState])
def test_h13_pickled_code_in_an_openai_checkpoint(tmp_path: Path, canary: Path, planted: type) -> None:
    folder = whisper_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    torch.save({"dims": {}, "model_state_dict": {}, "extra": planted(canary)}, folder / "x.pt")
    assert "refused" in refuse(folder / "x.pt")


def test_h13_pickled_code_in_a_hub_checkpoint(tmp_path: Path, canary: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    torch.save({"model.x": Planted(canary)}, folder / "pytorch_model.bin")
    message = refuse(folder)
    assert "safetensors" in message, "the cure"
    assert "weights_only" not in message, "not torch's advice to turn the protection off"


@pytest.mark.parametrize("kind", ["segmentation", "embedding"])
def test_h13_pickled_code_in_a_pyannote_checkpoint(tmp_path: Path, canary: Path, kind: models.Kind) -> None:
    torch.save(
        {"state_dict": {}, "pyannote.audio": {"specifications": Planted(canary)}}, tmp_path / "pytorch_model.bin"
    )
    refuse(tmp_path, kind)


def test_h13_pickle_from_before_archives(tmp_path: Path, canary: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    torch.save({"x": Planted(canary)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refuse(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(canary)))
    refuse(folder)


def test_h13_the_inert_stand_ins_do_nothing(tmp_path: Path, canary: Path) -> None:
    """A checkpoint that abuses the names that are let in gets an empty object, whatever it passes to it."""

    class Specifications:
        def __reduce__(self) -> tuple[object, ...]:
            return Specifications, (str(canary), {"__class__": "x"}), {"state": str(canary)}

    with makers.importable("pyannote.audio.core.task", Specifications):
        torch.save({"specifications": Specifications()}, tmp_path / "x.bin")
    allowed = set(torch.serialization.get_safe_globals())
    found = pickles.read(tmp_path / "x.bin")["specifications"]
    assert isinstance(found, pickles.Inert)
    assert vars(found) == {}
    assert set(torch.serialization.get_safe_globals()) == allowed, "nothing more stays allowed afterwards"


def test_h13_object_arrays(tmp_path: Path, canary: Path) -> None:
    planted = np.array([Planted(canary)], dtype=object)
    np.savez(tmp_path / "plda.npz", mu=planted, allow_pickle=True)
    np.savez(tmp_path / "xvec_transform.npz", mean1=np.zeros(256))
    refuse(tmp_path, "plda")


def test_h13_code_and_yaml_beside_the_weights_are_not_read(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "m"
    makers.write_ct2(folder, makers.tensors())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Planted"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{canary}']\n")
    assert models.load_whisper(local(folder)).dims == makers.DIMS


def test_h13_a_pipeline_folder_is_recognised_without_its_yaml(tmp_path: Path, canary: Path) -> None:
    for part in ("segmentation", "embedding", "plda"):
        (tmp_path / "p" / part).mkdir(parents=True)
    (tmp_path / "p" / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{canary}']\n")
    parts = models.diarization_parts(str(tmp_path / "p"))
    assert parts.clustering == "vbx"
    assert parts.plda == str(tmp_path / "p" / "plda")


def test_h13_a_scripted_model_is_refused(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", b"\x80\x02K\x01.")
    assert "TorchScript" in refuse(folder)


# --- structure ---


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> None:
    """Replace an archive by a changed copy."""
    aside = path.with_suffix(".old")
    path.rename(aside)
    with zipfile.ZipFile(aside) as old, zipfile.ZipFile(path, "w") as new:
        change(old, new)
    aside.unlink()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_h13_duplicate_members(tmp_path: Path) -> None:
    def twice(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for info in [*old.infolist(), old.infolist()[0]]:
            new.writestr(info, old.read(info))

    folder = whisper_folder(tmp_path / "m")
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    rewritten(folder / "pytorch_model.bin", twice)
    assert "twice" in refuse(folder)
    np.savez(tmp_path / "a.npz", mu=np.zeros(2))
    rewritten(tmp_path / "a.npz", twice)
    with pytest.raises(ModelFormatError, match="twice"):
        arrays.read(tmp_path / "a.npz")


def test_h13_a_compressed_checkpoint_is_no_bomb(tmp_path: Path) -> None:
    def packed(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)

    folder = whisper_folder(tmp_path / "m")
    torch.save({"x": torch.zeros(1000)}, folder / "pytorch_model.bin")
    rewritten(folder / "pytorch_model.bin", packed)
    assert "compressed" in refuse(folder)


def test_h13_an_array_bomb(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("mu.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(arrays.MAX_BYTES // (16 << 20) + 1):
            member.write(bytes(16 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 4 << 20
    with pytest.raises(ModelFormatError, match="256 MiB"):
        arrays.read(tmp_path / "a.npz")


@pytest.mark.parametrize("claim", [2**63, 2**40, 101 << 20])
def test_h13_absurd_safetensors_header(tmp_path: Path, claim: int) -> None:
    folder = whisper_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", claim) + b"{}")
    refuse(folder)


def test_h13_safetensors_that_overlap_or_leave_the_file(tmp_path: Path) -> None:
    def write(header: dict, data: bytes) -> Path:
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header, data in (
        ({"a": entry, "b": entry}, bytes(8)),
        ({"a": entry | {"data_offsets": [0, 80], "shape": [20]}}, bytes(8)),
        ({"a": entry | {"shape": [1 << 62]}}, bytes(8)),
        ({"a": entry | {"data_offsets": [8, 0]}}, bytes(8)),
    ):
        with pytest.raises(ModelFormatError):
            safetensors_reader.read(write(header, data))


def test_h13_an_index_cannot_name_files_outside(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "config.json"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        refuse(folder)
    for text in ("[]", "{}", '{"weight_map": {"a": 1}}', "not json"):
        (folder / "model.safetensors.index.json").write_text(text)
        refuse(folder)


TINY = makers.tensors()


@pytest.mark.parametrize("layout", ["model.safetensors", "model.bin", "x.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_h13_truncated_whisper(tmp_path: Path, layout: str, keep: float) -> None:
    folder = whisper_folder(tmp_path / "m")
    path = folder / layout
    if layout == "model.safetensors":
        safetensors.torch.save_file({f"model.{name}": value.contiguous() for name, value in TINY.items()}, path)
    elif layout == "model.bin":
        makers.write_ct2(folder, TINY)
    elif layout == "x.pt":
        makers.write_openai(path)
    else:
        torch.save({f"model.{name}": value for name, value in TINY.items()}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refuse(folder)


@pytest.mark.weights
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_h13_truncated_networks(tmp_path: Path, segmentation_model, plda_model, keep: float) -> None:
    (source,) = segmentation_model.files.values()
    data = source.read_bytes()
    (tmp_path / "x.onnx").write_bytes(data[: int(len(data) * keep)])
    refuse(tmp_path / "x.onnx", "segmentation")
    folder = tmp_path / "plda"
    folder.mkdir()
    for name, path in plda_model.files.items():
        data = path.read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])
    refuse(folder, "plda")


@pytest.mark.weights
def test_h13_mutated_onnx_is_read_or_refused(tmp_path: Path, segmentation_model) -> None:
    """Any change of the graph's bytes ends in tensors or in our error, never in another one."""
    (source,) = segmentation_model.files.values()
    data = bytearray(source.read_bytes())
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        mutated = bytearray(data)
        for at in random.integers(0, len(data), 20):  # anywhere
            mutated[at] = random.integers(256)
        for at in random.integers(0, 4000, 3):  # and in the structure at the front
            mutated[at] = random.integers(256)
        (tmp_path / "x.onnx").write_bytes(mutated)
        try:
            models.load_segmentation(local(tmp_path / "x.onnx", "segmentation"))
        except ModelFormatError:
            refused += 1
    assert refused > 30


def test_h13_mutated_ctranslate2_is_read_or_refused(tmp_path: Path) -> None:
    folder = whisper_folder(tmp_path / "m")
    makers.write_ct2(folder, TINY)
    data = (folder / "model.bin").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        mutated = bytearray(data)
        for at in random.integers(0, 3000, 4):
            mutated[at] = random.integers(256)
        (folder / "model.bin").write_bytes(mutated)
        try:
            models.load_whisper(local(folder))
        except ModelFormatError:
            refused += 1
    assert refused > 100


def test_h13_ctranslate2_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    good = makers.ct2_bytes({"a": np.zeros((2, 2), np.float32)})
    cases = {
        "claims": good.replace(struct.pack("<II", 3, 1), struct.pack("<II", 3, 2**31)),
        "do not make": good.replace(struct.pack("<II", 2, 2), struct.pack("<II", 2**31, 2**31)),
        "unknown dtype": good.replace(struct.pack("<BI", 0, 16), struct.pack("<BI", 9, 16)),
        "bytes after its end": good + b"x",
        "twice": struct.pack("<I", 6) + good[4:18] + struct.pack("<II", 3, 2) + good[26:-4] * 2 + bytes(4),
        "stands for": makers.ct2_bytes({"a": np.zeros(1, np.float32)}, {"b": "c"}),
        "known version": struct.pack("<I", 99) + good[4:],
    }
    for complaint, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ModelFormatError, match=complaint):
            ctranslate2.read(path, "WhisperSpec")


def test_h13_onnx_external_data(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret!!")
    location = makers.proto(13, makers.proto(1, "location") + makers.proto(2, "../secret"))
    flag = makers.proto(14, 1)
    for extra in (location + flag, flag, location):
        (tmp_path / "x.onnx").write_bytes(makers.onnx_model(makers.onnx_tensor("w", np.zeros(2, np.float32), extra)))
        assert "another file" in refuse(tmp_path / "x.onnx", "segmentation")


def test_h13_onnx_that_lies_about_sizes(tmp_path: Path) -> None:
    values = makers.onnx_tensor("w", np.zeros(4, np.float32))
    nested = b""
    for _ in range(40):
        nested = makers.proto(1, makers.proto(4, "If") + makers.proto(5, makers.proto(6, nested)))
    cases = {
        "is empty": b"",
        "no graph": makers.proto(1, 8),
        "truncated": makers.proto(7, makers.proto(5, values))[:-3],
        "ten bytes": b"\xff" * 11,
        "wire type": b"\x3b",
        "twice": makers.onnx_model(values, values),
        "values for the shape": makers.onnx_model(makers.proto(1, 1 << 40) + values),
        "data type": makers.onnx_model(makers.proto(2, 8) + makers.proto(8, "s") + makers.proto(9, b"")),
        "axes": makers.onnx_model(makers.proto(1, 1) * 60 + values),
        "nested": makers.proto(7, nested),
        "not text": makers.proto(7, makers.proto(5, makers.proto(8, b"\xff\xfe"))),
    }
    for complaint, data in cases.items():
        (tmp_path / "x.onnx").write_bytes(data)
        with pytest.raises(ModelFormatError, match=complaint):
            onnx.read(tmp_path / "x.onnx")


# --- numbers ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["safetensors", "ct2", "pt"])
def test_h13_weights_that_are_no_numbers(tmp_path: Path, layout: str, value: float) -> None:
    folder = whisper_folder(tmp_path / "m")
    weights = makers.tensors(dtype=torch.float16)
    weights["decoder.blocks.1.mlp.0.weight"][3, 5] = value
    if layout == "pt":
        (folder / "config.json").unlink()
        makers.write_openai(folder / "x.pt", **weights)
    elif layout == "ct2":
        makers.write_ct2(folder, weights)
    else:
        names = {"decoder.blocks.1.mlp.0.weight": "model.decoder.layers.1.fc1.weight"}
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        model = WhisperForConditionalGeneration(WhisperConfig(**makers.hf_config()))
        for ours, theirs in names.items():
            model.state_dict()[theirs].copy_(weights[ours])
        model.save_pretrained(folder)
    assert "NaN or infinite" in refuse(folder)


def test_h13_arrays_that_are_no_numbers(tmp_path: Path) -> None:
    for values in (np.array([1.0, np.nan]), np.array(["a"]), np.array([1 + 2j]), np.array([True])):
        np.savez(tmp_path / "a.npz", mu=values)
        with pytest.raises(ModelFormatError, match="finite numbers"):
            arrays.read(tmp_path / "a.npz")


def test_h13_tensors_that_are_not_in_the_file(tmp_path: Path) -> None:
    """Meta tensors have a shape and no numbers; sparse and quantised ones are not what the networks take."""
    folder = whisper_folder(tmp_path / "m")
    for odd in (torch.empty(3, device="meta"), torch.eye(3).to_sparse(), [1.0], None):
        torch.save({"model.x": odd}, folder / "pytorch_model.bin")
        refuse(folder)
    for table in ([torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}):
        torch.save(table, folder / "pytorch_model.bin")
        refuse(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 1 << 40},
        {"d_model": -8},
        {"d_model": "8"},
        {"d_model": True},
        {"encoder_layers": 10**9},
        {"decoder_attention_heads": 3},
        {"vocab_size": None},
        {"model_type": "wav2vec2"},
    ],
)
def test_h13_a_configuration_that_lies(tmp_path: Path, change: dict) -> None:
    folder = whisper_folder(tmp_path / "m")
    safetensors.torch.save_file({"model.x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(makers.hf_config() | change))
    refuse(folder)


def test_h13_settings_of_the_wrong_kind_are_passed_over(tmp_path: Path) -> None:
    makers.write_ct2(tmp_path, makers.tensors())
    for odd in ("x", [[1]], [["a", "b"]], [[1, 2, 3]], [[-1, 0]], [[99, 99]], {"a": 1}, 5):
        settings = {"alignment_heads": odd, "suppress_tokens": odd, "begin_suppress_tokens": odd}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        found = models.load_whisper(local(tmp_path))
        assert set(found.alignment_heads) <= {(layer, head) for layer in range(3) for head in range(2)}
        assert found.alignment_heads
        assert all(0 <= token < makers.N_VOCAB for token in found.suppress_tokens)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model file or folder"):
        models.resolve(str(tmp_path / "absent"), "asr", offline=True)
    for kind in ("asr", "segmentation", "embedding", "plda"):
        with pytest.raises(ModelFormatError, match="holds no"):
            models.resolve(str(tmp_path), kind, offline=True)
