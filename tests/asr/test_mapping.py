import dataclasses

import pytest
from drafting_toys import toy_checkpoint
from tokenizers import Tokenizer

from diarist.asr.mapping import TokenMapping
from diarist.asr.text import Vocabulary
from diarist.models import load_whisper
from diarist.models.readers import tokenizer as readers


def vocabulary_of(checkpoint) -> Vocabulary:
    return Vocabulary(checkpoint.tokenizer, checkpoint.dims.n_vocab, multilingual=checkpoint.multilingual)


@pytest.fixture(scope="module")
def base(checkpoint):
    return vocabulary_of(checkpoint)


@pytest.fixture(scope="module")
def english(tiny_en_model):
    return vocabulary_of(load_whisper(tiny_en_model))


TEXT = " He is called, as you know, the apostle of the Indies. 42 Zwölf Übergrößen."


def test_text_and_timestamps_cross_to_another_vocabulary_and_back(base, english):
    mapping = TokenMapping(base, english)
    assert not mapping.same_text
    begin = base.timestamp_begin
    tokens = [begin, *base.encode(TEXT), begin + 150, begin + 151, *base.encode(" Yes."), begin + 200, base.end]
    there = mapping.forward(tokens)
    assert english.decode(there) == TEXT + " Yes."
    assert [token - english.timestamp_begin for token in there if token >= english.timestamp_begin] == [
        0,
        150,
        151,
        200,
    ]
    assert there[-1] == english.end
    assert mapping.back(there) == tokens


def test_prompts_lose_what_the_other_has_no_name_for(base, english):
    mapping = TokenMapping(base, english)
    prompt = base.prompt("en", "transcribe", timestamps=False, previous=base.encode(" Diane"))
    expected = english.prompt("en", "transcribe", timestamps=False, previous=english.encode(" Diane"))
    assert mapping.forward(prompt) == expected


def test_half_a_character_ends_the_draft(base, english):
    mapping = TokenMapping(base, english)
    halves = english.encode(" a 東京")
    assert english.decode(halves[:-1]).endswith("\ufffd")
    assert base.decode(mapping.back([*halves[:-1], english.timestamp_begin])) == " a 東"


def test_other_special_tokens_end_the_draft(base, english):
    mapping = TokenMapping(base, english)
    assert mapping.back([*english.encode(" a"), english.no_timestamps, *english.encode(" b")]) == base.encode(" a")


def test_large_v3_has_its_special_tokens_shifted(checkpoint, base):
    newer = Tokenizer.from_str(readers._with_cantonese(checkpoint.tokenizer.to_str()))
    main = Vocabulary(newer, checkpoint.dims.n_vocab + 1, multilingual=True)
    mapping = TokenMapping(main, base)
    assert mapping.same_text
    prompt = main.prompt("de", "translate", timestamps=False)
    assert mapping.forward(prompt) == base.prompt("de", "translate", timestamps=False)
    tokens = [main.timestamp_begin + 7, *main.encode(TEXT), main.end]
    assert mapping.back(mapping.forward(tokens)) == tokens
    assert (mapping.serves("de", "translate"), mapping.serves("yue", "transcribe")) == (True, False)


def test_an_english_only_assistant_serves_english_transcription(base, english):
    mapping = TokenMapping(base, english)
    assert mapping.serves("en", "transcribe")
    assert not mapping.serves("de", "transcribe")
    assert not mapping.serves("en", "translate")


def test_equal_vocabularies_are_known_as_such():
    toy = toy_checkpoint(0)
    mapping = TokenMapping(vocabulary_of(toy), vocabulary_of(dataclasses.replace(toy)))
    assert mapping.same_text
    assert mapping.forward([256, 1, 2, 300]) == [256, 1, 2, 300]
