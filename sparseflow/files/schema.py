"""The JSON that says what a sparse safetensors file holds: its fields, its one spelling, its sha256.

It is the value of the only entry "sparseflow" in the file's metadata. Keys are sorted and the text is ASCII
without blanks, so that equal content has equal bytes; a text in any other spelling is refused.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter, ValidationError

from sparseflow.files.validate import MAX_DIMS, MAX_ELEMENTS, Place, Rule

KEY = "sparseflow"
VERSION = "sparseflow.v1"

_Count = Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_JsonObject = dict[str, JsonValue]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Stored(_Strict):
    """One tensor as it lies in the file; the sha256 is of its bytes."""

    dtype: str
    shape: list[_Count]
    sha256: _Sha256


class Masked(_Strict):
    """One masked tensor.

    `encoding` says how its mask is stored; "zeros": not at all, the zeros of the tensor tell it.
    `nnz` counts the kept weights, `kept_zeros` those of them that are equal to 0.0.
    """

    encoding: Literal["bitmask", "csr", "zeros"]
    shape: Annotated[list[_Count], Field(min_length=1, max_length=MAX_DIMS)]
    nnz: _Count
    kept_zeros: _Count


class _Content(_Strict):
    version: Literal["sparseflow.v1"] = "sparseflow.v1"
    format: Literal["dense", "compact"]
    stored: dict[str, Stored]
    masked: dict[str, Masked]


class TicketContent(_Content):
    kind: Literal["ticket"] = "ticket"
    plan: _JsonObject | None
    provenance: _JsonObject


class WeightsContent(_Content):
    kind: Literal["weights"] = "weights"
    metadata: _JsonObject


Content = TicketContent | WeightsContent

_CONTENT: TypeAdapter[Content] = TypeAdapter(Annotated[Content, Field(discriminator="kind")])
_JSON_OBJECT: TypeAdapter[_JsonObject] = TypeAdapter(_JsonObject, config=ConfigDict(strict=True, allow_inf_nan=False))


def json_object(what: str, value: dict[str, object]) -> dict[str, JsonValue]:
    """Returns `value` if it is JSON that comes back as it went in; else ValueError that names `what`."""
    try:
        return _JSON_OBJECT.validate_python(value)
    except ValidationError as error:
        types = "dict with str keys, list, str, int, finite float, bool, None"
        raise ValueError(f"expected {what} of plain JSON ({types}), got {_first_fault(error)}") from error


def content_to_text(content: Content) -> str:
    """Returns the JSON, with the sha256 over itself without that field."""
    fields = content.model_dump()
    return _canonical({**fields, "sha256": _sha256(fields)})


def content_from_text(text: str, place: Place) -> Content:
    """Returns what `content_to_text` wrote; SparseFormatError for any other text."""
    try:
        fields = json.loads(text)
        spelt_alike = _canonical(fields) == text
    except (ValueError, RecursionError) as error:
        place.fail(Rule.METADATA_JSON, f"expected JSON, got {error}")
    if not isinstance(fields, dict) or not spelt_alike:
        place.fail(Rule.METADATA_JSON, "expected a JSON object with sorted keys, without blanks and doubled keys")
    recorded = fields.pop("sha256", None)
    place.expect(Rule.METADATA_SHA256, "a sha256 of the metadata of", _sha256(fields), recorded)
    try:
        return _CONTENT.validate_python(fields)
    except ValidationError as error:
        place.fail(Rule.METADATA_SCHEMA, _first_fault(error))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(fields: dict[str, object]) -> str:
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{first['msg']} at {where!r}"
