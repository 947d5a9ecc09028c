"""Fields of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .fields import MOST_LOGPROBS, Fields, Sampling, as_parts


class TextPart(Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Texts = Annotated[list[TextPart], as_parts("text")]
"""A text, or a list of parts."""


class FunctionCall(Fields):
    """A call of a function, with its arguments as JSON.

    Attributes:
        parsed_arguments: accepted, because OpenAI's client sends it back; `arguments` counts.
    """

    name: str
    arguments: str
    parsed_arguments: Any = Field(default=None, exclude=True)


class ToolCall(Fields):
    """A tool call of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Fields):
    """A message of a conversation, of whatever role.

    Attributes:
        parsed, annotations, audio, function_call: accepted, because OpenAI's client sends back what
            it got; the last two must be null.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Texts | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    parsed: Any = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content or ())


class Function(Fields):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Fields):
    """A named JSON schema."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """The form of the answer: any text, a JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ: leave one out")
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: set logprobs to true, or leave it out")
        form = self.response_format
        if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
            raise ValueError(
                "response_format: the type json_schema, and only it, has a json_schema"
            )
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice: there are no tools to choose from")
        return self

    @property
    def usable_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []
