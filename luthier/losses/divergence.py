"""How far two models' next-token distributions are apart, position by position, over the whole vocabulary.

forward_kl: KL(teacher || student), what Hinton et al. 2015 (arXiv 1503.02531) distil with: the student covers all that
the teacher does. reverse_kl: KL(student || teacher) (MiniLLM, arXiv 2306.08543): the student keeps to what the teacher
is sure of. js: the generalised Jensen-Shannon divergence at 1/2 (GKD, arXiv 2306.13649, equation 1).
Both sides are divided by the temperature first; the result is multiplied by its square, so that gradients keep their
size (Hinton et al. 2015, section 2).
Shapes: K positions, V vocabulary. The teacher carries no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_2 = math.log(2.0)


def _forward_kl(student_KV: Tensor, teacher_KV: Tensor) -> Tensor:
    return (teacher_KV.exp() * (teacher_KV - student_KV)).sum(-1)


def _reverse_kl(student_KV: Tensor, teacher_KV: Tensor) -> Tensor:
    return (student_KV.exp() * (student_KV - teacher_KV)).sum(-1)


def _js(student_KV: Tensor, teacher_KV: Tensor) -> Tensor:
    middle_KV = torch.logaddexp(student_KV, teacher_KV) - _LOG_2
    return 0.5 * (_forward_kl(middle_KV, teacher_KV) + _forward_kl(middle_KV, student_KV))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "js": _js,
}


def divergence(name: str, logits_KV: Tensor, teacher_KV: Tensor, temperature: float = 1.0) -> Tensor:
    """(K,) in nats from the logits of both, at least in float32."""
    dtype = torch.promote_types(logits_KV.dtype, torch.float32)
    student = F.log_softmax(logits_KV.to(dtype) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_KV.detach().to(dtype) / temperature, dim=-1)
    return DIVERGENCES[name](student, teacher) * temperature**2
