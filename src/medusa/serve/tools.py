"""Tool calls: how models write them, read back from an answer's text, and enforced by a grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from ..generation.grammar import Grammar
from .chat_fields import Function, FunctionCall, Tool, ToolCall
from .stops import beginning


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls.

    Attributes:
        marker: text of the chat templates which ask for this format.
        begin: text before a call.
        end: text after it.
        arguments: key of the arguments in a call's JSON object.
        listed: the calls of an answer are one JSON list.
    """

    marker: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False

    def read(self, text: str) -> list[ToolCall] | None:
        """Return the calls in a text that begins with `begin`; None if it holds anything else."""
        calls = []
        for part in text.split(self.begin)[1:] if self.begin else [text]:
            body, _, rest = part.partition(self.end) if self.end else (part, "", "")
            if rest.strip():
                return None
            try:
                found = json.loads(body)
            except ValueError:
                return None
            for each in found if isinstance(found, list) else [found]:
                if not isinstance(each, dict) or not isinstance(each.get("name"), str):
                    return None
                arguments = each.get(self.arguments, {})
                written = arguments if isinstance(arguments, str) else json.dumps(arguments)
                call = FunctionCall(name=each["name"], arguments=written)
                calls.append(ToolCall(id=f"call_{uuid4().hex[:24]}", function=call))
        return calls or None

    def lark(self, functions: Sequence[Function], several: bool) -> str:
        """Return a grammar, in Lark's format, of texts that call at least one of the functions."""
        call = json.dumps({"anyOf": [self._schema(each) for each in functions]})
        if self.listed:
            most = {} if several else {"maxItems": 1}
            items = {"type": "array", "minItems": 1, **most, "items": json.loads(call)}
            return f"start: {json.dumps(self.begin)} body\nbody: %json {json.dumps(items)}\n"
        space = '"\\n"' if self.begin else ""
        one = f"{json.dumps(self.begin) if self.begin else ''} {space} body {space}"
        one = f"{one} {json.dumps(self.end)}" if self.end else one
        more = f" ({space} {one})*" if several and self.begin else ""
        return f"start: {one}{more}\nbody: %json {call}\n"

    def _schema(self, function: Function) -> dict[str, Any]:
        parameters = function.parameters or {"type": "object"}
        properties = {"name": {"const": function.name}, self.arguments: parameters}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


FORMATS = (
    ToolFormat("<tool_call>", "<tool_call>", "</tool_call>"),  # Hermes, Qwen and others
    ToolFormat("[TOOL_CALLS]", "[TOOL_CALLS]", "", listed=True),  # Mistral
    ToolFormat('"parameters"', "", "", arguments="parameters"),  # Llama 3
)


def tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """Return how a model writes tool calls; None if its chat template knows no tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use", template.get("default"))
    if not template or "tools" not in template:
        return None
    return next((each for each in FORMATS if each.marker in template), None)


def forced(
    form: ToolFormat,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
    several: bool,
    ends: Sequence[int],
) -> Grammar:
    """Return a grammar under which an answer calls at least one of the tools."""
    return Grammar.lark(tokenizer, form.lark([each.function for each in tools], several), ends)


class ToolReader:
    """Separates the text of an answer from its tool calls.

    Args:
        form: how the model writes calls; None if it was given no tools.
    """

    def __init__(self, form: ToolFormat | None):
        self.form = form
        self._text, self._shown = "", 0

    def push(self, text: str) -> str:
        """Add text; return what may be shown, because it belongs to no call."""
        self._text += text
        begin, self._shown = self._shown, self._visible()
        return self._text[begin : self._shown]

    def _visible(self) -> int:
        """Return how many characters of the text precede whatever may be a call."""
        text = self._text
        if self.form is None:
            return len(text)
        if not self.form.begin:
            return 0 if text.lstrip()[:1] in ("", "{") else len(text)
        place = text.find(self.form.begin, self._shown)
        return place if place >= 0 else len(text) - beginning(text, self.form.begin)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what is left of the text, and the calls. Calls that cannot be read stay text."""
        rest = self._text[self._shown :]
        calls = self.form.read(rest) if self.form is not None and rest.strip() else None
        return ("", calls) if calls else (rest, [])
