import pytest
import torch

from sdft.model.exported_weights import plain_weights
from sdft.model.head import VocabularyHead, final_hidden_states
from sdft.model.lora import LoRA, trained_parameters
from sdft.model.pretrained import load_model
from sdft.model.teacher import Borrowed, OwnAdapters, OwnModel, make_teacher

OF_THE_STUDENT = ("ema", "stage_start", "base", "student")
INPUTS = torch.tensor([[5, 9, 11, 3, 22, 60, 7]])


@pytest.fixture(params=[None, LoRA(r=4)], ids=["full", "lora"])
def student(request):
    """A student whose adapters, where it has some, do something already."""
    model = load_model("tiny-random", lora=request.param).model
    move(model, 0.1, seed=0)
    return model


def move(model, by, seed=1):
    """Change what is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@torch.no_grad()
def answer(model):
    return final_hidden_states(model, input_ids=INPUTS)


@torch.no_grad()
def taught(teacher, student):
    with teacher.scoring(student) as model:
        return final_hidden_states(model, input_ids=INPUTS)


def same(one, other):
    return all(map(torch.equal, one, other))


def test_an_ema_equals_the_float64_ema(student):
    teacher = make_teacher(student, {"kind": "ema", "rate": 0.02})
    expected = [each.detach().double() for each in trained_parameters(student)]
    for step in range(1, 31):
        move(student, 0.1, seed=step)
        teacher.update(student, step)
        expected = [
            0.02 * theirs.detach().double() + 0.98 * own
            for own, theirs in zip(expected, trained_parameters(student), strict=True)
        ]
    for own, reference in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=0, atol=1e-6)


def test_an_ema_moves_every_nth_step_of_the_run(student):
    teacher = make_teacher(student, {"rate": 0.5, "update_every": 3})
    moved = []
    for step in range(1, 8):
        before = weights(teacher)
        move(student, 0.1, seed=step)
        teacher.update(student, step)
        moved.append(not same(before, weights(teacher)))
    assert moved == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("kind", OF_THE_STUDENT)
def test_each_kind_teaches_with_the_weights_it_is_named_after(kind, student):
    teacher = make_teacher(student, {"kind": kind})
    at_start = taught(teacher, student)
    assert kind == "base" or torch.equal(at_start, answer(student))
    move(student, 0.1)
    teacher.start_stage(student)
    stage_start = answer(student)
    move(student, 0.1, seed=2)
    expected = {"base": at_start, "student": answer(student)}.get(kind, stage_start)
    assert torch.equal(taught(teacher, student), expected)
    assert not torch.equal(stage_start, at_start)
    teacher.update(student, 1)
    assert torch.equal(taught(teacher, student), expected) == (kind != "ema")


def test_an_ema_without_reset_continues_across_stages(student):
    teacher = make_teacher(student, {"kind": "ema", "reset_each_stage": False})
    before = weights(teacher)
    move(student, 0.1)
    teacher.start_stage(student)
    assert same(before, weights(teacher))


@pytest.mark.parametrize("kind", OF_THE_STUDENT)
def test_scoring_leaves_the_student_as_it_was(kind, student):
    teacher = make_teacher(student, {"kind": kind})
    student.train()
    move(student, 0.1)
    before, pointers = weights(student), [each.data_ptr() for each in student.parameters()]
    trained = [each.requires_grad for each in student.parameters()]
    taught(teacher, student)
    assert same(before, weights(student))
    assert pointers == [each.data_ptr() for each in student.parameters()]
    assert trained == [each.requires_grad for each in student.parameters()]
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("kind", OF_THE_STUDENT)
def test_scoring_under_autocast_reads_the_teachers_weights_and_spares_the_gradient(kind, student):
    teacher = make_teacher(student, {"kind": kind})
    move(student, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = taught(teacher, student)
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = final_hidden_states(student, input_ids=INPUTS)
        assert torch.equal(taught(teacher, student), expected)
        assert torch.equal(final_hidden_states(student, input_ids=INPUTS), hidden)
        hidden.float().square().sum().backward()
    assert all(each.grad is not None for each in trained_parameters(student))


def test_the_base_teacher_of_adapters_is_the_model_without_them():
    lora = LoRA(r=4)
    student = load_model("tiny-random", lora=lora).model
    base = answer(load_model("tiny-random").model)
    assert torch.equal(answer(student), base)  # adapters start at zero
    teacher = make_teacher(student, {"kind": "base"})
    move(student, 0.1)
    assert torch.equal(taught(teacher, student), base)
    assert not torch.equal(answer(student), base)


def test_only_what_differs_from_the_student_is_held(student):
    adapted = len(trained_parameters(student)) < len(list(student.parameters()))
    copies = OwnAdapters if adapted else OwnModel
    kinds = {"ema": copies, "stage_start": copies, "student": Borrowed}
    kinds["base"] = Borrowed if adapted else OwnModel
    for kind, holder in kinds.items():
        teacher = make_teacher(student, {"kind": kind}).train()
        assert type(teacher) is holder
        expected = 0 if holder is Borrowed else len(trained_parameters(student))
        assert len(list(teacher.parameters())) == expected
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        own = {parameter.data_ptr() for parameter in teacher.parameters()}
        assert own.isdisjoint(parameter.data_ptr() for parameter in student.parameters())


def test_tied_weights_stay_tied_in_the_copy_and_its_head(tiny):
    teacher = make_teacher(tiny.model, {"kind": "ema"})
    embedding = teacher.model.get_input_embeddings().weight
    assert teacher.head(VocabularyHead.of(tiny.model)).weight is embedding


def test_the_ema_of_adapters_is_taken_of_each_factor():
    student = load_model("tiny-random", lora=LoRA(r=2)).model
    teacher = make_teacher(student, {"rate": 0.5})
    move(student, 0.1, seed=3)
    teacher.update(student, 1)
    start = load_model("tiny-random", lora=LoRA(r=2)).model
    for own, old, new in zip(
        teacher.parameters(), trained_parameters(start), trained_parameters(student), strict=True
    ):
        torch.testing.assert_close(own.detach(), ((old + new) / 2).detach())
    with teacher.scoring(student):
        plain = load_model("tiny-random").model
        plain.load_state_dict(plain_weights(student), strict=False)  # the tied head comes once
        inside = answer(plain)
    torch.testing.assert_close(taught(teacher, student), inside, rtol=1e-4, atol=1e-4)


def test_small_updates_are_not_lost_to_rounding(tiny):
    teacher = make_teacher(tiny.model, {"rate": 0.01})
    before = teacher.model.model.layers[0].mlp.up_proj.weight.clone()
    move(tiny.model, 1e-3)
    teacher.update(tiny.model, 1)
    assert (teacher.model.model.layers[0].mlp.up_proj.weight != before).float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rate": 1.5}, r"teacher\.rate is 1\.5; it must lie in \(0, 1\]"),
        ({"rate": 0.0}, r"set teacher\.kind to stage_start or base"),
        ({"update_every": 0}, r"teacher\.update_every is 0"),
        ({"kind": "base", "rate": 0.01}, r"teacher\.rate is 0\.01, but teacher\.kind is base"),
        ({"kind": "stage_start", "reset_each_stage": False}, "only ema has this option"),
        ({"kind": "student", "update_every": 2}, r"leave it out, or set teacher\.kind to ema"),
        ({"kind": "model", "pretrained": "x", "rate": 0.1}, r"teacher\.rate is 0\.1, but"),
        ({"pretrained": "x"}, r"teacher\.pretrained is x, but teacher\.kind is ema: only model"),
        ({"kind": "model"}, r"name the other model with teacher\.pretrained"),
        (
            {"kind": "frozen"},
            "teacher.kind is frozen; it must be one of ema, stage_start, base, stu",
        ),
        ({"speed": 1}, "teacher has no option speed; it has: kind, pretrained, "),
    ],
)
def test_contradictory_options_are_refused(options, complaint, tiny):
    with pytest.raises(ValueError, match=complaint):
        make_teacher(tiny.model, options, tiny.tokenizer)


def test_float16_students_are_refused(tiny):
    with pytest.raises(ValueError, match=r"torch\.float16"):
        make_teacher(tiny.model.half(), {"kind": "ema"})
