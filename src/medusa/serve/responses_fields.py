"""Fields of OpenAI's `POST /v1/responses`, and the chat request that they stand for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .chat_fields import (
    ChatRequest,
    Function,
    FunctionCall,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from .fields import Body, Fields, MedusaFields, MedusaSwitches, as_parts

Status = Literal["in_progress", "completed", "incomplete"]


class Text(Fields):
    """A text of an item."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


Texts = Annotated[list[Text], as_parts("input_text")]
"""A text, or a list of texts."""


class Item(Fields):
    """An item of a conversation; its id and status have no effect."""

    id: str | None = None
    status: Status | None = None


class MessageItem(Item):
    """A message."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Texts


class CallItem(Item):
    """A function call of the assistant."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OutputItem(Item):
    """The output of a function that was called."""

    type: Literal["function_call_output"]
    call_id: str
    output: Texts


def _with_type(item: Any) -> Any:
    """Return an item with its type, which messages may leave out."""
    return {"type": "message", **item} if isinstance(item, dict) else item


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


AnyItem = Annotated[
    Annotated[MessageItem | CallItem | OutputItem, Field(discriminator="type")],
    BeforeValidator(_with_type, json_schema_input_type=dict[str, Any]),
]
Items = Annotated[
    list[AnyItem],
    Field(min_length=1),
    BeforeValidator(_as_items, json_schema_input_type=str | list[dict[str, Any]]),
]
"""A user's text, or a list of items."""


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]


class NamedFunctionTool(NamedFunction):
    """The function that the model must call."""

    type: Literal["function"]


class Format(Fields):
    """The form of the answer: any text, a JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_fits(self) -> Format:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("the type json_schema, and only it, has a schema")
        return self


class TextOptions(Fields):
    """Options of the answer's text."""

    format: Format = Field(default_factory=lambda: Format(type="text"))


class StreamOptions(Fields):
    """Options of a stream; events are never padded."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Body):
    """The body of `POST /v1/responses`. Nothing is stored."""

    input: Items
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    text: TextOptions = Field(default_factory=TextOptions)
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    medusa: MedusaSwitches = Field(default_factory=MedusaSwitches)

    @field_validator("store", "previous_response_id")
    @classmethod
    def _nothing_is_stored(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server stores no responses: send the conversation as input")
        return value

    @model_validator(mode="after")
    def _there_are_tools(self) -> ResponsesRequest:
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice: there are no tools to choose from")
        return self

    @property
    def chat(self) -> ChatRequest:
        """The chat request that it stands for."""
        tools = [Function(**each.model_dump(exclude={"type"})) for each in self.tools or ()]
        return ChatRequest(
            model=self.model,
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=self._format(),
            tools=[Tool(type="function", function=each) for each in tools] or None,
            tool_choice=self._choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            medusa=MedusaFields(**self.medusa.model_dump()),
        )

    def _choice(self) -> Literal["none", "auto", "required"] | NamedTool | None:
        if isinstance(self.tool_choice, NamedFunctionTool):
            function = NamedFunction(name=self.tool_choice.name)
            return NamedTool(type="function", function=function)
        return self.tool_choice if self.tools else None

    def _format(self) -> ResponseFormat:
        form = self.text.format
        schema = None if form.schema_ is None else JsonSchema(schema=form.schema_)
        return ResponseFormat(type=form.type, json_schema=schema)

    def _messages(self) -> list[Message]:
        """Return the items as messages; calls belong to the assistant's message before them."""
        found: list[Message] = []
        if self.instructions:
            system = TextPart(type="text", text=self.instructions)
            found.append(Message(role="system", content=[system]))
        for item in self.input:
            if isinstance(item, MessageItem):
                found.append(Message(role=item.role, content=_parts(item.content)))
            elif isinstance(item, OutputItem):
                content = _parts(item.output)
                found.append(Message(role="tool", content=content, tool_call_id=item.call_id))
            else:
                if not found or found[-1].role != "assistant":
                    found.append(Message(role="assistant"))
                function = FunctionCall(name=item.name, arguments=item.arguments)
                call = ToolCall(id=item.call_id, function=function)
                found[-1].tool_calls = [*(found[-1].tool_calls or ()), call]
        return found


def _parts(texts: list[Text]) -> list[TextPart]:
    return [TextPart(type="text", text=each.text) for each in texts]
