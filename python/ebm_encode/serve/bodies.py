"""What requests and replies hold, as the OpenAPI document describes it."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictInt,
    StrictStr,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from typing_extensions import TypeAliasType

_MOST_ID = 2**31
_PART = 2**16


def _whole(value: Any) -> Any:
    """In JSON, `3.0` is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
TokenId = Annotated[
    StrictInt,
    BeforeValidator(_whole),
    Field(ge=0, lt=_MOST_ID),
    WithJsonSchema({"type": "integer", "minimum": 0, "exclusiveMaximum": _MOST_ID}),
]


def _plain_ids(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Whole numbers within bounds pass at once; a call for each of a million takes a second."""
    if not isinstance(value, list) or not value:
        return check(value)
    # In parts: what is one call for Python lets no other thread run meanwhile.
    for start in range(0, len(value), _PART):
        part = value[start : start + _PART]
        if {*map(type, part)} != {int} or min(part) < 0 or max(part) >= _MOST_ID:
            return check(value)
    return value


# One wrong element is told, not each of a million: that would take minutes and gigabytes.
Strings = TypeAliasType("Strings", Annotated[list[StrictStr], FailFast()])
Ids = TypeAliasType("Ids", Annotated[list[TokenId], FailFast(), WrapValidator(_plain_ids)])
ManyIds = TypeAliasType("ManyIds", Annotated[list[Ids], FailFast()])


class Request(BaseModel):
    """The body of a request. Of unknown keys one is told, however many there are."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        unknown = given.keys() - cls.model_fields.keys() if isinstance(given, dict) else None
        if unknown:
            raise ValueError(f"unknown key {min(unknown)[:100]!r}")
        return given


class EncodeTexts(Request):
    """States to encode."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["n : ℕ\n⊢ n + 0 = n"]}]}
    )

    texts: Strings


class EncodeTokens(Request):
    """States to encode, as token ids: used as they are, without template, special tokens or cut."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"tokens": [[1, 5]]}]}
    )

    tokens: ManyIds


class Item(BaseModel):
    """What became of one state."""

    status: str = Field(description="`ok`, or why there is no embedding")
    tokens: int = Field(description="Length of the prompt before any cut; 0 where not known")
    truncated: bool
    token_digest: str | None = Field(description="States with equal ones may have equal embeddings")
    reason: str
    embedding: list[float] | None


class EncodeReply(BaseModel):
    """Embeddings in the order of the states."""

    identity: str = Field(description="Digest of the encoder's identity")
    instance: str = Field(description="Another one after each start of the server")
    dim: int
    items: list[Item]


class EmbeddingsRequest(Request):
    """A request as to OpenAI's `/v1/embeddings`."""

    model_config = ConfigDict(extra="forbid")

    input: StrictStr | Strings | Ids | ManyIds
    model: StrictStr
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: (
        Annotated[Whole, Field(ge=1), WithJsonSchema({"type": "integer", "minimum": 1})] | None
    ) = None
    user: StrictStr | None = None


class OpenAIEmbedding(BaseModel):
    """One embedding."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or little-endian float32 in base64")


class Usage(BaseModel):
    """Tokens of the prompts, before any cut."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """An answer as of OpenAI's `/v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["ebm-encode"] = "ebm-encode"


class Models(BaseModel):
    """An answer as of OpenAI's `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ready", "loading", "stopping", "failed"]
    reason: str = ""


class Limits(BaseModel):
    """What the server takes."""

    max_texts: int
    max_body_bytes: int
    max_tokens: int | None = Field(description="Longest prompt; null: any")
    queue_texts: int
    timeout_seconds: float


class Info(BaseModel):
    """What the server is."""

    software: Literal["ebm-encode"] = "ebm-encode"
    version: str
    instance: str
    identity: dict[str, Any]
    identity_digest: str
    dim: int
    model: str
    engine: str
    state_format: str
    limits: Limits
    versions: dict[str, str]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    hint: str | None = None


class Error(BaseModel):
    """The body of every answer other than 200."""

    error: ErrorBody
