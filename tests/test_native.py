"""The decoder in C against PyTorch, and against itself: alone, in company, in several threads, in a forked process."""

import functools
import importlib.util
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diarist import native
from diarist.asr.network import Decoder, DecoderCache, Encoder, is_native
from diarist.asr.rules import RuleState, choose
from diarist.compute import choose as choose_compute
from diarist.compute import linear
from diarist.models import WhisperDims

compiled = pytest.mark.skipif(not native.is_available(), reason="no C compiler, or no AVX2")


def runs(name):
    library = native._load(native.LIBRARIES[name])
    return library is not None and library.diarist_supported()


DIMS = WhisperDims(
    n_mels=80,
    n_audio_ctx=64,
    n_audio_state=128,
    n_audio_head=2,
    n_audio_layer=1,
    n_vocab=300,
    n_text_ctx=64,
    n_text_state=128,
    n_text_head=2,
    n_text_layer=2,
)
HEADS = ((0, 1), (1, 0), (1, 1))
ROWS, HEARD = slice(1, 5), (64, 7, 30, 1)


def randoms(seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.08):
        return torch.randn(*shape, generator=generator) * scale

    return random


def block_weights(name, attentions, random):
    state = DIMS.n_text_state
    tensors = {}
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            tensors[f"{name}.{attention}.{part}.weight"] = random(state, state)
            if part != "key":
                tensors[f"{name}.{attention}.{part}.bias"] = random(state)
    for norm in (*(f"{attention}_ln" for attention in attentions), "mlp_ln"):
        tensors[f"{name}.{norm}.weight"], tensors[f"{name}.{norm}.bias"] = 1 + random(state), random(state)
    tensors[f"{name}.mlp.0.weight"], tensors[f"{name}.mlp.0.bias"] = random(4 * state, state), random(4 * state)
    tensors[f"{name}.mlp.2.weight"], tensors[f"{name}.mlp.2.bias"] = random(state, 4 * state), random(state)
    return tensors


def weights(*, fuse=False):
    random, state = randoms(1), DIMS.n_text_state
    tensors = {
        "decoder.token_embedding.weight": random(DIMS.n_vocab, state, scale=1.0),
        "decoder.positional_embedding": random(DIMS.n_text_ctx, state, scale=0.5),
        "decoder.ln.weight": 1 + random(state),
        "decoder.ln.bias": random(state),
    }
    for layer in range(DIMS.n_text_layer):
        tensors |= block_weights(f"decoder.blocks.{layer}", ("attn", "cross_attn"), random)
    if fuse:
        tensors["decoder.fuse.weight"], tensors["decoder.fuse.bias"] = random(state, 2 * state), random(state)
    return tensors


def encoder_weights():
    random, state = randoms(4), DIMS.n_audio_state
    return {
        "encoder.conv1.weight": random(state, DIMS.n_mels, 3),
        "encoder.conv1.bias": random(state),
        "encoder.conv2.weight": random(state, state, 3),
        "encoder.conv2.bias": random(state),
        "encoder.positional_embedding": random(DIMS.n_audio_ctx, state, scale=0.5),
        "encoder.ln_post.weight": 1 + random(state),
        "encoder.ln_post.bias": random(state),
    } | block_weights("encoder.blocks.0", ("attn",), random)


class Reader:
    """A decoder and a cache of five rows, four of which are used."""

    def __init__(self, dtype, *, fuse=False):
        compute = choose_compute("cpu", dtype)
        assert is_native(DIMS, compute) == (dtype != "float32")
        self.decoder = Decoder(DIMS, weights(fuse=fuse), compute, HEADS)
        self.cache = DecoderCache(DIMS, 5, len(HEADS), compute, keep_hidden=True)
        states = torch.randn(4, DIMS.n_audio_ctx, DIMS.n_audio_state, generator=torch.Generator().manual_seed(2))
        for row, heard in enumerate(HEARD):
            self.decoder.fill_cross_attention(states[row, None, :heard].to(compute.dtype), self.cache, 1 + row)

    def __call__(self, tokens, starts, rows=ROWS, before=None):
        return self.decoder(tokens, starts, self.cache, rows, before=before)


