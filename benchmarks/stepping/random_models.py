"""Random-init models with a word tokenizer; among them one that ends its completions on request.

Real completions have many lengths, and a fair comparison needs the same ones on both sides. A
counting model produces them by itself, without changes to either decoder: the chat template repeats
the prompt's first word at the end of every prompt, a number such as <5>, and the weights are made
so that <4> follows it, then <3>, <2>, <1> and the end token: five tokens in all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, TURN, PAD = "<|end|>", "<|turn|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n"
)
PLAIN_END, COUNTED_END = (
    "{% endif %}",
    "{{ messages[-1]['content'].split()[0] }}{% endif %}",
)
WORDS = ["apple", "bridge", "candle", "engine", "forest", "garden", "harbour", "island", "jacket"]
MAX_COUNT = 256
CERTAINTY = 24.0  # logit of the next number, so that another token is drawn about once in millions


@dataclass(frozen=True)
class Shape:
    """The size of a Llama.

    Args:
        vocab_size: V.
        width: D; the feed-forward layers have four times as much.
        num_layers: Layers.
        tied: Whether the head shares the weights of the embedding.
    """

    vocab_size: int
    width: int
    num_layers: int
    tied: bool = True


def text(length: int, generator: random.Random) -> str:
    """This many words, each of them one token."""
    return " ".join(generator.choices(WORDS, k=length))


def write_random_model(folder: Path, shape: Shape, known_text: str) -> int:
    """Write a model as a transformers directory; return the number of its parameters.

    Args:
        folder: The directory to write.
        shape: Its size; an untied model counts, see above.
        known_text: Text from which its tokenizer learns words, besides its own.
    """
    tokenizer = word_tokenizer(known_text, counts=not shape.tied)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if not shape.tied:
        make_it_count(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def word_tokenizer(known_text: str, *, counts: bool) -> PreTrainedTokenizerFast:
    """Byte-pair encoding in which the known words are single tokens, with a chat template."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END, TURN, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs.train_from_iterator([known_text, " ".join(["", *WORDS]), *WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE + (COUNTED_END if counts else PLAIN_END)
    if counts:
        tokenizer.add_tokens([number(count) for count in range(1, MAX_COUNT + 1)])
    return tokenizer


def number(count: int) -> str:
    """The token that asks for this many more."""
    return f"<{count}>"


@torch.no_grad()
def make_it_count(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set the head to predict, from the embedding of every number, the number below it."""
    ids = tokenizer.convert_tokens_to_ids([number(count) for count in range(1, MAX_COUNT + 1)])
    numbers = torch.tensor(ids)
    below = torch.tensor([tokenizer.eos_token_id, *ids[:-1]])
    embedding = model.get_input_embeddings().weight
    directions = torch.randn(len(ids), embedding.shape[1]).sign()  # of unit scale, as after a norm
    embedding[numbers] = directions
    model.get_output_embeddings().weight[below] = directions * CERTAINTY / embedding.shape[1]
