"""Chat templates: the text they make of a chat, and which of it the model writes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .fields import Messages

Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
"""First and last character (not included) of what the model writes in a turn."""
MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
SAID = ("Q stands here Q", "A stands here A", "N stands here N")
"""A question, an answer and the next question, which show what a template writes around them."""
OTHER = "B stands here B"
OURS = ("cut",)
"""What turns tell this library and no template."""


def choose_template(
    tokenizer: PreTrainedTokenizerBase, template: str | None = None, tools: Tools = None
) -> str | None:
    """Return the Jinja text of a chat template as transformers chooses it, None where there is
    none.

    Args:
        template: Jinja text, or the name of one of the tokenizer's templates; by default the
            tokenizer's own.
        tools: where tools are given, the template named tool_use is chosen.

    Raises:
        ValueError: the tokenizer has several templates, and none is named `template`, or none
            default.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if template is None and not tokenizer.chat_template:
        return None
    if named and template is not None and template not in named and "{" not in template:
        raise ValueError(
            f"the tokenizer has no chat template named {template}: there are "
            f"{', '.join(sorted(named))}"
        )
    try:
        return str(tokenizer.get_chat_template(template, tools or None))
    except ValueError:
        raise ValueError(
            f"the tokenizer has the chat templates {', '.join(sorted(named))} and none named "
            "default: write one of "
            "them to a file and pass that (--chat-template FILE; template= in Python), or save the "
            "tokenizer with a "
            "template named default"
        ) from None


