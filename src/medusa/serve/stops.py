"""Stop strings: where a text ends, and which of its characters may be shown before it does."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..core.request import FinishReason, StopRule


def with_stop_strings(
    rule: StopRule, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt: int
) -> StopRule:
    """Return a rule that also ends a text with the token which completes a stop string.

    Args:
        prompt: tokens of the prompt, in which nothing is looked for.
    """
    if not strings:
        return rule
    # a token stands for at least one byte, and a character has at most four
    window = 4 * max(map(len, strings)) + 4

    def stop(ids: list[int]) -> FinishReason | None:
        reason = rule(ids)
        if reason == "stop":
            return reason
        tail = tokenizer.decode(ids[max(prompt, len(ids) - window) :], skip_special_tokens=True)
        return "stop_string" if any(string in tail for string in strings) else reason

    return stop


class Shown:
    """The text of an answer that may be shown: not its stop string, nor the beginning of one.

    Args:
        strings: texts that end the answer.

    Attributes:
        found: the stop string that has ended the text; None before.
    """

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; return what may be shown of it and of what was held back."""
        text = self._held + text
        end = self._end(text)
        if end is not None:
            self._held = text[end:]
            return text[:end]
        held = max((beginning(text, each) for each in self.strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return what is held back, up to a stop string, when the answer has ended."""
        text, self._held = self._held[: self._end(self._held)], ""
        return text

    def _end(self, text: str) -> int | None:
        """Return where the first stop string begins; None if there is none."""
        places = [(text.find(each), each) for each in self.strings if each in text]
        end, self.found = min(places, default=(None, self.found))
        return end


def beginning(text: str, string: str) -> int:
    """Return how many of a text's last characters are the beginning of a string."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