def some_tokens(*shape):
    return torch.randint(DIMS.n_vocab, shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(found, expected):
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@compiled
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 33])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 16), (70, 512), (1, 32), (130, 2048)])
def test_products_are_those_of_whole_numbers(rows, outputs, inputs):
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    loudness = 0.01 + torch.rand(rows, 1) / 10
    x_steps = torch.randint(-126, 127, (rows, inputs)).float()
    x_steps[:, 0] = 127
    beside = torch.rand(rows, inputs) * 0.8 - 0.4  # not halfway: to which step that is rounded is anybody's guess
    beside[:, 0] = 0
    scale = weight.abs().amax(dim=1) / 127
    steps = (weight / scale[:, None]).round()
    expected = (x_steps.double() @ steps.double().T) * loudness.double() * scale.double() + bias.double()
    found = native.Product(weight, bias)((x_steps + beside) * loudness)
    assert ((found - expected).abs() <= 1e-5 * expected.abs().max()).all()


@compiled
@pytest.mark.parametrize("rows", [3, 200])
def test_products_that_are_taken_apart_by_threads_and_what_follows_them(rows):
    weight, bias, x = torch.randn(2000, 64), torch.randn(2000), torch.randn(2, rows, 64)
    product = native.Product(weight, bias)
    plain = product(x)
    assert plain.shape == (2, rows, 2000)
    assert torch.equal(plain[0, :3], product(x[0, :3]))
    assert error(plain, F.linear(x, weight, bias)) < 0.02
    assert torch.allclose(product(x, gelu=True), F.gelu(plain), atol=1e-5)
    assert torch.equal(product(x, residual=torch.ones_like(plain)), plain + 1)
    assert torch.equal(native.Product(weight, None)(torch.zeros(1, 64)), torch.zeros(1, 2000))


@compiled
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("fuse", [False, True])
def test_passes_are_those_of_pytorch(dtype, fuse):
    ours, theirs = Reader(dtype, fuse=fuse), Reader("float32", fuse=fuse)
    starts = torch.tensor([0, 3, 7, 20])
    for step, q in enumerate((20, 1, 3, 9, 1)):
        tokens = some_tokens(4, q)
        before = torch.randn(4, q, DIMS.n_text_state) if fuse else None
        found, expected = (reader(tokens, starts * (step > 0), before=before) for reader in (ours, theirs))
        assert found.shape == expected.shape == (4, q, DIMS.n_text_state)
        assert error(found, expected) < 0.05
    for name in ("alignment_queries", "hidden_before"):
        assert error(getattr(ours.cache, name)[ROWS], getattr(theirs.cache, name)[ROWS]) < 0.05, name
    assert not ours.cache.alignment_queries[0].any()  # not one of the rows


@compiled
def test_exactly_the_same_alone_with_a_draft_in_company_and_in_threads():
    tokens = some_tokens(4, 7)
    together = Reader("int8")(tokens, torch.zeros(4, dtype=torch.int64))
    one_by_one, alone, threaded = Reader("int8"), Reader("int8"), Reader("int8")
    for place in range(7):
        found = one_by_one(tokens[:, place : place + 1], torch.full((4,), place))
        assert torch.equal(found[:, 0], together[:, place])
    for row in range(4):
        found = alone(tokens[row, None], torch.zeros(1, dtype=torch.int64), slice(1 + row, 2 + row))
        assert torch.equal(found[0], together[row])
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(threaded(tokens, torch.zeros(4, dtype=torch.int64)), together)
        finally:
            torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize(("windows", "positions"), [(1, 1), (2, 37), (1, 64), (3, 50)])
