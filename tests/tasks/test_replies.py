"""The end of a turn, thoughts, the clock and odd messages, over chat templates of many kinds."""

from datetime import datetime

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdft.model.chat_template import ChatTemplate, ChatTemplateError
from sdft.model.tiny_model import byte_tokenizer
from sdft.tasks.encoding import Encoder

USER = ({"role": "user", "content": "Capital of Peru?"},)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}"
    "{{ '<|channel|>final' if m['role'] == 'assistant' }}<|message|>{{ m['content'] }}"
    "{{ '<|return|>' if m['role'] == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Qwen3's: thoughts of earlier turns are dropped, the last turn has one, if an empty one.
QWEN3 = (
    "{% for m in messages %}{% set content = m['content'] %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# DeepSeek-R1's: the prompt opens a thought, and thoughts of all turns are dropped.
DEEPSEEK = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}"
    "<|assistant|>{{ m['content'].split('</think>')[-1] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
SPECIAL = {
    "<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
    "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|start|>", "<|channel|>", "<|message|>",
    "<|end|>", "<|return|>",
}  # fmt: skip


def tokenizer_with(template, special=SPECIAL):
    names = sorted(special)
    vocabulary = {name: index for index, name in enumerate(names)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, additional_special_tokens=names
    )
    wrapped.chat_template = template
    return wrapped


def reply(template, text, messages=USER, **options):
    tokenizer = tokenizer_with(template)
    return tokenizer.decode(Encoder(tokenizer, options=options).encode_reply(messages, text))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "Lima<|im_end|>"),
        (GEMMA, "Lima<end_of_turn>"),
        (GLM4, "Lima<|user|>"),
        (GPT_OSS, "<|channel|>final<|message|>Lima<|return|>"),
        (PLAIN, "Lima<eos>"),
        (MISTRAL, " Lima<eos>"),
        (QWEN3, "<think>\n\n</think>\n\nLima<|im_end|>"),
        (DEEPSEEK, "\n</think>\n\nLima<eos>"),
    ],
)
def test_a_reply_is_what_the_template_puts_behind_its_prompt(template, expected):
    assert reply(template, "Lima") == expected
    tokenizer = tokenizer_with(template)
    name = expected[expected.rindex("<") :]
    ids = ChatTemplate(tokenizer).end_ids() | {tokenizer.eos_token_id}
    assert tokenizer.convert_tokens_to_ids(name) in ids


@pytest.mark.parametrize("template", [CHATML, GEMMA, GLM4, GPT_OSS, MISTRAL, QWEN3])
def test_prompt_and_reply_are_the_chat_that_the_template_prints(template):
    tokenizer = tokenizer_with(template)
    encoder = Encoder(tokenizer)
    chat = [*USER, {"role": "assistant", "content": "Lima it is."}]
    whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    ids = encoder.encode_chat(USER) + encoder.encode_reply(USER, "Lima it is.")
    assert ids[: len(whole)] == whole[: len(ids)]
    assert len(ids) >= len(whole) - 1


def test_names_of_special_tokens_in_a_reply_are_text():
    tokenizer = tokenizer_with(CHATML)
    ids = Encoder(tokenizer).encode_reply(USER, "a<|im_end|>b")
    assert tokenizer.decode(ids) == "a<|im_end|>b<|im_end|>"
    assert [token for token in ids if token in tokenizer.all_special_ids] == ids[-1:]


THOUGHT = "<think>Which?</think>\n\nLima"


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (QWEN3, THOUGHT, "<think>\nWhich?\n</think>\n\nLima<|im_end|>"),
        (DEEPSEEK, THOUGHT, "Which?</think>\n\nLima<eos>"),
        (DEEPSEEK, "<think>\nWhich?\n</think>\n\nLima", "Which?\n</think>\n\nLima<eos>"),
        (DEEPSEEK, "Which?\n</think>\n\nLima", "Which?\n</think>\n\nLima<eos>"),
        (CHATML, THOUGHT, THOUGHT + "<|im_end|>"),
    ],
)
def test_a_replys_own_thought_is_learned_once(template, text, expected):
    assert reply(template, text) == expected


def test_variables_reach_the_template():
    assert reply(QWEN3, "Lima", enable_thinking=False) == "Lima<|im_end|>"
    encoder = Encoder(tokenizer_with(QWEN3), options={"enable_thinking": False})
    prompt = tokenizer_with(QWEN3).decode(encoder.encode_chat(USER))
    assert prompt.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("template", [QWEN3, DEEPSEEK])
def test_thoughts_of_demonstrations_reach_the_teacher(template):
    tokenizer = tokenizer_with(template)
    chat = [*USER, {"role": "assistant", "content": THOUGHT}, *USER]
    assert THOUGHT in tokenizer.decode(Encoder(tokenizer).encode_chat(chat, [THOUGHT]))
    assert "Which?" not in tokenizer.decode(Encoder(tokenizer).encode_chat(chat))
    with pytest.raises(ChatTemplateError, match="drops some of this text: '<think>Which"):
        Encoder(tokenizer, thought_marks=()).encode_chat(chat, [THOUGHT])


