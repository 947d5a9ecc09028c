"""Tool calls: how models write them, read back from an answer's text, and enforced by a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from .chat_fields import Function, FunctionCall, ToolCall
from .stops import beginning

ANY_OBJECT = {"type": "object"}
LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""How enforced JSON is written: on one line, as `json.dumps` does."""
BETWEEN = re.compile(r"[\s;,]*")
"""Characters that may stand between two calls in JSON: Llama's models write a semicolon."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls.

    Attributes:
        marker: text of the chat templates which ask for this format.
        begin: text before a call; without one, a call is a whole answer.
        end: text after it; without one, a call ends with the answer.
        arguments: key of the arguments in a call's JSON object.
        listed: the calls of an answer are one JSON list.
        unlike: texts of the chat templates which have the marker, but ask for another format.
    """

    marker: str
    begin: str = ""
    end: str = ""
    arguments: str = "arguments"
    listed: bool = False
    unlike: tuple[str, ...] = ()

    def asked_by(self, template: str) -> bool:
        """Return whether a chat template asks for this format."""
        return self.marker in template and not any(each in template for each in self.unlike)

    def read(self, body: str) -> list[ToolCall]:
        """Return the calls in the text between `begin` and `end`.

        Raises:
            ValueError: the text is anything else.
        """
        found = [each for value in json_values(body) for each in _listed(value)]
        if not found:
            raise ValueError("there are no calls")
        return [self._call(each) for each in found]

    def _call(self, value: Any) -> ToolCall:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("a call needs a name")
        arguments = value.get(self.arguments, {})
        if isinstance(arguments, str):  # some models write JSON as text
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise ValueError("the arguments of a call are an object")
        written = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(id=new_id(), function=FunctionCall(name=value["name"], arguments=written))

    def lark(
        self,
        functions: Sequence[Function],
        several: bool,
        answer: dict[str, Any] | None = None,
        added: Mapping[str, int] | None = None,
    ) -> str:
        """Return a grammar, in Lark's format, of texts that call at least one of the functions.

        Args:
            several: they may call more than one.
            answer: JSON schema of texts that are allowed as well.
            added: ids of the tokens that were added to the tokenizer's vocabulary. Their texts
                can be written only by these tokens.
        """
        # each schema is a grammar of its own, because its references begin at its root
        rules = [self._rule(place, each) for place, each in enumerate(functions)]
        begin, end = (
            f"<[{added[each]}]>" if added and each in added else _quoted(each)
            for each in (self.begin, self.end)
        )
        calls = "call"
        if self.listed:
            more = ' (", " call)*' if several else ""
            calls = f'{begin} "[" call{more} "]"'
        elif self.begin:
            calls = 'one ("\\n" one)*' if several else "one"
            rules.append(f'one: {begin} "\\n" call "\\n" {end}')
        names = " | ".join(f"call_{place}" for place in range(len(functions)))
        start = ["start: calls", f"calls: {calls}", f"call: {names}"]
        if answer is not None:
            start[0] += " | answer"
            rules.append(f"answer: {_json(answer)}")
        return "\n".join([*start, *rules])

    def _rule(self, place: int, function: Function) -> str:
        # in parts, which JSON texts of other schemas have as well: the lexer never goes back
        parts = ("{", '"name"', ": ", json.dumps(function.name), ", ", f'"{self.arguments}"', ": ")
        head = " ".join(map(_quoted, parts))
        arguments = _json(function.parameters or ANY_OBJECT)
        return f'call_{place}: {head} arguments_{place} "}}"\narguments_{place}: {arguments}'


FORMATS = (
    # Hermes, Qwen and others; Qwen3-Coder and GLM write XML between the same tags
    ToolFormat("<tool_call>", "<tool_call>", "</tool_call>", unlike=("<function=", "<arg_key>")),
    # Mistral; its later models write the name and [ARGS] before the arguments
    ToolFormat("[TOOL_CALLS]", "[TOOL_CALLS]", listed=True, unlike=("[ARGS]",)),
    ToolFormat('"parameters"', arguments="parameters"),  # Llama 3
)


def tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """Return how a model writes tool calls; None if its chat template knows no tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use", template.get("default"))
    if not template or "tools" not in template:
        return None
    return next((each for each in FORMATS if each.asked_by(template)), None)


def new_id() -> str:
    """Return an id for a call: nine letters and digits; Mistral's chat templates take no others."""
    return uuid4().hex[:9]


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that a text consists of.

    Raises:
        ValueError: the text holds anything else.
    """
    decoder, place = json.JSONDecoder(), 0
    while True:
        place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it always matches
        if place == len(text):
            return
        value, place = decoder.raw_decode(text, place)
        yield value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _quoted(text: str) -> str:
    return json.dumps(text)


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': LAYOUT})}"


class ToolReader:
    """Separates the text of an answer from its tool calls.

    White space before a call is no text. A call that cannot be read stays text.

    Args:
        form: how the model writes calls; None if it was given no tools.
        several: return all calls; otherwise only the first.
    """

    def __init__(self, form: ToolFormat | None, several: bool = True):
        self.form, self.several = form, several
        self._held = ""
        self._texts = self._calls = 0

    def push(self, text: str, ended: bool = False) -> list[str | ToolCall]:
        """Add text; return the texts and calls that are complete, in order.

        Args:
            ended: the answer ends with this text.
        """
        self._held += text
        found: list[str | ToolCall] = []
        while self._held and (parts := self._next(ended)) is not None:
            found += parts
        return found

    def _next(self, ended: bool) -> Sequence[str | ToolCall] | None:
        """Take the text before the next call, or the call; return None to wait for more text."""
        if self.form is None:
            return self._text(len(self._held))
        place = self._place(self.form)
        before = self._held[:place]
        if ended and place == len(self._held):
            return self._text(place)
        if before.strip():
            return self._text(len(before.rstrip()))
        if place == len(self._held):
            return None
        return self._called(self.form, place, ended)

    def _place(self, form: ToolFormat) -> int:
        """Return where a call begins, or may begin; the length of the text if nowhere."""
        text = self._held
        if not form.begin:
            first = len(text) - len(text.lstrip())
            return first if text[first:][:1] == "{" and not self._texts else len(text)
        place = text.find(form.begin)
        return place if place >= 0 else len(text) - beginning(text, form.begin)

    def _called(self, form: ToolFormat, place: int, ended: bool) -> Sequence[str | ToolCall] | None:
        """Take the call at a place, if it is complete."""
        body = place + len(form.begin)
        end = self._held.find(form.end, body) if form.end else -1
        if end < 0 and not ended:
            return None
        stop = end + len(form.end) if end >= 0 else len(self._held)
        try:
            calls = form.read(self._held[body : end if end >= 0 else stop])
        except ValueError:
            return self._text(stop)
        self._held = self._held[stop:]
        first, self._calls = self._calls, self._calls + len(calls)
        return calls if self.several else calls[: max(0, 1 - first)]

    def _text(self, end: int) -> list[str]:
        """Take text up to a place."""
        text, self._held = self._held[:end], self._held[end:]
        self._texts += 1
        return [text]
