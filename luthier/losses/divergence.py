"""How far two models' next-token distributions are apart, position by position, over the whole vocabulary.

forward_kl: KL(teacher || student), what Hinton et al. 2015 (arXiv 1503.02531) distil with: the student covers all that
the teacher does. reverse_kl: KL(student || teacher) (MiniLLM, arXiv 2306.08543): the student keeps to what the teacher
is sure of. js: the generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, equation 1),
b KL(teacher || m) + (1 - b) KL(student || m) with m = b teacher + (1 - b) student; 1/2 is the symmetric one.
Both sides are divided by the temperature first; the result is multiplied by its square, so that gradients keep their
size (Hinton et al. 2015, section 2).
Shapes: K positions, V vocabulary. The teacher carries no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _forward_kl(student_KV: Tensor, teacher_KV: Tensor) -> Tensor:
    return (teacher_KV.exp() * (teacher_KV - student_KV)).sum(-1)


def _reverse_kl(student_KV: Tensor, teacher_KV: Tensor) -> Tensor:
    return (student_KV.exp() * (student_KV - teacher_KV)).sum(-1)


def _js(student_KV: Tensor, teacher_KV: Tensor, beta: float) -> Tensor:
    middle_KV = torch.logaddexp(student_KV + math.log1p(-beta), teacher_KV + math.log(beta))
    return beta * _forward_kl(middle_KV, teacher_KV) + (1 - beta) * _forward_kl(middle_KV, student_KV)


def divergence(
    name: str, logits_KV: Tensor, teacher_KV: Tensor, temperature: float = 1.0, js_beta: float = 0.5
) -> Tensor:
    """(K,) in nats from the logits of both, at least in float32. name: forward_kl, reverse_kl or js, as above."""
    dtype = torch.promote_types(logits_KV.dtype, torch.float32)
    student = F.log_softmax(logits_KV.to(dtype) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_KV.detach().to(dtype) / temperature, dim=-1)
    if name == "js":
        return _js(student, teacher, js_beta) * temperature**2
    return {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl}[name](student, teacher) * temperature**2
