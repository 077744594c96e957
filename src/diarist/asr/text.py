"""Whisper's token vocabulary: special tokens, prompts, and tokens grouped into words."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from diarist.asr.languages import LANGUAGES, WRITTEN_WITHOUT_SPACES
from diarist.errors import ModelFormatError

_OPENING = "\"'“¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_REPLACEMENT = "\ufffd"  # what half a UTF-8 character decodes to


@dataclass(frozen=True, slots=True)
class TokenWord:
    """One word of a token sequence."""

    text: str
    """As decoded, leading space included."""
    start: int
    """Index of its first token."""
    end: int
    """Index after its last token."""


class Vocabulary:
    """Token numbers of one model.

    Args:
        tokenizer: The model's byte-level BPE tokenizer, special tokens included.
        n_vocab: Rows of the model's embedding. Fixes where the timestamps are.
        multilingual: Whether prompts name a language and a task.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, *, multilingual: bool) -> None:
        self._tokenizer = tokenizer
        self.multilingual = multilingual
        self.size = n_vocab
        self.timestamp_begin = n_vocab - 1501  # <|0.00|> ... <|30.00|> are the last 1501 tokens of every Whisper model
        self.no_timestamps = self.timestamp_begin - 1
        self.no_speech = self.timestamp_begin - 2
        self.previous = self.timestamp_begin - 3
        self.transcribe = self.timestamp_begin - 5
        self.translate = self.timestamp_begin - 6
        self.end = self._special("<|endoftext|>")
        self.start = self._special("<|startoftranscript|>")
        self.languages = {
            code: number for code in LANGUAGES if (number := tokenizer.token_to_id(f"<|{code}|>")) is not None
        }

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ModelFormatError(f"the tokenizer has no {token}: it is not a Whisper tokenizer")
        return int(number)

    @property
    def specials(self) -> tuple[int, ...]:
        """Every token between the text and the timestamps but the end: never sampled."""
        return tuple(number for number in range(min(self.end, self.start), self.timestamp_begin) if number != self.end)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the text tokens; special tokens and timestamps are left out."""
        return str(self._tokenizer.decode([t for t in tokens if t < self.end], skip_special_tokens=False))

    def written(self, token: int) -> str:
        """A token as byte-level BPE writes it: one character for each of its bytes, so halves of characters count."""
        return str(self._tokenizer.id_to_token(token))

    def split(self, written: str) -> tuple[int, ...]:
        """The tokens that this vocabulary's merges make of one word in byte-level writing."""
        return tuple(token.id for token in self._tokenizer.model.tokenize(written))

    def prompt(self, language: str, task: str, *, timestamps: bool, previous: Sequence[int] = ()) -> list[int]:
        """What the decoder is given before it writes.

        Args:
            language: Code; ignored by English-only models.
            task: "transcribe" or "translate".
            timestamps: Whether it should write timestamps.
            previous: Text tokens of the preceding context.
        """
        prompt = [self.previous, *previous] if previous else []
        prompt.append(self.start)
        if self.multilingual:
            prompt += [self.languages[language], self.translate if task == "translate" else self.transcribe]
        return prompt if timestamps else [*prompt, self.no_timestamps]

    def words(self, tokens: Sequence[int], language: str) -> list[TokenWord]:
        """Group text tokens into words, after openai-whisper's `split_to_word_tokens`.

        Languages written without spaces are split at every character that can stand alone; others at spaces and
        punctuation, after which punctuation is joined to the word it belongs to.
        """
        pieces = self._characters(tokens)
        if language not in WRITTEN_WITHOUT_SPACES:
            pieces = _join_at_spaces(pieces)
        return _join_punctuation(pieces)

    def _characters(self, tokens: Sequence[int]) -> list[TokenWord]:
        """The shortest runs of tokens that decode to whole characters."""
        whole = self.decode(tokens)
        pieces: list[TokenWord] = []
        first, offset = 0, 0
        for index in range(len(tokens)):
            text = self.decode(tokens[first : index + 1])
            incomplete = text.find(_REPLACEMENT)
            # a U+FFFD that stands at the same place of the whole text was really spoken (written) by the model
            if incomplete < 0 or whole[offset + incomplete : offset + incomplete + 1] == _REPLACEMENT:
                pieces.append(TokenWord(text, first, index + 1))
                first, offset = index + 1, offset + len(text)
        if first < len(tokens):
            pieces.append(TokenWord(self.decode(tokens[first:]), first, len(tokens)))
        return pieces


def _join_at_spaces(pieces: Sequence[TokenWord]) -> list[TokenWord]:
    words: list[TokenWord] = []
    for piece in pieces:
        if not words or piece.text.startswith(" ") or piece.text.strip() in string.punctuation:
            words.append(piece)
        else:
            words[-1] = _joined(words[-1], piece)
    return words


def _join_punctuation(words: Sequence[TokenWord]) -> list[TokenWord]:
    opened: list[TokenWord] = []
    for word in reversed(words):  # " (" and "well" are one word
        follows = opened[-1] if opened else None
        if follows is not None and word.text.startswith(" ") and word.text.strip() in _OPENING:
            opened[-1] = _joined(word, follows)
        else:
            opened.append(word)
    closed: list[TokenWord] = []
    for word in reversed(opened):  # "well" and "," are one word
        if closed and word.text and not closed[-1].text.endswith(" ") and word.text in _CLOSING:
            closed[-1] = _joined(closed[-1], word)
        else:
            closed.append(word)
    return [word for word in closed if word.text.strip()]


def _joined(first: TokenWord, second: TokenWord) -> TokenWord:
    return TokenWord(first.text + second.text, first.start, second.end)
