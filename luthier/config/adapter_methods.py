"""What every `adapter.method` is, in one table without torch: what the plan, the checks and the docs ask about it.

How a method computes is in adapters/<file>.py; how many numbers it trains, from shapes alone, in plan/trainable.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["low-rank", "weights", "vectors", "prompt", "bottleneck"]


@dataclass(frozen=True)
class MethodFacts:
    """kind: what is trained. peft_type: whose adapter_config.json it writes; None = luthier's own folder.

    mergeable: gives one plain model. per_request: a server may choose it for each request over one base. keeps_base:
    the untouched base is one switch away. starts_as: what the first forward equals. needs_nf4: trains on a base of
    4-bit NormalFloat. source: the paper.
    """

    kind: Kind
    source: str
    peft_type: str | None = "LORA"
    mergeable: bool = True
    per_request: bool = True
    keeps_base: bool = True
    starts_as: str = "the base"
    needs_nf4: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Values of model.dtype that it can train on."""
        if self.needs_nf4:
            return ("nf4",)
        return ("float32",) if self.kind == "weights" else ("float32", "bfloat16", "int8", "nf4", "auto")


WHOLE = ("full", "galore")
"""Methods that train every weight."""
_BEHIND_TOKENS = {"mergeable": False, "starts_as": "the base behind some of its own tokens"}
_EXACT = {"peft_type": None, "per_request": False, "keeps_base": False}

FACTS: dict[str, MethodFacts] = {
    "lora": MethodFacts("low-rank", "arXiv 2106.09685"),
    "rslora": MethodFacts("low-rank", "arXiv 2312.03732"),
    "lora_plus": MethodFacts("low-rank", "arXiv 2402.12354"),
    "lora_fa": MethodFacts("low-rank", "arXiv 2308.03303"),
    "dora": MethodFacts("low-rank", "arXiv 2402.09353"),
    "pissa": MethodFacts("low-rank", "arXiv 2404.02948"),
    "olora": MethodFacts("low-rank", "arXiv 2406.01775"),
    "eva": MethodFacts("low-rank", "arXiv 2410.07170"),
    "loftq": MethodFacts(
        "low-rank", "arXiv 2310.08659", starts_as="the base, up to what 4 bits and the rank lose", needs_nf4=True
    ),
    "vera": MethodFacts("low-rank", "arXiv 2310.11454", peft_type="VERA"),
    "adalora": MethodFacts("low-rank", "arXiv 2303.10512"),
    "longlora": MethodFacts("low-rank", "arXiv 2309.12307", per_request=False, keeps_base=False),
    "qlora": MethodFacts("low-rank", "arXiv 2305.14314", starts_as="the 4-bit base", needs_nf4=True),
    "qdora": MethodFacts("low-rank", "arXiv 2402.09353 on 2305.14314", starts_as="the 4-bit base", needs_nf4=True),
    "ia3": MethodFacts("vectors", "arXiv 2205.05638", peft_type="IA3"),
    "prompt_tuning": MethodFacts("prompt", "arXiv 2104.08691", peft_type="PROMPT_TUNING", **_BEHIND_TOKENS),
    "p_tuning": MethodFacts(
        "prompt", "arXiv 2103.10385", peft_type="P_TUNING", mergeable=False, starts_as="the base behind random rows"
    ),
    "prefix_tuning": MethodFacts("prompt", "arXiv 2101.00190", peft_type="PREFIX_TUNING", **_BEHIND_TOKENS),
    "houlsby": MethodFacts("bottleneck", "arXiv 1902.00751", peft_type=None, mergeable=False),
    "pfeiffer": MethodFacts("bottleneck", "arXiv 2005.00247", peft_type=None, mergeable=False),
    "full": MethodFacts("weights", "every weight", **_EXACT),
    "galore": MethodFacts("weights", "arXiv 2403.03507", **_EXACT),
    "layers": MethodFacts("weights", "the top layers' weights", **_EXACT),
    "head": MethodFacts("weights", "the output head's weights", **_EXACT),
}
"""Every value of adapter.method."""
