"""Students: what they compute, learn and are measured by, against the engine and against brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diarist import models
from diarist.asr.network import Decoder, DecoderCache
from diarist.asr.rules import RuleState, allowed_log_probabilities, suppression_bias
from diarist.asr.text import Vocabulary
from diarist.distillation.material import ExampleSet, ExampleWriter, Recording, mixed_windows
from diarist.distillation.objective import Output, distillation_loss, passes, soft_targets
from diarist.distillation.training import DRAFTED, Trainer, TrainingOptions, following, noisy
from diarist.timeline import Segment

OPTIONS = TrainingOptions(steps=6, minutes=60, batch=2, warm_up=0.2)


@pytest.fixture(scope="module")
def vocabulary(checkpoint):
    return Vocabulary(checkpoint.tokenizer, checkpoint.dims.n_vocab, multilingual=True)


@pytest.fixture(scope="module")
def trained(checkpoint, exact, examples, tmp_path_factory):
    """A trainer at its end, and the path of its state."""
    trainer = Trainer(checkpoint, (0, 3), exact, OPTIONS)
    path = tmp_path_factory.mktemp("trained") / "state.safetensors"
    trainer.run(examples, examples, path, 0.0, lambda done, latest: None)
    return trainer, path


def inference_hidden(tensors, dims, exact, example):
    """What the engine's decoder computes for one example, all positions at once: float32, (tokens, s)."""
    decoder = Decoder(dims, tensors, exact)
    cache = DecoderCache(dims, 1, 0, exact)
    decoder.fill_cross_attention(example.states[None].float(), cache, 0)
    start = torch.zeros(1, dtype=torch.int64)
    return decoder(example.tokens[None, :-1], start, cache, slice(0, 1), before=before(example))[0]


def before(example):
    """The main decoder's states from which the tokens that are read were chosen: (1, tokens, s)."""
    return following(example.hidden[None].float())


def student_hidden(trainer, example):
    return trainer.student(example.tokens[None, :-1], example.states[None].float(), before(example))[0]


# --- examples -------------------------------------------------------------------------------------------------------


def test_examples_are_what_the_engine_writes_and_why(examples, checkpoint, vocabulary, exact):
    assert len(examples) == 3
    output = Output(
        checkpoint.tensors["decoder.token_embedding.weight"].float(),
        suppression_bias(vocabulary, checkpoint.suppress_tokens),
    )
    for example in examples:
        assert example.tokens[: example.prompt].tolist() == vocabulary.prompt("en", "transcribe", timestamps=True)
        assert example.tokens[-1] == vocabulary.end
        assert len(example.hidden) == len(example.tokens) - 1
        assert len(example.written) == len(example.soft.tokens) > 15
        text = example.written < vocabulary.end  # where the rules on timestamps do not bear
        likeliest = output.logits(example.hidden[example.chosen_at].float()).argmax(dim=1)
        assert (likeliest == example.written)[text].float().mean() > 0.9
        assert (example.soft.tokens[:, 0] == likeliest).float().mean() > 0.95  # hidden states are kept in bfloat16


def test_soft_targets_are_the_likeliest_of_the_distribution():
    torch.manual_seed(0)
    output = Output(torch.randn(300, 16), torch.where(torch.arange(300) < 5, float("-inf"), 0.0))
    hidden = torch.randn(7, 16)
    soft = soft_targets(hidden, output)
    distribution = output.logits(hidden).softmax(dim=1)
    for row in range(7):
        expected = distribution[row].argsort(descending=True)[: soft.tokens.shape[1]]
        assert soft.tokens[row].tolist() == expected.tolist()
        assert min(expected) >= 5
        shares = distribution[row, expected] / distribution[row, expected].sum()
        torch.testing.assert_close(soft.probabilities[row].float(), shares, atol=1e-3, rtol=0)


def test_examples_are_read_as_they_were_written(examples, tmp_path):
    writer = ExampleWriter(tmp_path / "set")
    writer.write(examples)
    assert not (tmp_path / "set").exists()  # until it is whole
    writer.finish()
    read = ExampleSet(tmp_path / "set")
    assert len(read) == 3
    for index, example in enumerate(examples):
        for name in ("states", "tokens", "hidden"):
            assert torch.equal(getattr(read[index], name), getattr(example, name))
        assert torch.equal(read[index].soft.probabilities, example.soft.probabilities)
        assert read[index].prompt == example.prompt
    longest = max(len(example.tokens) for example in examples)
    assert len(ExampleSet(tmp_path / "set", longest)) == 1


def tone(seconds, frequency):
    return np.sin(np.arange(round(seconds * 16_000)) * frequency * 2 * np.pi / 16_000).astype(np.float32) * 0.3


