import torch

from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.model.head import VocabularyHead

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
COMPLETIONS = [[20, 21, 22], [23], [24, 25, 26, 27, 0]]


def test_hidden_states_give_the_logits_that_predict_each_completion_token(tiny):
    positions = LossPositions.of(COMPLETIONS)
    hidden = completion_hidden_states(tiny.model, PROMPTS, COMPLETIONS, positions)
    logits = VocabularyHead.of(tiny.model).logits(hidden)
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        alone = tiny.model(torch.tensor([prompt + completion])).logits[0]
        expected.append(alone[len(prompt) - 1 : -1])
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_masked_tokens_carry_no_loss_but_are_still_read(tiny):
    positions = LossPositions.of(COMPLETIONS, num_masked=2)
    assert positions.tokens.tolist() == [22, 26, 27, 0]
    assert positions.rows.tolist() == [0, 2, 2, 2]
    everything = LossPositions.of(COMPLETIONS)
    kept = everything.offsets >= 2
    full = completion_hidden_states(tiny.model, PROMPTS, COMPLETIONS, everything)
    masked = completion_hidden_states(tiny.model, PROMPTS, COMPLETIONS, positions)
    torch.testing.assert_close(masked, full[kept])


def test_no_position_at_all_gives_an_empty_tensor_with_a_graph(tiny):
    positions = LossPositions.of([[1], [2, 3]], num_masked=3)
    hidden = completion_hidden_states(tiny.model, PROMPTS[:2], [[1], [2, 3]], positions)
    assert hidden.shape == (0, 32)
    assert hidden.requires_grad
    assert len(positions) == 0
    assert positions.num_sequences == 2


def test_rows_of_very_different_lengths_are_read_apart_with_the_same_result(tiny):
    prompts = [[5] * 150, [6, 7], [8] * 140, [9, 10, 11]]
    completions = [[20, 21], [22, 23, 24], [25], [26, 27]]
    positions = LossPositions.of(completions)
    shapes = []
    tiny.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    hidden = completion_hidden_states(tiny.model, prompts, completions, positions)
    assert shapes == [(2, 4), (2, 151)]
    alone = [
        completion_hidden_states(tiny.model, [prompt], [completion], LossPositions.of([completion]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    torch.testing.assert_close(hidden, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_each_completion_may_mask_a_number_of_its_own():
    positions = LossPositions.of(COMPLETIONS, num_masked=[1, 5, 0])
    assert positions.tokens.tolist() == [21, 22, 24, 25, 26, 27, 0]
    assert positions.rows.tolist() == [0, 0, 2, 2, 2, 2, 2]
