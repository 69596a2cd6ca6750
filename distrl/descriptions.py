"""Dataclasses as files tell of them, and back: every value is of its field's type, nothing is missing and nothing foreign."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]  # of an axis
Dtype = Annotated[str, Field(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))$")]
# Of a dataclass that is read: what has no field is refused.
STRICT = {"extra": "forbid"}


def from_json(kind: type[T], data: Any) -> T:
    """The dataclass `kind` of what JSON holds of it. Raises ValueError, with the field and the rule, where it cannot be one."""
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
        return adapter.validate_json(json.dumps(data, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{kind.__name__} {where}: {first['msg']}") from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
