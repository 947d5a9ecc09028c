"""Fields of Anthropic's `POST /v1/messages`, and the chat request that they stand for."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .chat_fields import (
    ChatRequest,
    Function,
    FunctionCall,
    Message,
    NamedFunction,
    NamedTool,
    TextPart,
    Tool,
    ToolCall,
)
from .fields import MOST_STOPS, Body, Fields, MedusaFields, MedusaSwitches, as_parts


class CacheControl(Fields):
    """A wish to cache a prompt; the server caches prompts anyway, so that it has no effect."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Fields):
    """A part of a message."""

    cache_control: CacheControl | None = None


class TextBlock(Block):
    """A text."""

    type: Literal["text"]
    text: str
    citations: None = None


Texts = Annotated[list[TextBlock], as_parts("text")]
"""A text, or a list of texts."""


class ToolUseBlock(Block):
    """A tool call of the assistant."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Block):
    """The result of a tool call; the text of an error begins with "Error: "."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = Field(default_factory=list)
    is_error: bool = False


AnyBlock = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(Fields):
    """A message of the user or the assistant."""

    role: Literal["user", "assistant"]
    content: Annotated[list[AnyBlock], as_parts("text")]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> Turn:
        other = {"user": "tool_use", "assistant": "tool_result"}[self.role]
        if any(block.type == other for block in self.content):
            raise ValueError(f"content: a message of the {self.role} has no {other} blocks")
        return self

    @property
    def messages(self) -> list[Message]:
        """The turn as messages of a chat: the results of tools come first."""
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        results = [_result(each) for each in self.content if isinstance(each, ToolResultBlock)]
        calls = [_call(each) for each in self.content if isinstance(each, ToolUseBlock)]
        if results and not texts:
            return results
        message = Message(role=self.role, content=_parts(texts), tool_calls=calls or None)
        return [*results, message]


class MessagesTool(Fields):
    """A tool that the model may call; `input_schema` is a JSON schema."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolChoice(Fields):
    """The choice of the tools that the model may or must call."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _a_tool_has_a_name(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("the type tool, and only it, has a name")
        return self


class Metadata(Fields):
    """Facts about the request, which have no effect."""

    user_id: str | None = None


class CountRequest(Body):
    """The body of `POST /v1/messages/count_tokens`: a conversation."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Texts = Field(default_factory=list)
    tools: list[MessagesTool] | None = None
    tool_choice: ToolChoice | None = None
    stream: None = None

    @model_validator(mode="after")
    def _belong_together(self) -> CountRequest:
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not self.tools:
            raise ValueError("tool_choice: there are no tools to choose from")
        last = self.messages[-1]
        if last.role == "assistant" and any(each.type != "text" for each in last.content):
            raise ValueError("messages: results of the last message's tool calls are missing")
        return self

    @property
    def unfinished(self) -> bool:
        """True if the last message is the begin of the answer."""
        return self.messages[-1].role == "assistant"

    @property
    def chat(self) -> ChatRequest:
        """The chat request that it stands for."""
        system = [Message(role="system", content=_parts(self.system))] if self.system else []
        return ChatRequest(
            model=self.model,
            messages=[*system, *(message for turn in self.messages for message in turn.messages)],
            tools=[_tool(each) for each in self.tools] if self.tools else None,
            **self._choice(),
        )

    def _choice(self) -> dict[str, Any]:
        choice = self.tool_choice
        if choice is None:
            return {}
        named = NamedTool(type="function", function=NamedFunction(name=choice.name or ""))
        names = {"any": "required", "auto": "auto", "none": "none"}
        return {
            "tool_choice": named if choice.type == "tool" else names[choice.type],
            "parallel_tool_calls": not choice.disable_parallel_tool_use,
        }


class MessagesRequest(CountRequest):
    """The body of `POST /v1/messages`."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop_sequences: Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None  # type: ignore[assignment]  # counting has no streams
    metadata: Metadata | None = None
    medusa: MedusaSwitches = Field(default_factory=MedusaSwitches)

    @property
    def chat(self) -> ChatRequest:
        """The chat request that it stands for."""
        sampling = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "medusa": MedusaFields(**self.medusa.model_dump()),
        }
        return super().chat.model_copy(update=sampling)


def _parts(blocks: list[TextBlock]) -> list[TextPart]:
    return [TextPart(type="text", text=each.text) for each in blocks]


def _call(block: ToolUseBlock) -> ToolCall:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _result(block: ToolResultBlock) -> Message:
    error = [TextPart(type="text", text="Error: ")] if block.is_error else []
    content = [*error, *_parts(block.content)]
    return Message(role="tool", content=content, tool_call_id=block.tool_use_id)


def _tool(tool: MessagesTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(type="function", function=function)
