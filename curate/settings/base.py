"""What all sections have in common: no unknown keys, and the types of their values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def as_section(value: Any) -> Any:
    """A section with all its lines commented out is a null in YAML."""
    return {} if value is None else value


SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _or_say(message: str) -> WrapValidator:
    """One error for a whole union: pydantic has one for each of its branches."""

    def validated(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            if not isinstance(value, bool):
                return validate(value)
        except ValidationError:
            pass
        raise ValueError(message)

    return WrapValidator(validated)


def absolute(path: str) -> str:
    """Workers may have another working directory than the driver, and its user another yet."""
    unset = path.startswith("${")  # a variable that the settings were stored with
    return path if "://" in path or unset else os.path.abspath(path)


Path = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[Path, AfterValidator(absolute)]
AbsolutePaths = Annotated[list[AbsolutePath], BeforeValidator(as_list), Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Label = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads class 7 as a number
_Count = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_COUNT_OR_FRACTION = "must be a count (0, 1, 2 …) or a fraction of the open set (0.0 to 1.0)"
Budget = Annotated[_Count | _Fraction, _or_say(_COUNT_OR_FRACTION)]
AutoBudget = Annotated[
    _Count | _Fraction | Literal["auto"], _or_say(f"{_COUNT_OR_FRACTION}, or auto")
]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    moved: ClassVar[Mapping[str, str]] = {}  # a key that stood here once → where it is from here
