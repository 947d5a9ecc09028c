"""Chat templates: the text that a template makes of a chat, and which spans of it to train on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .turns import Messages, calls_tools

Tools = list[dict[str, Any]] | None
"""JSON schemas of the tools that a chat may call."""
Span = tuple[int, int]
"""Begin and end (excluded), in characters, of the part of a turn that the model writes."""
GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PROBES = ("Q stands here Q", "A stands here A", "N stands here N")
"""Question, answer and next question of a chat that is rendered to find the text around answers."""
OTHER_ANSWER = "B stands here B"
"""A second answer; the part of the rendered text that changes with it is the answer."""
PRIVATE_KEYS = ("cut",)
"""Keys of turns that only this library reads; templates do not see them."""


def choose_template(
    tokenizer: PreTrainedTokenizerBase, template: str | None = None, tools: Tools = None
) -> str | None:
    """Return the Jinja text of a chat template, chosen as transformers does; None without one.

    Args:
        tokenizer: tokenizer of the model.
        template: Jinja text, or the name of one of the tokenizer's templates; by default the
            tokenizer's own template.
        tools: with tools, the template named tool_use is chosen.

    Raises:
        ValueError: the tokenizer has several templates, and none of them has the name `template`,
            or no name is given and none is named default.
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
            "default: write one of them to a file and pass that (--chat-template FILE; template= "
            "in Python), or save the tokenizer with a template named default"
        ) from None


