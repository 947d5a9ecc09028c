"""Fields of requests that several endpoints share. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

MOST_ANSWERS, MOST_STOPS, MOST_LOGPROBS = 128, 16, 20


class Fields(BaseModel):
    """A part of a request.

    A field that it does not know is an error; null stands for a field that is left out.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: each for key, each in value.items() if each is not None or key not in known}


def as_parts(kind: str) -> BeforeValidator:
    """Return a validator that turns a text into a list of one part."""

    def parts(value: Any) -> Any:
        return [{"type": kind, "text": value}] if isinstance(value, str) else value

    return BeforeValidator(parts, json_schema_input_type=str | list[dict[str, Any]])


class MedusaSwitches(Fields):
    """How Medusa takes part in an answer; not a part of the protocols.

    Attributes:
        enabled: verify trees of candidates; otherwise decode plainly.
        stream_token_by_token: send a chunk for each token. By default a chunk holds the tokens of
            a step, so that the sizes of chunks show how many candidates were accepted.
    """

    enabled: bool = True
    stream_token_by_token: bool = False


class MedusaFields(MedusaSwitches):
    """How Medusa takes part in an answer, and what its chunks tell of it.

    Attributes:
        steps: describe each step in its chunk.
    """

    steps: bool = False


class StreamOptions(Fields):
    """Options of a stream.

    Attributes:
        include_usage: send the numbers of tokens in a last chunk.
        include_obfuscation: accepted, because clients send it; chunks are never padded.
    """

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Body(Fields):
    """Fields of every request that wants answers."""

    model: str
    stream: bool | None = None

    @model_validator(mode="after")
    def _holds_text(self) -> Self:
        try:
            self.model_dump_json()
        except ValueError as error:  # half of a surrogate pair, or values nested without end
            raise ValueError(f"the body cannot be written as JSON in UTF-8: {error}") from error
        return self

    @property
    def count(self) -> int:
        """The number of answers wanted."""
        return 1


class Sampling(Body):
    """Fields that chats and completions share.

    Fields that are left out take the values of the model's generation configuration.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    medusa: MedusaFields = Field(default_factory=MedusaFields)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: set stream to true, or leave it out")
        return self

    @property
    def count(self) -> int:
        """The number of answers wanted."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [each for each in found if each]
