"""The tiled losses: equal to naive autograd, whatever the tiles, and never (N, V) large."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdft import tiling
from sdft.head import VocabularyHead
from sdft.losses import make_divergence, reduction_weights
from sdft.objective import cross_entropy_loss, distillation_loss, token_logprobs
from tests.references import VARIANTS, surrogate, variant_id

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


@pytest.mark.parametrize("scaling", HEADS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_loss_and_gradients_equal_naive_autograd(variant, scaling):
    name, options = variant
    case = Case(**scaling)
    result = case.loss(make_divergence(name, **options), tile_rows=4)
    expected = case.naive(name, options)
    assert_all_close(
        gradients(result.loss, case.inputs()),
        gradients(expected, case.inputs()),
        rtol=1e-10,
        atol=1e-13,
    )
    torch.testing.assert_close(result.loss, (result.values * case.weights).sum())
    if name not in ("sampled_token", "rao_blackwellised"):
        torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jsd", "sampled_token", "topk_student"]
)
def test_temperature_divides_both_models_logits(name):
    options = {"k": 4} if name.startswith("topk") else {}
    case = Case(softcap=2.0)
    result = case.loss(make_divergence(name, **options), temperature=2.5)
    expected = case.naive(name, options, temperature=2.5)
    assert_all_close(gradients(result.loss, case.inputs()), gradients(expected, case.inputs()))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_float32_is_close_to_float64(variant):
    name, options = variant
    wide, narrow = Case(), Case()
    narrow.hidden = wide.hidden.detach().float().requires_grad_()
    narrow.teacher_hidden = wide.teacher_hidden.float()
    narrow.head.layer.float()
    narrow.teacher_head.layer.float()
    divergence = make_divergence(name, **options)
    expected = gradients(wide.loss(divergence).loss, wide.inputs())
    found = gradients(narrow.loss(divergence).loss, narrow.inputs())
    assert all(each.dtype == torch.float32 for each in found)
    assert_all_close([each.double() for each in found], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile_rows", [1, 2, 5, ROWS, 100])
@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_tiles_and_blocks_of_any_size_give_the_same(name, tile_rows, monkeypatch):
    case = Case()
    divergence = make_divergence(name)
    whole = case.loss(divergence)
    expected = gradients(whole.loss, case.inputs())
    for blocks_per_tile in (1, 3, 100):
        monkeypatch.setattr(tiling, "BLOCKS_PER_TILE", blocks_per_tile)
        tiled = case.loss(divergence, tile_rows=tile_rows)
        torch.testing.assert_close(tiled.values, whole.values)
        assert_all_close(gradients(tiled.loss, case.inputs()), expected)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk_teacher"])
def test_gradcheck_passes_in_float64(name):
    case = Case(softcap=2.0, multiplier=1.5)
    divergence = make_divergence(name, **({"k": 3} if name.startswith("topk") else {}))

    def loss(*_):
        return case.loss(divergence, tile_rows=4).loss

    assert torch.autograd.gradcheck(loss, case.inputs())


def test_rao_blackwellised_gradient_is_unbiased_for_the_sequence_level_reverse_kl():
    # Three tokens, completions of length 3; hidden states are one-hot in the last token, so the
    # head's weight is the whole policy. Enumerate the completions: the expected gradient must be
    # the gradient of the expected total divergence.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    head, teacher_head = (
        VocabularyHead(nn.Linear(4, 3, False)),
        VocabularyHead(nn.Linear(4, 3, False)),
    )
    head.layer.weight, teacher_head.layer.weight = (
        nn.Parameter(student.detach()),
        nn.Parameter(teacher),
    )
    states = torch.eye(4, dtype=torch.float64)
    kl = make_divergence("reverse_kl")(student.T, teacher.T, torch.zeros(4, dtype=torch.long))
    log_policy = student.T.log_softmax(-1)
    objective, expected = torch.zeros(()).double(), torch.zeros_like(student)
    for completion in itertools.product(range(3), repeat=3):
        visited = [3, *completion[:2]]
        probability = log_policy[visited, list(completion)].sum().exp()
        objective = objective + probability * kl[visited].sum()
        loss = distillation_loss(
            states[visited],
            head,
            states[visited],
            teacher_head,
            tokens=torch.tensor(completion),
            weights=torch.ones(3, dtype=torch.float64),
            divergence=make_divergence("rao_blackwellised"),
            sequence_index=torch.zeros(3, dtype=torch.long),
        ).loss
        (gradient,) = gradients(loss, [head.layer.weight])
        expected += probability.detach() * gradient
    torch.testing.assert_close(expected, gradients(objective, [student])[0])


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_gradients_do_not_depend_on_the_split_into_micro_batches_and_ranks(name, reduction):
    divergence, num_ranks = make_divergence(name), 2
    case = Case()
    whole = case.loss(divergence, weights=reduction_weights(reduction, SEQUENCES, 5))
    expected = gradients(whole.loss, case.inputs())
    total = [torch.zeros_like(each) for each in case.inputs()]
    for first, last in ((0, 1), (1, 4), (4, 5)):
        part = Case()
        chosen = torch.isin(SEQUENCES, torch.arange(first, last))
        part.hidden = case.hidden.detach()[chosen].requires_grad_()
        part.teacher_hidden, part.tokens = case.teacher_hidden[chosen], case.tokens[chosen]
        index = SEQUENCES[chosen] - first
        weights = reduction_weights(reduction, index, 5, num_tokens=ROWS, averaged_over=num_ranks)
        loss = part.loss(divergence, weights=weights, sequence_index=index).loss
        hidden, *head = gradients(loss / num_ranks, part.inputs())
        total[0][chosen] = hidden
        for sum_of_parts, each in zip(total[1:], head, strict=True):
            sum_of_parts += each
    assert_all_close(total, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["forward_kl", "rao_blackwellised"])
def test_no_positions_give_a_zero_attached_to_the_graph(name):
    case = Case()
    model = nn.Linear(3, WIDTH, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.long)
    case.hidden = model(torch.ones(4, 3, dtype=torch.float64))[nothing]
    case.teacher_hidden = case.teacher_hidden[nothing]
    loss = case.loss(
        make_divergence(name), tokens=nothing, weights=torch.zeros(0), sequence_index=nothing
    ).loss
    assert loss == 0
    loss.backward()
    for each in (*model.parameters(), *case.head.layer.parameters()):
        assert each.grad is not None
        assert (each.grad == 0).all()


def test_teacher_receives_no_gradient_even_where_it_shares_the_students_head():
    case = Case()
    case.teacher_hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    case.teacher_head = case.head
    expected = gradients(case.naive("forward_kl", {}), case.inputs())
    loss = case.loss(make_divergence("forward_kl")).loss
    assert_all_close(gradients(loss, case.inputs()), expected)
    case.loss(make_divergence("forward_kl")).loss.backward()
    assert case.teacher_hidden.grad is None


def test_gradient_scales_with_what_comes_in_and_can_be_taken_again():
    case = Case()
    loss = case.loss(make_divergence("forward_kl")).loss
    once = torch.autograd.grad(loss, case.inputs(), retain_graph=True)
    again = torch.autograd.grad(loss * -3, case.inputs(), retain_graph=True)
    assert_all_close(again, [each * -3 for each in once])


def test_values_are_detached_and_no_grad_gives_the_same():
    case = Case()
    result = case.loss(make_divergence("forward_kl"))
    assert result.loss.requires_grad
    assert not result.values.requires_grad
    with torch.no_grad():
        quiet = case.loss(make_divergence("forward_kl"))
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, result.loss.detach(), rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "rao_blackwellised", "topk_student"])
def test_nothing_larger_than_a_tile_lives_beside_the_heads_own_gradient(name, frozen):
    rows, vocabulary, width, tile_rows = 96, 500, 4, 8
    head = VocabularyHead(nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen))
    hidden = torch.randn(rows, width, requires_grad=True)
    with LargestTensor() as largest:
        distillation_loss(
            hidden,
            head,
            torch.randn(rows, width),
            VocabularyHead(nn.Linear(width, vocabulary, bias=False)),
            tokens=torch.randint(vocabulary, (rows,)),
            weights=torch.ones(rows),
            divergence=make_divergence(name, **({"k": 5} if name.startswith("topk") else {})),
            sequence_index=torch.zeros(rows, dtype=torch.long),
            tile_rows=tile_rows,
        ).loss.backward()
    assert largest.numel == tile_rows * vocabulary
    assert (head.weight.grad is None) == frozen


def test_default_tiles_shrink_with_the_vocabulary_down_to_a_floor():
    cpu = torch.device("cpu")
    sizes = [tiling.default_tile_rows(size, cpu) for size in (512, 16_384, 49_152, 262_144)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2:] == [128, 128]
    assert tiling.default_tile_rows(49_152, torch.device("cuda")) > 128


def test_autocast_projects_in_bfloat16_and_diverges_in_float32():
    case = Case(dtype=torch.float32)
    expected = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        result = case.loss(make_divergence("forward_kl"))
        found = gradients(result.loss, case.inputs())
        student = case.head.logits(case.hidden)
        teacher = case.teacher_head.logits(case.teacher_hidden)
    assert student.dtype == torch.bfloat16
    on_model_logits = make_divergence("forward_kl")(student, teacher, case.tokens)
    torch.testing.assert_close(result.values, on_model_logits.detach(), rtol=1e-6, atol=1e-6)
    assert result.loss.dtype == torch.float32
    assert all(each.dtype == torch.float32 for each in found)
    for one, other in zip(found, expected, strict=True):  # bfloat16 keeps 8 bits
        assert (one - other).norm() <= 0.02 * other.norm()


def test_equal_models_have_no_divergence_under_autocast():
    case = Case(dtype=torch.float32)
    case.teacher_hidden, case.teacher_head = case.hidden.detach(), case.head
    with torch.autocast("cpu", torch.bfloat16):
        result = case.loss(make_divergence("forward_kl"))
    assert result.values.abs().max() <= 1e-6


def test_bfloat16_models_are_within_two_percent_of_the_float64_gradient():
    case, rounded = Case(), Case()
    narrow = Case(dtype=torch.bfloat16)
    for name in ("hidden", "teacher_hidden"):
        as_bfloat16 = getattr(case, name).detach().bfloat16()
        setattr(narrow, name, as_bfloat16.requires_grad_(name == "hidden"))
        setattr(rounded, name, as_bfloat16.double().requires_grad_(name == "hidden"))
    for head in ("head", "teacher_head"):
        state = getattr(case, head).layer.bfloat16().state_dict()
        getattr(narrow, head).layer.load_state_dict(state)
        getattr(rounded, head).layer.load_state_dict(state)
    narrow.weights = rounded.weights.float()
    expected = gradients(rounded.loss(make_divergence("reverse_kl")).loss, rounded.inputs())
    found = gradients(narrow.loss(make_divergence("reverse_kl"), tile_rows=4).loss, narrow.inputs())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 0.02 * other.norm()


def test_float16_gradients_do_not_vanish_for_small_weights():
    case = Case(dtype=torch.float32)
    case.weights = torch.full((ROWS,), 1e-9)
    expected = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    with torch.autocast("cpu", torch.float16):
        found = gradients(case.loss(make_divergence("forward_kl")).loss, case.inputs())
    assert_all_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaling", HEADS, ids=str)
def test_cross_entropy_equals_the_library_function(scaling):
    case = Case(**scaling)
    loss = cross_entropy_loss(case.hidden, case.head, case.tokens, case.weights, tile_rows=3)
    surprisal = functional.cross_entropy(
        case.head.logits(case.hidden), case.tokens, reduction="none"
    )
    expected = (surprisal * case.weights).sum()
    torch.testing.assert_close(loss, expected)
    assert_all_close(gradients(loss, case.inputs()), gradients(expected, case.inputs()))
    logprobs = token_logprobs(case.hidden, case.head, case.tokens)
    torch.testing.assert_close(logprobs, -surprisal.detach())
    assert not logprobs.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": torch.zeros(3, dtype=torch.long)},
            r"tokens has shape \(3,\); it needs \(11,\)",
        ),
        ({"weights": torch.ones(2)}, r"weights has shape \(2,\)"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"tile_rows": 0}, "tile_rows is 0"),
        ({"sequence_index": None}, "RaoBlackwellised needs sequence_index"),
        ({"sequence_index": torch.arange(ROWS) % 2}, "returns to a sequence it left"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Case().loss(make_divergence("rao_blackwellised"), **changes)


def test_models_that_do_not_fit_together_are_an_error():
    case = Case()
    case.teacher_hidden = case.teacher_hidden[:3]
    with pytest.raises(ValueError, match="student_hidden has 11 rows, teacher_hidden 3"):
        case.loss(make_divergence("forward_kl"))
    case = Case()
    case.teacher_head = VocabularyHead(nn.Linear(TEACHER_WIDTH, 3))
    with pytest.raises(ValueError, match="student's vocabulary has 17 entries, the teacher's 3"):
        case.loss(make_divergence("forward_kl"))
