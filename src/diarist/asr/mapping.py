"""Tokens of one Whisper vocabulary said in another: text by its bytes, timestamps by their time, the rest by name."""

from collections.abc import Iterable, Sequence

from diarist.asr.text import Vocabulary


class TokenMapping:
    """Between the main model's tokens and an assistant's.

    Args:
        main: Of the main model.
        draft: Of the assistant.
    """

    def __init__(self, main: Vocabulary, draft: Vocabulary) -> None:
        self._main, self._draft = main, draft
        self.same_text = main.end == draft.end and all(
            main.written(token) == draft.written(token) for token in range(main.end)
        )
        """Whether all text has the same numbers in both."""
        self._named = {main.start: draft.start, main.previous: draft.previous, main.no_timestamps: draft.no_timestamps}
        self._named[main.end] = draft.end
        if draft.multilingual:
            self._named |= {main.transcribe: draft.transcribe, main.translate: draft.translate}
            self._named |= {
                number: draft.languages[code] for code, number in main.languages.items() if code in draft.languages
            }
        self._pieces: dict[int, tuple[int, ...]] = {}  # of the main model's text tokens that were met

    def serves(self, language: str, task: str) -> bool:
        """Whether the assistant knows how to do this."""
        if self._draft.multilingual:
            return language in self._draft.languages
        return language == "en" and task == "transcribe"

    def forward(self, tokens: Iterable[int]) -> list[int]:
        """The main model's tokens as the assistant's. Those that it has no name for are left out.

        A text token that the assistant does not have becomes the several that its own merges make of those bytes.
        """
        found: list[int] = []
        begin = self._main.timestamp_begin
        for token in tokens:
            if token >= begin:
                found.append(token - begin + self._draft.timestamp_begin)
            elif token >= self._main.end:
                if token in self._named:
                    found.append(self._named[token])
            elif self.same_text:
                found.append(token)
            else:
                if token not in self._pieces:
                    self._pieces[token] = self._draft.split(self._main.written(token))
                found += self._pieces[token]
        return found

    def back(self, tokens: Sequence[int]) -> list[int]:
        """The assistant's tokens as the main model's, up to the first that cannot be said.

        Text is written anew, run by run, because where one vocabulary has a word in one token the other may need two.
        The bytes of half a character cannot be said: the draft ends before them.
        """
        found: list[int] = []
        begin = self._draft.timestamp_begin
        run: list[int] = []
        for token in tokens:
            if token < self._draft.end:
                run.append(token)
                continue
            text, whole = self._text(run)
            found += text
            run = []
            if not whole:
                return found
            if token >= begin:
                found.append(token - begin + self._main.timestamp_begin)
            elif token == self._draft.end:
                found.append(self._main.end)
            else:
                return found
        return found + self._text(run)[0]

    def _text(self, run: Sequence[int]) -> tuple[list[int], bool]:
        """Text tokens said in the main vocabulary, and whether all of them could be."""
        if self.same_text:
            return list(run), True
        text, broken, _ = self._draft.decode(run).partition("\ufffd")
        return self._main.encode(text), not broken
