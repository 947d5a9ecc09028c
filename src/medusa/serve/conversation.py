"""Conversations: a chat request becomes a prompt and a grammar, and its answers are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..generation.grammar import Grammar
from ..text import encode_chat
from .answers import Answerer
from .chat_fields import ChatRequest, Message, Tool, ToolCall
from .errors import ApiError
from .reading import Reading
from .tools import ANY_OBJECT, ToolFormat, tool_format


def converse(answerer: Answerer, request: ChatRequest, unfinished: bool = False) -> Reading:
    """Begin to answer a conversation.

    Args:
        unfinished: continue the last message, which is the assistant's.

    Raises:
        ApiError: the model cannot do what a field asks for.
        ValueError: see `Answerer.answer`; or the chat template refuses the conversation.
    """
    form = _form(answerer.tokenizer, request)
    answers = answerer.answer(
        prompt_ids(answerer.tokenizer, request, unfinished),
        request,
        processors=_grammars(answerer, request, form),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        kept=[] if form is None else [each for each in (form.begin, form.end) if each],
    )
    return Reading(answers, form, _several(request))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, request: ChatRequest, unfinished: bool = False
) -> list[int]:
    """Return the token ids of a conversation; see `converse`."""
    if tokenizer.chat_template is None:
        raise ApiError(
            400, "the model has no chat template: use /v1/completions", "messages", "no_template"
        )
    tools = [tool.model_dump(exclude_none=True) for tool in request.usable_tools]
    names = {
        call.id: call.function.name for each in request.messages for call in each.tool_calls or ()
    }
    messages = [_for_template(each, names) for each in request.messages]
    found = encode_chat(tokenizer, messages, tools=tools or None, unfinished=unfinished)
    return [int(each) for each in found[0]]


def _several(request: ChatRequest) -> bool:
    """Return whether an answer may have more than one tool call."""
    return request.parallel_tool_calls is not False


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
    tokenizer, ends, schema = answerer.tokenizer, answerer.end_ids, _schema(request)
    forced = request.tool_choice not in (None, "auto")
    if form is None or not (forced or schema):
        return [] if schema is None else [Grammar.json_schema(tokenizer, schema, ends)]
    functions, answer = [each.function for each in _chosen(request)], None if forced else schema
    rules = form.lark(functions, _several(request), answer, tokenizer.get_added_vocab())
    return [Grammar.lark(tokenizer, rules, ends)]


def _schema(request: ChatRequest) -> dict[str, Any] | None:
    """Return the JSON schema that the answer must follow."""
    response = request.response_format
    if response is None or response.type == "text":
        return None
    return response.json_schema.schema_ if response.json_schema is not None else ANY_OBJECT


def _chosen(request: ChatRequest) -> Sequence[Tool]:
    """Return the tools that the tool choice leaves."""
    tools, choice = request.usable_tools, request.tool_choice
    if choice is None or isinstance(choice, str):
        return tools
    found = [each for each in tools if each.function.name == choice.function.name]
    if not found:
        raise ApiError(400, f"there is no tool named {choice.function.name}", "tool_choice")
    return found


def _for_template(message: Message, names: dict[str, str]) -> dict[str, Any]:
    """Return a message as chat templates expect it.

    Args:
        names: names of the functions that were called, by the ids of the calls.
    """
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls:
        found["tool_calls"] = [_call_for_template(each) for each in message.tool_calls]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    name = message.name or names.get(message.tool_call_id or "")
    return found if name is None else {**found, "name": name}


def _call_for_template(call: ToolCall) -> dict[str, Any]:
    """Return a tool call whose arguments are an object, as chat templates expect them."""
    found = call.model_dump(exclude={"index"})
    try:
        found["function"]["arguments"] = json.loads(call.function.arguments or "{}")
    except ValueError as error:
        raise ApiError(
            400, f"the arguments of the call {call.id} are not JSON: {error}", "messages"
        ) from error
    return found