class ChatTemplate:
    """A chat template of a tokenizer.

    Args:
        text: Jinja.
        stops: ids that end an answer, besides what the template shows.

    Raises:
        ValueError: the template is no Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, stops: Collection[int] = ()):
        self.tokenizer, self.text = tokenizer, text
        self.marked = MARKED.search(text) is not None
        self._stops = {tokenizer.convert_ids_to_tokens(each) for each in stops} - {None}
        self._ends, self._silent, self._next = self._probe()

    def render(self, chat: Messages, tools: Tools = None, prompt: bool = False) -> str:
        """Return the text of a chat; as a `prompt` it waits for the assistant's turn."""
        told = self.tokenizer.apply_chat_template(
            shown(chat),
            tools=tools,
            chat_template=self.text,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return str(told)

    def example(self, chat: Messages, tools: Tools = None) -> str:
        """Return the text to learn a chat from.

        It ends with the last answer where that is cut. Where the template writes nothing behind the
        last answer, the mark of the user's next turn ends it, as it does inside a chat.
        """
        text = self.render(chat, tools)
        if chat[-1].get("cut"):
            last = self._span(chat, len(chat) - 1, text, tools)
            return text if last is None else text[: last[1]]
        answered = chat[-1]["role"] == "assistant" and not _calls(chat[-1])
        if answered and self._next and not self.marked and text.endswith(self._silent):
            return text[: len(text) - len(self._silent)] + self._next
        return text

    def spans(self, chat: Messages, text: str, tools: Tools, reach: int) -> Iterator[Span]:
        """Yield what the model writes in each assistant's turn that begins in the first `reach`
        characters.

        Args:
            text: what `example` made of the chat.
        """
        chat, full = self._shortened(chat, self.render(chat, tools), tools, reach)
        if self.marked:
            yield from self._marked(chat, tools)
            return
        for number, turn in enumerate(chat):
            if turn["role"] == "assistant":
                span = self._span(chat, number, full, tools)
                if span is None:
                    continue
                if span[0] >= reach:
                    return
                yield span[0], self._ended(text, span[1])

    def _marked(self, chat: Messages, tools: Tools) -> list[Span]:
        """Return the spans by the template's own generation markers."""
        turns = [
            {name: value for name, value in turn.items() if value is not None}
            for turn in shown(chat)
        ]
        _, found = render_jinja_template(
            conversations=[turns],
            tools=tools,
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(begin, end) for begin, end in found[0]]

    def _span(self, chat: Messages, number: int, text: str, tools: Tools) -> Span | None:
        """Return where an assistant's turn stands in the rendered text, without the mark that ends
        it.

        The span begins where the prompt for the turn ends, and ends where the text stops changing
        with the turn's content. Where templates write a turn in another way than they prompt for
        it, it begins where the text starts changing. A turn that calls tools ends with all that the
        template writes for it. None stands for a turn that the template leaves out.
        """
        asked = self.render(chat[:number], tools, prompt=True) if number else ""
        begin = len(asked) if asked and text.startswith(asked) else None
        if _calls(chat[number]):
            return self._calling(chat[: number + 1], text, tools, begin)
        return self._changing(chat, number, text, tools, begin)

    def _changing(
        self, chat: Messages, number: int, text: str, tools: Tools, begin: int | None
    ) -> Span | None:
        """Return the span of a turn by how the text changes with its content."""
        one, other = (
            self.render(
                [*chat[:number], {**chat[number], "content": content}, *chat[number + 1 :]], tools
            )
            for content in (SAID[1], OTHER)
        )
        if one == other:
            return None
        begin = _common(one, other) if begin is None else begin
        after = _common(one[::-1], other[::-1])
        end = len(text) - after
        if end < begin or text[end:] != one[len(one) - after :] or text[:begin] != one[:begin]:
            raise ValueError("the chat template writes other turns differently when one changes")
        return begin, end

    def _calling(self, chat: Messages, text: str, tools: Tools, begin: int | None) -> Span:
        """Return the span of a chat's last turn, which calls tools."""
        whole = self.render(chat, tools).rstrip()
        if not text.startswith(whole):
            raise ValueError(
                "the chat template writes a turn that calls tools differently when others follow"
            )
        if begin is None:
            begin = _common(
                whole, self.render([*chat[:-1], {"role": "assistant", "content": OTHER}], tools)
            )
        return begin, len(whole)

    def _ended(self, text: str, end: int) -> int:
        """Return the end of a span with the mark that ends the turn, where one follows."""
        begin = end
        while begin < len(text) and text[begin].isspace():
            begin += 1
        return next((begin + len(mark) for mark in self._ends if text.startswith(mark, begin)), end)

    def _shortened(
        self, chat: Messages, text: str, tools: Tools, reach: int
    ) -> tuple[Messages, str]:
        """Return a shorter chat whose text begins with the same `reach` characters, with that
        text.
        """
        length = 0
        for number, turn in enumerate(chat if reach < len(text) else []):
            said = turn.get("content") or ""
            length += len(said)
            if length >= reach:
                short = [*chat[:number], {**turn, "content": said[:reach]}]
                try:
                    found = self.render(short, tools)
                except Exception:  # the template asks for more turns
                    break
                if found[:reach] == text[:reach]:
                    return short, found
                break
        return chat, text

    def _probe(self) -> tuple[list[str], str, str]:
        """Return what can end an assistant's turn, the longest first, and how chats end that have
        no such end.

        These are the blanks that the template writes behind an answer, and the mark of the user's
        next turn.
        """
        question, answer, following = (
            {"role": role, "content": said}
            for role, said in zip(("user", "assistant", "user"), SAID, strict=True)
        )
        last = _between(self._rendered([question, answer]), SAID[1], None)
        inside = _between(self._rendered([question, answer, following]), SAID[1], SAID[2])
        if last is not None and inside is not None and last.strip() and inside.startswith(last):
            inside = last
        ends = (
            {self._mark(each) for each in (last, inside) if each}
            | self._stops
            | {self.tokenizer.eos_token}
        )
        silent = last if last is not None and not last.strip() else ""
        going_on = inside is not None and last is not None and not last.strip()
        head = (
            inside[: inside.index(self._mark(inside)) + len(self._mark(inside))]
            if going_on and inside
            else ""
        )
        return sorted(filter(None, ends), key=len, reverse=True), silent, head

    def _rendered(self, chat: Messages) -> str | None:
        try:
            return self.render(chat)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template cannot be read: {error}, line {error.lineno}"
            ) from None
        except (
            Exception
        ):  # templates raise what they like, such as for chats without a system message
            return None

    def _mark(self, text: str) -> str:
        """Return a text through its first special token, or all of it where it has none; without
        blanks around.
        """
        special = set(self.tokenizer.added_tokens_decoder)
        told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (begin, end) in zip(told["input_ids"], told["offset_mapping"], strict=True):
            if text[begin:end].strip() and (
                token in special or text[begin:end].strip() in self._stops
            ):
                return text[:end].strip()
        return text.strip()


def shown(chat: Messages) -> Messages:
    """Return a chat as templates see it."""
    return [{name: value for name, value in turn.items() if name not in OURS} for turn in chat]


def _calls(turn: dict[str, Any]) -> bool:
    """Return whether a turn calls tools."""
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _between(text: str | None, before: str, after: str | None) -> str | None:
    """Return what stands between two texts, or behind the first; None where they are not there."""
    if text is None or before not in text:
        return None
    behind = text[text.rindex(before) + len(before) :]
    if after is None:
        return behind
    return behind[: behind.index(after)] if after in behind else None


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
