"""What all sections have in common: no unknown keys, and the types of their values."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal

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

from curate.settings.recipes import Option


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(as_list), Field(min_length=1)
]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _count_or_fraction(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error for the whole union: pydantic has one for each of its branches."""
    try:
        if not isinstance(value, bool):
            return validate(value)
    except ValidationError:
        pass
    raise ValueError("must be a count (0, 1, 2 …) or a fraction of the open set (0.0 to 1.0)")


def absolute(path: str) -> str:
    """Workers may have another working directory than the driver, and its user another yet."""
    return path if "://" in path else os.path.abspath(path)


Path = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[Path, AfterValidator(absolute)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Label = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads class 7 as a number
Budget = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)],
    WrapValidator(_count_or_fraction),
]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _epochs(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be a whole number from 1, or auto")
    return value


def _option(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number, or true or false")
    return value


OptionValue = Annotated[Option, BeforeValidator(_option)]
Epochs = Annotated[int | Literal["auto"], BeforeValidator(_epochs)]
