"""Likelihoods of the model in memory against those of the harness's own class."""

import copy

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from sdft.evaluation.capabilities.in_memory_lm import InMemoryLM, Subject
from sdft.model.head import VocabularyHead
from sdft.model.tiny_model import byte_tokenizer
from tests.architectures import random_architecture

WINDOW = 64
PAIRS = {
    "plain": [("Q: what", " A"), ("Q: what", " Bcd"), ("zz ", "yes")],
    "empty context": [("", "Hello"), ("", "x")],
    "over-long context": [("abc def " * 12, " answer"), ("abc def " * 12, " B"), ("a" * 64, "b")],
    "just fits": [("a" * 63, "b"), ("a" * 60, "bcde"), ("a" * 60, "bcdef")],
    "text as long as the range": [("ab", "x" * 64), ("ab", "x" * 63)],
    "text that begins as texts begin": [("<|turn|>user", " A"), ("<|turn|>", "B")],
}


def bytes_with_a_start():
    """A tokenizer that puts a token before every text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|turn|>"})
    first = [("<|turn|>", tokenizer.convert_tokens_to_ids("<|turn|>"))]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|turn|> $A", special_tokens=first
    )
    return tokenizer


def ours(model, tokenizer):
    def generate(prompts, settings):
        raise AssertionError("likelihoods need no completions")

    subject = Subject(model, VocabularyHead.of(model), tokenizer, generate)
    return InMemoryLM(subject, batch_size=4)


@pytest.fixture
def short(tiny):
    """A model of 64 positions that has opinions."""
    torch.manual_seed(0)
    with torch.no_grad():
        for each in tiny.model.parameters():
            each.add_(0.2 * torch.randn(each.shape))
    tiny.model.config.max_position_embeddings = WINDOW
    return tiny.model


@pytest.mark.parametrize("tokenizer", [byte_tokenizer, bytes_with_a_start])
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
def test_likelihoods_are_those_of_the_harness_on_its_own_model(short, tokenizer, pairs):
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    theirs = HFLM(pretrained=copy.deepcopy(short), tokenizer=tokenizer(), batch_size=4)
    assert theirs.max_length == WINDOW
    expected = theirs.loglikelihood(requests)
    found = ours(short, tokenizer()).loglikelihood(requests)
    for (own, greedy), (score, likeliest) in zip(found, expected, strict=True):
        assert own == pytest.approx(score, rel=1e-5, abs=1e-5)
        assert greedy == likeliest


@pytest.mark.parametrize("pair", [("ab", "x" * 65), ("", "x" * 70)])
def test_text_longer_than_the_models_range_is_refused_as_by_the_harness(short, pair):
    request = Instance("loglikelihood", {}, pair, 0)
    with pytest.raises(ValueError, match=f"continuation of {len(pair[1])} tokens"):
        ours(short, byte_tokenizer()).loglikelihood([request])
    theirs = HFLM(pretrained=copy.deepcopy(short), tokenizer=byte_tokenizer())
    with pytest.raises(AssertionError):
        theirs.loglikelihood([request])


def test_model_without_a_range_of_positions_is_measured():
    model = random_architecture("bloom")
    found = ours(model, byte_tokenizer())._loglikelihood_tokens([(("", ""), [5, 6], [7, 8])])
    with torch.no_grad():
        logprobs = model(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1)
    assert found[0][0] == pytest.approx(float(logprobs[1, 7] + logprobs[2, 8]), abs=1e-4)
