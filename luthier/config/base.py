"""What every section of the project file is made of: frozen pydantic models that refuse unknown keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**62)]
"""Of a random generator: numpy's takes none below 0, torch's none beyond 64 bits, and runs count on from it."""


class Spec(BaseModel):
    """Base of all sections: unknown key = error, no silent type changes, values never edited after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