def test_marks_that_are_special_tokens_stay_tokens_in_replies_alone():
    tokenizer = tokenizer_with(CHATML, SPECIAL | {"[THINK]", "[/THINK]"})
    encoder = Encoder(tokenizer, thought_marks=("[THINK]", "[/THINK]"))
    mark = tokenizer.convert_tokens_to_ids("[/THINK]")
    assert mark in encoder.encode_reply(USER, "[THINK]Which?[/THINK]Lima")
    assert mark not in encoder.encode_chat([{"role": "user", "content": "[/THINK]"}])


def metaspace(template, scheme):
    words = [*sorted(SPECIAL), "<unk>", "\u2581", "\n", "\u2581Lima", "Lima", ":", "\u2581is", "it"]
    words += [chr(code) for code in range(33, 127)]
    vocabulary = [(word, -float(index)) for index, word in enumerate(dict.fromkeys(words))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=words.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=True)
    named = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, additional_special_tokens=sorted(SPECIAL)
    )
    wrapped.chat_template = template
    return wrapped


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("template", [CHATML, GEMMA])
def test_no_space_is_put_before_a_reply_that_the_template_does_not_put_there(template, scheme):
    tokenizer = metaspace(template, scheme)
    assert tokenizer.tokenize("Lima") == ["\u2581Lima"]
    ids = Encoder(tokenizer).encode_reply(USER, "Lima")
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "Lima"
    quoted = Encoder(tokenizer).encode_reply(USER, "it<eos>Lima")
    tokens = tokenizer.convert_ids_to_tokens(quoted)
    assert "\u2581Lima" not in tokens
    assert "".join(tokens[:-1]) == "it<eos>Lima"


DATED = "Today is {{ strftime_now('%d %B %Y, %H:%M') }}. " + CHATML


def test_the_template_is_told_the_clock_of_the_run():
    tokenizer = tokenizer_with(DATED)
    clock = datetime(2024, 2, 29, 13, 5)
    text = tokenizer.decode(Encoder(tokenizer, clock=clock).encode_chat(USER))
    assert text.startswith("Today is 29 February 2024, 13:05. ")


@given(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)),
    st.lists(st.sampled_from(["%d", "%-d", "%B", "%b", "%Y", "%H", "%-I", "%p", "%%", "%j", "%%d",
                              "%A", "%m", "%M", "%S", "%y", " ", "/", "d", "%F", "%T"]))
    .map("".join),
)  # fmt: skip
@settings(deadline=None, max_examples=60, database=None)
def test_any_date_is_told_as_the_clock_says_it(clock, form):
    assume(form.strip())
    tokenizer = tokenizer_with("{{ strftime_now(" + repr(form) + ") }}|" + CHATML)
    text = tokenizer.decode(Encoder(tokenizer, clock=clock).encode_chat(USER))
    assert text.split("|")[0] == clock.strftime(form)


STRICT = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('System role\nnot supported') }}{% endif %}{% endfor %}" + CHATML
)


def test_a_templates_refusal_is_one_line_in_its_own_words():
    chat = [{"role": "system", "content": "Be brief."}, *USER]
    with pytest.raises(
        ChatTemplateError, match=r"^the chat template refuses it: System role not supported$"
    ):
        Encoder(tokenizer_with(STRICT)).encode_chat(chat)


PARTS = [{"type": "text", "text": "Capital "}, {"type": "text", "text": "of <eos> Peru?"}]
PARTS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_parts_tools_and_developers_pass_where_the_template_takes_them():
    tokenizer = tokenizer_with(PARTS_TEMPLATE)
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "Lima", "tool_call_id": "1"},
        *USER,
    ]
    ids = Encoder(tokenizer).encode_chat(chat)
    text = tokenizer.decode(ids)
    for expected in ("developer\nBe brief.", "Capital of <eos> Peru?", "tool\nLima"):
        assert expected in text
    assert tokenizer.eos_token_id not in ids


def test_parts_that_a_template_prints_as_a_list_and_roles_that_it_drops_are_refused():
    with pytest.raises(ChatTemplateError, match="drops some of this text: 'Capital of <eos>"):
        Encoder(tokenizer_with(CHATML)).encode_chat([{"role": "user", "content": PARTS}])
    ignoring = CHATML.replace("%}<|im_start|>{{", "if m['role'] != 'tool' %}<|im_start|>{{", 1)
    chat = [{"role": "tool", "content": "Lima is here"}, *USER]
    with pytest.raises(ChatTemplateError, match="drops some of this text: 'Lima is here'"):
        Encoder(tokenizer_with(ignoring)).encode_chat(chat)


def test_the_tiny_models_tokens_are_what_they_were():
    tokenizer = byte_tokenizer()
    for text in ("Lima", " Lima ", "\n\nLima\n", "<|end|>", "a\ue000b"):
        expected = [*Encoder(tokenizer).encode(text), tokenizer.eos_token_id]
        assert Encoder(tokenizer).encode_reply(USER, text) == expected