def test_an_encoder_is_that_of_pytorch(windows, positions):
    ours, theirs = (Encoder(DIMS, encoder_weights(), choose_compute("cpu", dtype)) for dtype in ("int8", "float32"))
    assert ours._native is not None
    assert theirs._native is None
    mel = torch.randn(windows, DIMS.n_mels, 2 * positions, generator=torch.Generator().manual_seed(3))
    found, expected = ours(mel), theirs(mel)
    assert found.shape == expected.shape
    assert error(found, expected) < 0.03
    assert torch.equal(ours(mel[-1:])[0], found[-1])


def recurrence_weights(inputs, units, random):
    return {
        f"{name}_l{layer}{direction}": random(
            4 * units, *([] if "bias" in name else [units if "hh" in name else width])
        )
        for layer, width in enumerate((inputs, 2 * units))
        for direction in ("", "_reverse")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }


def lstm(weights, inputs, units):
    made = torch.nn.LSTM(inputs, units, 2, bidirectional=True, dtype=torch.float64)
    made.load_state_dict(weights)
    return made.requires_grad_(requires_grad=False)


@compiled
@pytest.mark.parametrize("windows", [1, 2, 3, 4, 7, 32])
def test_a_recurrence_is_that_of_pytorch_whatever_the_company(windows):
    weights = recurrence_weights(20, 32, randoms(6))
    x = (
        torch.randn(50, windows, 20, generator=torch.Generator().manual_seed(5))
        * torch.linspace(0.1, 9, windows)[:, None]
    )
    ours = native.Recurrence(weights, 2)
    found = ours(x)
    assert error(found, lstm(weights, 20, 32)(x.double())[0]) < 1e-3
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for window in {0, windows - 1}:
            assert torch.equal(ours(x[:, window : window + 1])[:, 0], found[:, window])
    finally:
        torch.set_num_threads(before)


@compiled
def test_a_recurrence_takes_silence_and_the_longest_sums():
    """Weights and inputs that are all as large as they can be: sums of 256 products just fit 32 bits."""
    weights = recurrence_weights(256, 128, lambda *shape: torch.ones(shape))
    ours, exact = native.Recurrence(weights, 2), lstm(weights, 256, 128)
    for x in (torch.zeros(3, 1, 256), torch.ones(3, 1, 256), -torch.ones(3, 1, 256)):
        torch.testing.assert_close(ours(x).double(), exact(x.double())[0], atol=1e-3, rtol=0)


def convolution_parts(outputs, inputs, size):
    random = randoms(8)
    return random(outputs, inputs, size, size).double(), random(outputs).double()


def images(count, channels, height, width):
    """What has been through ReLU; some pixels are dark, one is next to nothing."""
    numbers = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(2)).relu_()
    numbers *= torch.linspace(0, 3, width)
    numbers[:, :, 0, -1] = 1e-42
    return numbers.contiguous(memory_format=torch.channels_last)


