"""Whisper's tokenizers, completed to the vocabulary that the network has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from diarist.errors import ModelFormatError

ENGLISH, MULTILINGUAL, MULTILINGUAL_V3 = 51_864, 51_865, 51_866
"""Sizes of OpenAI's three vocabularies; the last adds Cantonese."""
CATALOGUE_NAMES = {ENGLISH: "english", MULTILINGUAL: "multilingual", MULTILINGUAL_V3: "multilingual-v3"}
TIMESTAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))
"""Every 20 ms from 0 to 30 s; always the last tokens of the vocabulary."""
_CANTONESE, _BEFORE_CANTONESE = "<|yue|>", "<|su|>"

_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"),
    *("[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
)
_MUSIC = "♩♪♫♬♭♮♯"
_TASK_TOKENS = (
    *("<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"),
    *("<|nospeech|>", "<|nocaptions|>"),  # the same token, named differently over the years
)


def read(files: Mapping[str, Path], n_vocab: int) -> tokenizers.Tokenizer:
    """The tokenizer among a model's files, fitted to the network's vocabulary.

    Args:
        files: `tokenizer.json`, or `vocab.json` with `merges.txt` and optionally `added_tokens.json`.
        n_vocab: Rows of the token embedding.

    Raises:
        ModelFormatError: There is none, it cannot be read, or it belongs to another vocabulary.
    """
    path = files.get("tokenizer.json") or files.get("vocab.json")
    if path is None:
        raise ModelFormatError("the model has no tokenizer: put its tokenizer.json beside the weights")
    try:
        if path.name == "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            if n_vocab == MULTILINGUAL_V3 and _CANTONESE not in text:
                text = _with_cantonese(text)
            tokenizer = tokenizers.Tokenizer.from_str(text)
        else:
            tokenizer = _from_vocabulary(files, path)
    except ModelFormatError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise ModelFormatError(f"{path} is not a readable tokenizer: {error}") from error
    return _fitted(tokenizer, n_vocab, path)


def suppressed_by_default(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Tokens that openai-whisper never samples: speaker tags, brackets, music, and the task tokens.

    The same rule as its `non_speech_tokens`: a symbol counts where it is a token of its own, alone or after a space; of
    a music symbol the first token does; a dash and an apostrophe only at the start of a word.
    """
    found = {_encode(tokenizer, " -")[0], _encode(tokenizer, " '")[0]}
    for symbol in (*_SYMBOLS, *_MUSIC):
        for text in (symbol, f" {symbol}"):
            tokens = _encode(tokenizer, text)
            if len(tokens) == 1 or symbol in _MUSIC:
                found.add(tokens[0])
    found |= {token for text in _TASK_TOKENS if (token := tokenizer.token_to_id(text)) is not None}
    return tuple(sorted(found))


def begin_suppressed_by_default(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """A lone space and the end of the text: a window that starts with either would be empty."""
    return (_encode(tokenizer, " ")[0], _encode(tokenizer, "<|endoftext|>")[0])


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _fitted(tokenizer: tokenizers.Tokenizer, n_vocab: int, path: Path) -> tokenizers.Tokenizer:
    first = tokenizer.token_to_id("<|notimestamps|>")
    start = tokenizer.token_to_id("<|startoftranscript|>")
    end = tokenizer.token_to_id("<|endoftext|>")
    if first is None or start is None or end is None:
        raise ModelFormatError(f"{path} is not a Whisper tokenizer: it lacks the task tokens")
    if tokenizer.token_to_id(TIMESTAMPS[0]) is None and tokenizer.get_vocab_size() == first + 1:
        tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in TIMESTAMPS])
    if tokenizer.token_to_id(TIMESTAMPS[0]) != first + 1 or tokenizer.token_to_id(TIMESTAMPS[-1]) != first + 1501:
        raise ModelFormatError(f"{path} does not have the timestamp tokens at the end of its vocabulary")
    if first + 1501 >= n_vocab:
        raise ModelFormatError(f"{path} has {first + 1502} tokens, the network only {n_vocab}")
    if n_vocab in CATALOGUE_NAMES and first + 1502 != n_vocab:
        raise ModelFormatError(f"{path} has {first + 1502} tokens, the network {n_vocab}: it is another model's")
    return tokenizer


def _from_vocabulary(files: Mapping[str, Path], vocabulary: Path) -> tokenizers.Tokenizer:
    """The older Hugging Face layout: a byte-level BPE in two files, and the task tokens in a third."""
    if "merges.txt" not in files:
        raise ModelFormatError(f"{vocabulary} has no merges.txt beside it")
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(files["merges.txt"])))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added: dict[str, int] = {}
    if "added_tokens.json" in files:
        added = json.loads(files["added_tokens.json"].read_text(encoding="utf-8"))
    tokenizer.add_special_tokens(["<|endoftext|>", *sorted(added, key=lambda text: added[text])])
    wrong = [text for text, token in added.items() if tokenizer.token_to_id(text) != token]
    if wrong:
        raise ModelFormatError(f"{files['added_tokens.json']}: {wrong[0]} does not follow the vocabulary")
    return tokenizer


def _with_cantonese(text: str) -> str:
    """The v3 tokenizer from its predecessor: one language more after the last, and what follows moved up by one."""
    table: dict[str, Any] = json.loads(text)
    added = table["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    if _BEFORE_CANTONESE not in ids:
        raise ModelFormatError("a multilingual tokenizer was expected: its last language is missing")
    place = ids[_BEFORE_CANTONESE] + 1
    for token in added:
        token["id"] += token["id"] >= place
    template = next(token for token in added if token["content"] == _BEFORE_CANTONESE)
    added.append(template | {"content": _CANTONESE, "id": place})
    added.sort(key=lambda token: token["id"])
    table["post_processor"] = None  # names ids; diarist builds prompts itself
    return json.dumps(table)
