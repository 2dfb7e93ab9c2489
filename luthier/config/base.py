"""What every section of the project file is made of: frozen pydantic models that refuse unknown keys."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Base of all sections: unknown key = error, no silent type changes, values never edited after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