class ChatTemplate:
    """A chat template of a tokenizer.

    Args:
        tokenizer: tokenizer of the model.
        text: Jinja text of the template.
        stops: token ids that end an answer, besides the EOS token and what the template writes.

    Raises:
        ValueError: `text` is not valid Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, stops: Collection[int] = ()):
        self.tokenizer, self.text = tokenizer, text
        self.has_marks = GENERATION_MARK.search(text) is not None
        self._stops = {tokenizer.convert_ids_to_tokens(stop) for stop in stops} - {None}
        self._ends, self._blank_end, self._next_turn = self._probe()

    def render(self, chat: Messages, tools: Tools = None, prompt: bool = False) -> str:
        """Return the text of a chat; with `prompt`, up to where the assistant's turn begins."""
        text = self.tokenizer.apply_chat_template(
            visible(chat),
            tools=tools,
            chat_template=self.text,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return str(text)

    def training_text(self, chat: Messages, tools: Tools = None) -> str:
        """Return the text to train on.

        The text stops with the last answer if that is cut. If the template writes nothing after the
        last answer, the mark that begins the user's next turn is appended, since inside a chat that
        mark ends an answer.
        """
        text = self.render(chat, tools)
        if chat[-1].get("cut"):
            last = self._span(chat, len(chat) - 1, text, tools)
            return text if last is None else text[: last[1]]
        answered = chat[-1]["role"] == "assistant" and not calls_tools(chat[-1])
        if answered and self._next_turn and not self.has_marks and text.endswith(self._blank_end):
            return text[: len(text) - len(self._blank_end)] + self._next_turn
        return text

    def spans(self, chat: Messages, text: str, tools: Tools, reach: int) -> Iterator[Span]:
        """Yield the span of each assistant's turn that begins in the first `reach` characters.

        Args:
            chat: the chat.
            text: `training_text` of the chat.
            tools: tools of the chat.
            reach: number of characters that are needed; later turns need not be rendered.
        """
        chat, full = self._shortened(chat, self.render(chat, tools), tools, reach)
        if self.has_marks:
            yield from self._marked_spans(chat, tools)
            return
        for number, turn in enumerate(chat):
            if turn["role"] == "assistant":
                span = self._span(chat, number, full, tools)
                if span is None:
                    continue
                if span[0] >= reach:
                    return
                yield span[0], self._with_end(text, span[1])

    def _marked_spans(self, chat: Messages, tools: Tools) -> list[Span]:
        """Return the spans that the template itself marks with `{% generation %}`."""
        _, spans = render_jinja_template(
            conversations=[visible(chat)],
            tools=tools,
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(begin, end) for begin, end in spans[0]]

    def _span(self, chat: Messages, number: int, text: str, tools: Tools) -> Span | None:
        """Return the span of an assistant's turn in the rendered text, without its end mark.

        The span begins where the prompt for the turn ends. If the rendered text does not begin with
        that prompt, the span begins where the text changes with the turn's content. The span ends
        where the text stops changing with the content; a turn that calls tools ends with everything
        that the template writes for it. The result is None if the template leaves out the turn.
        """
        prompt = self.render(chat[:number], tools, prompt=True) if number else ""
        begin = len(prompt) if prompt and text.startswith(prompt) else None
        if calls_tools(chat[number]):
            return self._tool_call_span(chat[: number + 1], text, tools, begin)
        return self._answer_span(chat, number, text, tools, begin)

    def _answer_span(
        self, chat: Messages, number: int, text: str, tools: Tools, begin: int | None
    ) -> Span | None:
        """Return the span of a turn by comparing two renderings with different contents."""
        one, other = (
            self.render(
                [*chat[:number], {**chat[number], "content": content}, *chat[number + 1 :]], tools
            )
            for content in (PROBES[1], OTHER_ANSWER)
        )
        if one == other:
            return None
        begin = _common_prefix(one, other) if begin is None else begin
        after = _common_prefix(one[::-1], other[::-1])
        end = len(text) - after
        if end < begin or text[end:] != one[len(one) - after :] or text[:begin] != one[:begin]:
            raise ValueError("the chat template writes other turns differently when one changes")
        return begin, end

    def _tool_call_span(self, chat: Messages, text: str, tools: Tools, begin: int | None) -> Span:
        """Return the span of a chat's last turn, which calls tools."""
        whole = self.render(chat, tools).rstrip()
        if not text.startswith(whole):
            raise ValueError(
                "the chat template writes a turn that calls tools differently when others follow"
            )
        if begin is None:
            answer = {"role": "assistant", "content": OTHER_ANSWER}
            begin = _common_prefix(whole, self.render([*chat[:-1], answer], tools))
        return begin, len(whole)

    def _with_end(self, text: str, end: int) -> int:
        """Return the end of a span, moved after the mark that ends the turn if one follows."""
        begin = end
        while begin < len(text) and text[begin].isspace():
            begin += 1
        return next((begin + len(mark) for mark in self._ends if text.startswith(mark, begin)), end)

    def _shortened(
        self, chat: Messages, text: str, tools: Tools, reach: int
    ) -> tuple[Messages, str]:
        """Return a shorter chat, and its text, which begins with the same `reach` characters.

        Finding spans renders the chat twice a turn, so a long chat of which little is kept would
        cost far more than what is kept.
        """
        length = 0
        for number, turn in enumerate(chat if reach < len(text) else []):
            content = turn.get("content") or ""
            length += len(content)
            if length >= reach:
                short = [*chat[:number], {**turn, "content": content[:reach]}]
                try:
                    rendered = self.render(short, tools)
                except Exception:  # some templates refuse a chat that ends with such a turn
                    break
                if rendered[:reach] == text[:reach]:
                    return short, rendered
                break
        return chat, text

    def _probe(self) -> tuple[list[str], str, str]:
        """Find out how the template ends an answer, by rendering a short chat.

        Returns:
            Marks that can end an assistant's turn, longest first. For templates that write only
            blanks after a final answer: those blanks, and the text from the answer through the mark
            of the user's next turn, which ends an answer inside a chat; otherwise empty strings.
        """
        question, answer, following = (
            {"role": role, "content": content}
            for role, content in zip(("user", "assistant", "user"), PROBES, strict=True)
        )
        final = _between(self._rendered([question, answer]), PROBES[1], None)
        inside = _between(self._rendered([question, answer, following]), PROBES[1], PROBES[2])
        if final is not None and inside is not None and final.strip() and inside.startswith(final):
            inside = final
        marks = {self._first_mark(text) for text in (final, inside) if text}
        ends = marks | self._stops | {self.tokenizer.eos_token}
        blank_end = final if final is not None and not final.strip() else ""
        next_turn = ""
        if inside and final is not None and not final.strip():
            mark = self._first_mark(inside)
            next_turn = inside[: inside.index(mark) + len(mark)]
        return sorted(filter(None, ends), key=len, reverse=True), blank_end, next_turn

    def _rendered(self, chat: Messages) -> str | None:
        """Return the text of a chat; None if the template refuses the chat."""
        try:
            return self.render(chat)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template cannot be read: {error}, line {error.lineno}"
            ) from None
        except Exception:  # templates raise any error, such as for chats without a system message
            return None

    def _first_mark(self, text: str) -> str:
        """Return a text up to its first special token, or all of it if there is none; stripped."""
        special = set(self.tokenizer.added_tokens_decoder)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        for token, (begin, end) in tokens:
            piece = text[begin:end].strip()
            if piece and (token in special or piece in self._stops):
                return text[:end].strip()
        return text.strip()


def visible(chat: Messages) -> Messages:
    """Return a chat as templates see it, without this library's own keys and without None.

    Newer versions of transformers leave out None likewise.
    """
    return [
        {
            name: value
            for name, value in turn.items()
            if value is not None and name not in PRIVATE_KEYS
        }
        for turn in chat
    ]


def _between(text: str | None, before: str, after: str | None) -> str | None:
    """Return the text between two strings, or after the first; None if a string is missing."""
    if text is None or before not in text:
        return None
    rest = text[text.rindex(before) + len(before) :]
    if after is None:
        return rest
    return rest[: rest.index(after)] if after in rest else None


def _common_prefix(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two texts, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