def test_mixes_hold_the_sound_in_full_windows_of_one_language():
    speech = tuple(Segment(start, start + 4.0) for start in range(0, 100, 5))
    recordings = [Recording(tone(100, 300), speech, "en"), Recording(tone(100, 1200), speech, "de")]
    windows = mixed_windows(recordings, np.random.default_rng(3))
    for waveform, language in windows:
        assert len(waveform) <= 30 * 16_000
        spectrum = np.abs(np.fft.rfft(waveform))
        loudest_hz = spectrum.argmax() * 16_000 / len(waveform)
        assert (loudest_hz < 600) == (language == "en")
    seconds = sum(len(waveform) for waveform, _ in windows) / 16_000
    assert 150 < seconds < 240  # 160 s of speech, faster or slower, with margins and pauses
    assert len(windows) <= 12
    again = mixed_windows(recordings, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(windows, again, strict=True))
    other = mixed_windows(recordings, np.random.default_rng(4))
    assert [len(a) for a, _ in other] != [len(a) for a, _ in windows]


# --- the student ----------------------------------------------------------------------------------------------------


def test_a_student_of_all_layers_is_the_main_decoder(checkpoint, exact, examples):
    trainer = Trainer(checkpoint, range(checkpoint.dims.n_text_layer), exact, OPTIONS)
    for example, accepted in zip(examples[:1], trainer.accepted(examples[:1]), strict=True):
        with torch.no_grad():
            hidden = student_hidden(trainer, example)  # it begins by reading the tokens only
        expected = inference_hidden(checkpoint.tensors, checkpoint.dims, exact, example)
        torch.testing.assert_close(hidden, expected, atol=2e-3, rtol=1e-4)
        assert len(accepted) == DRAFTED
        for place in accepted:
            assert sum(place) >= len(place) - 1  # states are kept in bfloat16, which may turn a tie


@torch.no_grad()
def test_the_trained_student_is_the_written_assistant(trained, checkpoint, exact, examples):
    trainer, _ = trained
    tensors = trainer.student.trained()
    dims = dataclasses.replace(checkpoint.dims, n_text_layer=2)
    shared = {name: value for name, value in checkpoint.tensors.items() if ".blocks." not in name}
    for example in examples:
        hidden = student_hidden(trainer, example)
        expected = inference_hidden({**shared, **tensors}, dims, exact, example)
        assert (hidden - expected).abs().max() < 1e-4 * expected.abs().max()


def test_padding_changes_nothing(trained, examples):
    trainer, _ = trained
    alone = [trainer.accepted([example])[0] for example in examples]
    assert trainer.accepted(examples) == alone


def test_the_loss_and_its_gradient_equal_autograd():
    torch.manual_seed(0)
    output = Output(torch.randn(400, 16), torch.where(torch.arange(400) == 7, float("-inf"), 0.0))
    hidden = torch.randn(150, 16, requires_grad=True)  # more than are computed at once
    labels = torch.randint(8, 400, (150,))
    soft = soft_targets(torch.randn(150, 16), output)
    log = output.logits(hidden).log_softmax(dim=1)
    hard = -log.gather(1, labels[:, None])[:, 0]
    softly = -(log.gather(1, soft.tokens.long()) * soft.probabilities.float()).sum(dim=1)
    expected = (0.7 * hard + 0.3 * softly).mean()
    (gradient,) = torch.autograd.grad(expected, hidden)
    loss = distillation_loss(hidden, labels, soft, output, 0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, hidden)[0], 3 * gradient, atol=1e-5, rtol=1e-3)


def test_the_loss_falls(checkpoint, exact, examples):
    trainer = Trainer(checkpoint, (3,), exact, dataclasses.replace(OPTIONS, batch=1))
    for _ in range(8):
        trainer._take_step(examples[:1], 0.2)
    losses = trainer._progress.losses
    assert losses[-1] < 0.75 * losses[0]


def test_the_main_model_does_not_change(trained, checkpoint):
    trainer, _ = trained
    assert trainer.step == 6
    assert trainer.measurements[-1].step == 6
    assert trainer.best.tokens_per_pass == max(measured.tokens_per_pass for measured in trainer.measurements)
    embedding = checkpoint.tensors["decoder.token_embedding.weight"].float()
    assert torch.equal(trainer.student.embedding, embedding)
    trained_names = {f"decoder.{name}" for name, _ in trainer.student.named_parameters()}
    assert trained_names == set(trainer.student.trained())
    assert not torch.equal(
        trainer.student.trained()["decoder.blocks.1.cross_attn.key.weight"],
        checkpoint.tensors["decoder.blocks.3.cross_attn.key.weight"].float(),
    )


