"""A group of options: the base of everything that a configuration file may hold."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Copick replaces these in names, so a name that holds one would not be found again.
NAME_PATTERN = r"^[^<>:\"/\\|?*\s_\x00-\x1f\x7f]+$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of options. Unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in values:
                if key not in known and key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), known, n=1)
                    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
                    raise ValueError(f"unknown key '{key}'; {hint}")
        return values