@compiled
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("outputs", "inputs", "size"), [(32, 32, 3), (80, 16, 1), (16, 256, 3)])
def test_a_convolution_is_that_of_pytorch(outputs, inputs, size, stride):
    weight, bias = convolution_parts(outputs, inputs, size)
    ours = native.Convolution(weight.float(), bias.float(), stride)
    share = 2e-3 if (size, stride) == (3, 1) else 1e-3  # in tiles neighbours' rounding comes together
    for height, width in ((1, 1), (2, 7), (37, 12), (70, 5)):
        x = images(2, inputs, height, width)
        exact = F.conv2d(x.double(), weight, bias, stride, size // 2)
        most = share * exact.abs().max()
        assert (ours(x) - exact).abs().max() < most
        assert (ours(x, relu=True) - exact.relu()).abs().max() < most
        added = torch.randn(exact.shape).contiguous(memory_format=torch.channels_last)
        expected = (exact + added).relu()
        assert (ours.add(x, added) - expected).abs().max() < most


@compiled
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_takes_the_longest_sums(stride):
    """Weights and pixels that are all as large as they can be: sums of 256 products just fit 32 bits."""
    x = torch.ones(1, 256, 6, 6).contiguous(memory_format=torch.channels_last)
    for sign in (1.0, -1.0):
        weight = torch.full((16, 256, 3, 3), sign)
        ours = native.Convolution(weight, torch.zeros(16), stride)
        torch.testing.assert_close(ours(x), F.conv2d(x, weight, stride=stride, padding=1), atol=1e-2, rtol=0)


@compiled
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_does_not_depend_on_threads_or_on_what_else_there_is(stride):
    weight, bias = convolution_parts(32, 32, 3)
    ours, x = native.Convolution(weight.float(), bias.float(), stride), images(1, 32, 90, 13)
    whole = ours(x)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(ours(x), whole)
        part = ours(x[:, :, 20:60, 4:].contiguous(memory_format=torch.channels_last))  # tiles are two pixels wide
        first, last = 20 // stride, 60 // stride
        assert torch.equal(part[:, :, 1:-1, 1:], whole[:, :, first + 1 : last - 1, 4 // stride + 1 :])
    finally:
        torch.set_num_threads(before)


@compiled
def test_a_room_holds_one_image_after_another():
    weight, bias = convolution_parts(32, 32, 3)
    ours, room = native.Convolution(weight.float(), bias.float()), native.Room()
    large, small = images(1, 32, 9, 6), images(2, 32, 3, 4)
    for x in (small, large, small):
        assert torch.equal(ours(x, room), ours(x))
        assert ours(x, room).is_contiguous(memory_format=torch.channels_last)
    assert ours(small, room).data_ptr() == ours(large, room).data_ptr()


@pytest.mark.skipif(not all(runs(name) for name in native.LIBRARIES), reason="this processor runs one kind of them")
def test_every_kind_of_processor_computes_the_same(monkeypatch):
    found = []
    for path in native.LIBRARIES.values():
        monkeypatch.setattr(native, "_library", functools.partial(native._load, path))
        reader = Reader("int8")
        encoded = Encoder(DIMS, encoder_weights(), choose_compute("cpu", "int8"))._native(
            torch.ones(1, 37, 128).cumsum(1)
        )
        heard = native.Recurrence(recurrence_weights(20, 32, randoms(6)), 2)(
            torch.linspace(-3, 3, 9 * 7 * 20).view(9, 7, 20)
        )
        seen = [
            native.Convolution(*(part.float() for part in convolution_parts(32, 48, 3)), stride)(images(1, 48, 40, 11))
            for stride in (1, 2)
        ]
        found.append((encoded, heard, *seen, reader(some_tokens(4, 5), torch.zeros(4, dtype=torch.int64))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@compiled
def test_a_moved_row_reads_on_as_before():
    reader, moved = Reader("int8"), Reader("int8")
    prompt, following = some_tokens(4, 5), some_tokens(1, 2)
    for each in (reader, moved):
        each(prompt, torch.zeros(4, dtype=torch.int64))
    moved.cache.move_row(2, 0, 5)
    starts = torch.tensor([5])
    assert torch.equal(moved(following, starts, slice(0, 1)), reader(following, starts, slice(2, 3)))


@compiled
@pytest.mark.parametrize("are_values", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_heard_is_read_back_to_half_a_step(are_values, dtype):
    states = native.CompressedStates.empty(2, 3, 22, are_values=are_values)
    for positions in (22, 21, 1):
        heard = torch.randn(positions, 3 * native.HEAD).to(dtype)
        states.fill(1, heard)
        for head in range(3):
            expected = heard[:, head * native.HEAD : (head + 1) * native.HEAD].float()
            found = states.read(1, head, positions, positions)
            assert ((found - expected).abs() <= expected.abs().amax(dim=1, keepdim=True) / 127 * 0.51).all()


@compiled
@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000, 50_257])
def test_the_log_sum_of_each_row(count):
    x = torch.randn(5, count + 3)[:, :count] * 10
    x[2, : count // 2] = float("-inf")
    x[3] = float("-inf")
    assert torch.allclose(native.log_sums(x), x.double().logsumexp(dim=1).float(), rtol=1e-6, atol=2e-6)


class _Layout:
    end, timestamp_begin = 90, 100


@compiled
def test_the_same_tokens_are_chosen_as_by_pytorch(monkeypatch):
    logits = torch.randn(4096, 160, generator=torch.Generator().manual_seed(0)).mul_(4)
    logits[::3] = logits[::3].round()  # many are equal
    logits[1::7, :40] = float("-inf")
    flags = [torch.randint(2, (4096,), generator=torch.Generator().manual_seed(flag)).bool() for flag in range(4)]
    state = RuleState(*flags, torch.randint(-1, 60, (4096,), generator=torch.Generator().manual_seed(9)))
    ours = choose(logits, state, _Layout)
    monkeypatch.setattr(native, "is_available", lambda: False)
    theirs = choose(logits, state, _Layout)
    possible = theirs.logprobs().isfinite()  # of random states some forbid everything
    assert possible.double().mean() > 0.5
    assert torch.equal(ours.tokens[possible], theirs.tokens[possible])
    monkeypatch.undo()
    assert torch.allclose(ours.logprobs()[possible], theirs.logprobs()[possible], atol=1e-5)


@compiled
def test_several_callers_at_once():
    product, x = native.Product(torch.randn(4096, 64), None), torch.randn(3, 64)
    expected = product(x)
    wrong = []

    def call():
        for _ in range(200):
            if not torch.equal(product(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _call_in_child(product, x, queue):
    torch.set_num_threads(2)
    queue.put(product(x).sum().item())


@compiled
def test_a_forked_process_has_helpers_of_its_own():
    product, x = native.Product(torch.ones(4096, 16), None), torch.ones(1, 16)
    expected = product(x).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_call_in_child, args=(product, x, queue))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == expected


def test_without_it_pytorch_does_the_same(monkeypatch):
    monkeypatch.setattr(native, "is_available", lambda: False)
    compute = choose_compute("cpu", "int8")
    assert not is_native(DIMS, compute)
    assert not isinstance(linear(torch.randn(64, 32), None, compute), native.Product)
    decoder, exact = (
        Decoder(DIMS, weights(), compute, HEADS),
        Decoder(DIMS, weights(), choose_compute("cpu", "float32"), HEADS),
    )
    found = []
    for each in (decoder, exact):
        cache = DecoderCache(DIMS, 2, len(HEADS), choose_compute("cpu", "float32"))
        each.fill_cross_attention(torch.ones(2, 9, DIMS.n_audio_state), cache, 0)
        found.append(each(some_tokens(2, 3), torch.zeros(2, dtype=torch.int64), cache, slice(0, 2)))
    assert error(*found) < 0.05
    monkeypatch.setattr(native, "_library", lambda: None)
    with pytest.raises(RuntimeError, match="is_available"):
        native.log_sums(torch.zeros(1, 1))


@pytest.mark.parametrize(("compiler", "compiles"), [("false", False), ("cc", True)])
def test_installing_goes_on_without_a_compiler(compiler, compiles, tmp_path, monkeypatch, capfd):
    root = Path(native.__file__).parents[3]
    if not (root / "hatch_build.py").exists():
        pytest.skip("diarist is installed without its sources")
    spec = importlib.util.spec_from_file_location("hatch_build", root / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    folder = tmp_path / hook.SOURCE.parent
    folder.mkdir(parents=True)
    for source in (root / hook.SOURCE).parent.glob("*.[ch]"):
        (folder / source.name).write_bytes(source.read_bytes())
    monkeypatch.setenv("CC", compiler)
    if not compiles:
        assert hook._compile(tmp_path) == []
        assert "slower" in capfd.readouterr().err
        assert not list(tmp_path.rglob("*.so"))
    elif native.is_available():
        compiled = [tmp_path / library for library in hook._compile(tmp_path)]
        assert [library.name for library in compiled] == [path.name for path in native.LIBRARIES.values()]
        assert all(library.exists() for library in compiled)
