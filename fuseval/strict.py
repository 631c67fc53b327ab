"""What every part of an experiment file has in common: no unknown keys, no values of another type, plain names."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


class Strict(BaseModel):
    """A part of an experiment file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
