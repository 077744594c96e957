import pytest

from diarist.asr.languages import ALIASES, LANGUAGES, language_code
from diarist.asr.text import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(checkpoint):
    return Vocabulary(checkpoint.tokenizer, checkpoint.dims.n_vocab, multilingual=True)


def words(vocabulary, text, language="en"):
    return [word.text for word in vocabulary.words(vocabulary.encode(text), language)]


def test_special_tokens_lie_where_whisper_has_them(vocabulary, checkpoint):
    tokenizer = checkpoint.tokenizer
    assert vocabulary.timestamp_begin == tokenizer.token_to_id("<|0.00|>")
    assert vocabulary.no_timestamps == tokenizer.token_to_id("<|notimestamps|>")
    assert vocabulary.previous == tokenizer.token_to_id("<|startofprev|>")
    assert vocabulary.transcribe == tokenizer.token_to_id("<|transcribe|>")
    assert vocabulary.translate == tokenizer.token_to_id("<|translate|>")
    assert len(vocabulary.languages) == 99
    assert vocabulary.end not in vocabulary.specials


def test_prompts(vocabulary):
    plain = vocabulary.prompt("de", "translate", timestamps=False, previous=[11])
    assert plain == [vocabulary.previous, 11, vocabulary.start, vocabulary.languages["de"], 50358, 50363]
    assert vocabulary.prompt("en", "transcribe", timestamps=True) == [50258, 50259, 50359]


def test_words_keep_their_punctuation_and_every_token(vocabulary):
    text = ' "Well," she said (twice), "it\'s a well-known 3.5% fact..."'
    found = vocabulary.words(vocabulary.encode(text), "en")
    assert "".join(word.text for word in found) == text
    assert [word.text for word in found][:4] == [' "Well,"', " she", " said", " (twice),"]
    assert [word.start for word in found][1:] == [word.end for word in found][:-1]


def test_languages_without_spaces_are_split_at_characters(vocabulary):
    assert len(words(vocabulary, "今日はいい天気ですね。", "ja")) > 4
    assert "".join(words(vocabulary, "今日はいい天気ですね。", "ja")) == "今日はいい天気ですね。"


def test_characters_of_several_tokens_stay_whole(vocabulary):
    assert words(vocabulary, " 🦆 ħello") == [" 🦆", " ħello"]


def test_a_broken_character_is_not_lost(vocabulary):
    duck = vocabulary.encode(" 🦆")
    found = vocabulary.words(duck[:-1], "en")
    assert found[-1].end == len(duck) - 1


def test_languages_by_code_name_and_alias():
    assert language_code("Haitian Creole") == "ht"
    assert language_code(" CASTILIAN ") == "es"
    assert set(ALIASES.values()) <= set(LANGUAGES)
