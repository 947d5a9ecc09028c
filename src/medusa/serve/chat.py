"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..generation.grammar import Grammar
from ..text import encode_chat
from .answers import Answerer, Answers, Piece, Token
from .chat_fields import ChatRequest, Message, ToolCall
from .errors import ApiError
from .events import event
from .steps import step_fields
from .tools import ToolFormat, ToolReader, forced, tool_format
from .usage import usage

REASONS = {"stop_string": "stop", "cancelled": "stop"}
"""Finish reasons that have another name in the protocol."""
ANY_OBJECT = {"type": "object"}


@dataclass
class Chat:
    """A chat request that is being answered.

    Attributes:
        readers: separates the text and the tool calls of each answer.
    """

    request: ChatRequest
    answers: Answers
    tokenizer: PreTrainedTokenizerBase
    form: ToolFormat | None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    readers: list[ToolReader] = field(init=False)

    def __post_init__(self) -> None:
        self.readers = [ToolReader(self.form) for _ in self.answers.answers]

    async def whole(self) -> dict[str, Any]:
        """Return the response when all answers have ended."""
        texts, reasons = [""] * len(self.readers), ["stop"] * len(self.readers)
        tokens: list[list[Token]] = [[] for _ in self.readers]
        async for piece in self.answers:
            texts[piece.index] += self.readers[piece.index].push(piece.text)
            tokens[piece.index] += piece.tokens
            if piece.finish_reason is not None:
                reasons[piece.index] = REASONS.get(piece.finish_reason, piece.finish_reason)
        choices = []
        for index, reader in enumerate(self.readers):
            rest, calls = reader.finish()
            message: dict[str, Any] = {"role": "assistant", "content": texts[index] + rest}
            if calls:
                message["content"] = message["content"] or None
                message["tool_calls"] = [each.model_dump(exclude={"index"}) for each in calls]
            choices.append(
                {
                    "index": index,
                    "message": {**message, "refusal": None},
                    "logprobs": self._logprobs(tokens[index]),
                    "finish_reason": "tool_calls" if calls else reasons[index],
                }
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(self.answers)}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the answers."""
        for index in range(len(self.readers)):
            yield event(self._chunk(index, {"role": "assistant", "content": ""}))
        async for piece in self.answers:
            for chunk in self._chunks(piece):
                yield event(chunk)
        options = self.request.stream_options
        if options is not None and options.include_usage:
            last = {**self._head("chat.completion.chunk"), "choices": []}
            yield event({**last, "usage": usage(self.answers)})
        yield event("[DONE]")

    def _chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks of a piece: its text, then tool calls and the finish reason."""
        reader, made = self.readers[piece.index], []
        text, calls = reader.push(piece.text), list[ToolCall]()
        if piece.finish_reason is not None:
            rest, calls = reader.finish()
            text += rest
        delta = {"content": text} if text else {}
        if text or piece.tokens:
            made.append(self._chunk(piece.index, delta, piece=piece))
        for place, call in enumerate(calls):
            written = {"index": place, **call.model_dump(exclude={"index"})}
            made.append(self._chunk(piece.index, {"tool_calls": [written]}))
        if piece.finish_reason is not None:
            reason = REASONS.get(piece.finish_reason, piece.finish_reason)
            made.append(self._chunk(piece.index, {}, "tool_calls" if calls else reason))
        return made

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        piece: Piece | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(piece.tokens) if piece is not None else None
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.request.medusa.steps and piece is not None:
            answer = self.answers.answers[index]
            chunk["medusa"] = step_fields(piece, answer.steps, self.tokenizer)
        return chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": [self._logprob(each) for each in tokens], "refusal": None}

    def _logprob(self, token: Token) -> dict[str, Any]:
        assert token.logprobs is not None
        top = [self._named(each, value) for each, value in token.logprobs.top]
        return {**self._named(token.id, token.logprobs.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def begin_chat(answerer: Answerer, request: ChatRequest) -> Chat:
    """Begin to answer a chat.

    Raises:
        ApiError: the model cannot do what a field asks for.
        ValueError: see `Answerer.answer`; or the chat template refuses the conversation.
    """
    tokenizer = answerer.tokenizer
    if tokenizer.chat_template is None:
        raise ApiError(
            400, "the model has no chat template: use /v1/completions", "messages", "no_template"
        )
    form = _form(tokenizer, request)
    tools = [tool.model_dump(exclude_none=True) for tool in request.usable_tools]
    messages = [_for_template(each) for each in request.messages]
    ids = encode_chat(tokenizer, messages, tools=tools or None)[0].tolist()
    answers = answerer.answer(
        ids,
        request,
        processors=_grammars(answerer, request, form),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    return Chat(request, answers, tokenizer, form)


def _form(tokenizer: PreTrainedTokenizerBase, request: ChatRequest) -> ToolFormat | None:
    """Return how the model writes tool calls; None if the request has no tools."""
    if not request.usable_tools:
        return None
    form = tool_format(tokenizer)
    if form is None:
        raise ApiError(
            400,
            "the model's chat template has no tools in a format that this server reads: leave "
            "tools out",
            "tools",
            "no_tools",
        )
    return form


def _grammars(
    answerer: Answerer, request: ChatRequest, form: ToolFormat | None
) -> list[LogitsProcessor]:
    """Return the grammar that the response format or the tool choice demands."""
    response, choice, ends = request.response_format, request.tool_choice, answerer.end_ids
    if form is not None and choice not in (None, "auto"):
        tools = request.usable_tools
        if not isinstance(choice, str) and choice is not None:
            tools = [each for each in tools if each.function.name == choice.function.name]
            if not tools:
                raise ApiError(400, f"there is no tool named {choice.function.name}", "tool_choice")
        several = request.parallel_tool_calls is not False
        return [forced(form, answerer.tokenizer, tools, several, ends)]
    if response is None or response.type == "text":
        return []
    schema = response.json_schema.schema_ if response.json_schema is not None else ANY_OBJECT
    return [Grammar.json_schema(answerer.tokenizer, schema, ends)]


def _for_template(message: Message) -> dict[str, Any]:
    """Return a message as chat templates expect it."""
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls is not None:
        found["tool_calls"] = [_call_for_template(each) for each in message.tool_calls]
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            found[name] = value
    return found


def _call_for_template(call: ToolCall) -> dict[str, Any]:
    """Return a tool call whose arguments are an object, as chat templates expect them."""
    found = call.model_dump(exclude={"index"})
    try:
        found["function"]["arguments"] = json.loads(call.function.arguments)
    except ValueError as error:
        raise ApiError(
            400, f"the arguments of the call {call.id} are not JSON: {error}", "messages"
        ) from error
    return found
