"""Losses written naively, for float64 autograd to differentiate: the tests' ground truth."""

import math

import torch
from torch import nn

from sdft.loss.distillation import distillation_loss
from sdft.model.head import VocabularyHead

VARIANTS = (
    ("forward_kl", {}),
    ("forward_kl", {"clip": 0.05}),
    ("reverse_kl", {}),
    ("reverse_kl", {"clip": 0.05}),
    ("jsd", {}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
    ("jsd", {"beta": 0.7, "clip": 0.02}),
    ("sampled_token", {}),
    ("rao_blackwellised", {}),
    ("topk_teacher", {"k": 4}),
    ("topk_teacher", {"k": 4, "tail": False}),
    ("topk_teacher", {"k": 4, "direction": "reverse", "clip": 0.05}),
    ("topk_teacher", {"k": 4, "direction": "jsd", "beta": 0.3}),
    ("topk_student", {"k": 4}),
    ("topk_student", {"k": 4, "tail": False, "direction": "reverse"}),
    ("topk_student", {"k": 4, "tail": False, "direction": "jsd"}),
)


def variant_id(variant):
    name, options = variant
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


def summed_over_allowed(student, teacher, term, clip):
    """Sum over entries of term(p_student, log p_student, p_teacher, log p_teacher)."""
    allowed = student.isfinite() & teacher.isfinite()
    student_log = student.log_softmax(-1)
    teacher_log = teacher.log_softmax(-1)
    zero = torch.zeros_like(student_log)
    student_log = torch.where(allowed, student_log, zero)
    teacher_log = torch.where(allowed, teacher_log, zero)
    terms = term(student_log.exp(), student_log, teacher_log.exp(), teacher_log)
    if clip is not None:
        terms = terms.clamp(max=clip)
    return torch.where(allowed, terms, zero).sum(-1)


def entrywise(direction, beta=0.5, clip=None):
    if direction == "forward" or (direction == "jsd" and beta == 0):
        return lambda s, t: summed_over_allowed(s, t, lambda p, lp, q, lq: q * (lq - lp), clip)
    if direction == "reverse" or (direction == "jsd" and beta == 1):
        return lambda s, t: summed_over_allowed(s, t, lambda p, lp, q, lq: p * (lp - lq), clip)

    def to_mixture(p, lp, q, lq):
        # logaddexp because p and q may both underflow to 0
        log_mixture = torch.logaddexp(lp + math.log(1 - beta), lq + math.log(beta))
        return beta * q * (lq - log_mixture) + (1 - beta) * p * (lp - log_mixture)

    return lambda s, t: summed_over_allowed(s, t, to_mixture, clip)


def top_k(support_of, k=100, tail=True, direction="forward", beta=0.5, clip=None):
    def values(student, teacher):
        ranked = teacher if support_of == "teacher" else student
        support = ranked.detach().topk(k, -1).indices
        rows = []
        for s, t, chosen in zip(student, teacher, support, strict=True):
            if tail:
                others = torch.ones_like(s, dtype=torch.bool)
                others[chosen] = False
                s = torch.cat([s[chosen], s[others].logsumexp(-1, keepdim=True)])
                t = torch.cat([t[chosen], t[others].logsumexp(-1, keepdim=True)])
            else:
                s, t = s[chosen], t[chosen]
            rows.append(entrywise(direction, beta, clip)(s, t))
        return torch.stack(rows)

    return values


def log_ratio(student, teacher, tokens):
    index = tokens[:, None]
    difference = student.log_softmax(-1).gather(-1, index) - teacher.log_softmax(-1).gather(
        -1, index
    )
    return torch.where(difference.isfinite(), difference, torch.zeros_like(difference))[:, 0]


def reference_values(name, options, student, teacher, tokens):
    """The divergence at each position, (N,)."""
    if name == "sampled_token":
        return log_ratio(student, teacher, tokens)
    functions = {
        "forward_kl": lambda **each: entrywise("forward", **each),
        "reverse_kl": lambda **each: entrywise("reverse", **each),
        "rao_blackwellised": lambda **each: entrywise("reverse", **each),
        "jsd": lambda **each: entrywise("jsd", **each),
        "topk_teacher": lambda **each: top_k("teacher", **each),
        "topk_student": lambda **each: top_k("student", **each),
    }
    return functions[name](**options)(student, teacher)


def surrogate(name, options, student, teacher, tokens, weights, sequence_index=None):
    """A scalar whose derivative is the gradient that the divergence promises."""
    values = reference_values(name, options, student, teacher, tokens)
    token_log = student.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    if name == "sampled_token":
        usable = torch.where(token_log.isfinite(), token_log, torch.zeros_like(token_log))
        return (weights * values.detach() * usable).sum()
    if name != "rao_blackwellised" or sequence_index is None:
        return (weights * values).sum()
    total = (weights * values).sum()
    for position in range(len(tokens)):
        for later in range(position + 1, len(tokens)):
            if sequence_index[later] == sequence_index[position]:
                total = total + (weights[later] * values[later]).detach() * token_log[position]
    return total


def reference_gradient(name, options, student, teacher, tokens):
    """Derivative of the summed values by the student's logits, (N, V)."""
    student = student.clone().requires_grad_()
    ones = torch.ones(len(tokens), dtype=student.dtype)
    scalar = surrogate(name, options, student, teacher, tokens, ones)
    return torch.autograd.grad(scalar, student)[0]


ROWS, VOCABULARY, WIDTH, TEACHER_WIDTH = 11, 17, 6, 5
SEQUENCES = torch.tensor([0, 0, 0, 0, 1, 1, 2, 4, 4, 4, 4])
HEADS = ({}, {"multiplier": 0.5}, {"softcap": 1.5}, {"multiplier": 2.0, "softcap": 2.0})


class Case:
    """Random hidden states and heads of a student and a wider-spread teacher."""

    def __init__(self, dtype=torch.float64, bias=True, seed=0, **scaling):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
            self.teacher_hidden = torch.randn(ROWS, TEACHER_WIDTH, dtype=dtype) * 3
            layer = nn.Linear(WIDTH, VOCABULARY, bias, dtype=dtype)
            teacher_layer = nn.Linear(TEACHER_WIDTH, VOCABULARY, bias, dtype=dtype)
            self.tokens = torch.randint(VOCABULARY, (ROWS,))
            self.weights = torch.rand(ROWS, dtype=dtype)
        self.head = VocabularyHead(layer, **scaling)
        self.teacher_head = VocabularyHead(teacher_layer, **scaling)

    def inputs(self):
        return [self.hidden, *self.head.layer.parameters()]

    def loss(self, divergence, **options):
        arguments = {
            "tokens": self.tokens,
            "weights": self.weights,
            "divergence": divergence,
            "sequence_index": SEQUENCES,
        }
        return distillation_loss(
            self.hidden,
            self.head,
            self.teacher_hidden,
            self.teacher_head,
            **(arguments | options),
        )

    def naive(self, name, options, temperature=1.0):
        student = self.head.logits(self.hidden) / temperature
        teacher = self.teacher_head.logits(self.teacher_hidden).detach() / temperature
        return surrogate(name, options, student, teacher, self.tokens, self.weights, SEQUENCES)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


def assert_all_close(found, expected, **tolerances):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances)