def test_noise_changes_text_tokens_only(vocabulary):
    prompt = vocabulary.prompt("en", "transcribe", timestamps=True)
    tokens = torch.tensor([[*prompt, vocabulary.timestamp_begin + 7, *range(1000, 3000), vocabulary.end]])
    torch.manual_seed(0)
    changed = noisy(tokens, 0.2, vocabulary) != tokens
    assert not changed[0, : len(prompt) + 1].any()
    assert not changed[0, -1]
    assert 0.15 < changed[0, len(prompt) + 1 : -1].float().mean() < 0.25
    assert torch.equal(noisy(tokens, 0.0, vocabulary), tokens)


# --- measuring ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_acceptance_equals_brute_force(trained, checkpoint, vocabulary, exact, examples):
    """The engine's decoder with the student's weights, one token at a time, every token's probability computed.

    Each place in a draft is a look at the text with what the place before it made of it.
    """
    trainer, _ = trained
    dims = dataclasses.replace(checkpoint.dims, n_text_layer=2)
    tensors = {name: value for name, value in checkpoint.tensors.items() if ".blocks." not in name}
    decoder = Decoder(dims, {**tensors, **trainer.student.trained()}, exact)
    bias = suppression_bias(vocabulary, checkpoint.suppress_tokens)
    example = examples[0]
    states = before(example)
    for accepted in trainer.accepted(examples[:1])[0]:
        cache = DecoderCache(dims, 1, 0, exact)
        decoder.fill_cross_attention(example.states[None].float(), cache, 0)
        state, expected, own = RuleState.start(torch.tensor([True])), [], [torch.zeros(1, dims.n_text_state)]
        for place, token in enumerate(example.tokens[:-1]):
            chosen_from = states[:, place : place + 1]
            hidden = decoder(token[None, None], torch.tensor([place]), cache, slice(0, 1), before=chosen_from)[:, 0]
            own.append(hidden)
            if place + 1 < example.prompt:
                continue
            logits = hidden @ decoder.embedding.T + bias
            chosen = allowed_log_probabilities(logits, state, vocabulary).argmax(dim=1)
            next_token = example.tokens[place + 1 : place + 2]
            expected.append(bool(chosen == next_token))
            state = state.after(next_token, vocabulary.timestamp_begin)
        assert accepted == expected
        states = torch.stack(own[:-1], dim=1)
    measured = trainer.measurements[-1]
    firsts = [window[0] for window in trainer.accepted(examples)]
    assert measured.acceptance == pytest.approx(sum(map(sum, firsts)) / sum(map(len, firsts)))


@given(st.data(), st.integers(1, 40), st.integers(1, 6))
def test_passes_equal_a_simulation(data, tokens, drafted):
    """The text is 0, 1, 2, ...; a draft that goes wrong goes on wrong."""
    row = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    accepted = data.draw(st.lists(row, min_size=drafted, max_size=drafted))
    text, passed = [], 0
    while len(text) < tokens:
        begun = len(text)
        text += itertools.takewhile(
            lambda token, begun=begun: token < tokens and token - begun < drafted and accepted[token - begun][token],
            itertools.count(begun),
        )
        if len(text) < tokens:
            text.append(len(text))  # the main model's own
        passed += 1
    assert passes(accepted) == passed


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_resumed_training_is_the_same(trained, checkpoint, exact, examples, tmp_path):
    whole, whole_path = trained
    path = tmp_path / "state.safetensors"

    class Stop(Exception):
        pass

    def stop_after_3(done, latest):
        if done >= 0.5:
            raise Stop

    begun = Trainer(checkpoint, (0, 3), exact, OPTIONS)
    with pytest.raises(Stop):
        begun.run(examples, examples, path, 0.0, stop_after_3)
    resumed = Trainer(checkpoint, (0, 3), exact, OPTIONS)
    resumed.load(path)
    assert resumed.step == 3
    resumed.run(examples, examples, path, 0.0, lambda done, latest: None)
    for name, value in whole.student.trained().items():
        assert torch.equal(resumed.student.trained()[name], value), name
    same = [dataclasses.replace(measured, seconds=0.0) for measured in resumed.measurements]
    assert same == [dataclasses.replace(measured, seconds=0.0) for measured in whole.measurements]
    stored, again = models.read_tensors(whole_path), models.read_tensors(path)
    assert all(torch.equal(again[name], value) for name, value in stored.items() if name != "state")


def test_time_ends_a_training_too(checkpoint, exact, examples, tmp_path):
    trainer = Trainer(checkpoint, (3,), exact, dataclasses.replace(OPTIONS, steps=None, minutes=10.0))
    assert trainer.done(300.0) == pytest.approx(0.5)
    trainer.run(examples[:1], examples[:1], tmp_path / "state.safetensors", 600.0, lambda done, latest: None)
    assert trainer.step == 0
    assert len(trainer.measurements) == 1
