"""Byte-level tokenizers in the shapes that published chat models have."""

import json

import tokenizers
from tokenizers import AddedToken

from dfpo_jax.tokenizers import pretrained_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>"
    "\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<\uff5cUser\uff5c>"
    "{{ m['content'] }}{% elif m['role'] == 'assistant' %}<\uff5cAssistant\uff5c>"
    "{{ m['content'].split('</think>')[-1] }}<\uff5cend\uff5c>{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<\uff5cAssistant\uff5c><think>\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PHI = (  # names its tokens by putting them together
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|' + 'assistant' + '|>' }}\n{% endif %}"
)
GLM = (  # the next turn's token ends an answer
    "[gMASK]{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]


def byte_tokenizer(
    path, template, special=(), plain=(), *, bos=None, eos=None, begins=False, **settings
):
    """A tokenizer read from files; `special` and `plain` are added tokens, ids from 256 on.

    Args:
      path: directory, made here.
      template: chat template.
      special: declared in tokenizer.json as special.
      plain: declared there as ordinary added tokens.
      bos, eos: names in tokenizer_config.json.
      begins: whether texts begin with bos.
      **settings: further keys of tokenizer_config.json.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([AddedToken(x, normalized=False) for x in special])
    model.add_tokens([AddedToken(x, normalized=False) for x in plain])
    if begins:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, model.token_to_id(bos))]
        )
    path.mkdir(exist_ok=True)
    model.save(str(path / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    values |= {"bos_token": bos, "eos_token": eos, **settings}
    values = {name: value for name, value in values.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(values))
    return pretrained_tokenizer(str(path))


def shapes(path):
    """Name to (tokenizer, end of a turn)."""
    chatml = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    llama = ("<|begin_of_text|>", "<|end_of_text|>", *headers)
    users = ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")
    first = {"eos": "<|endoftext|>"}
    decoder = {str(i + 256): {"content": x, "special": True} for i, x in enumerate(chatml)}
    makers = {
        "listed": (CHATML, chatml, (), {**first, "additional_special_tokens": list(chatml)}),
        "extra": (CHATML, chatml[:1], chatml[1:], {**first, "extra_special_tokens": chatml[1:]}),
        "decoder": (CHATML, chatml, (), {**first, "added_tokens_decoder": decoder}),
        "tokenizer.json only": (CHATML, chatml, (), first),
        "added, not special": (CHATML, chatml[:1], chatml[1:], first),
        "Llama 3": (LLAMA3, llama, (), {"bos": llama[0], "eos": llama[1], "begins": True}),
        "R1": (
            R1,
            ("<\uff5cbegin\uff5c>", "<\uff5cend\uff5c>"),
            (*users, "<think>", "</think>"),
            {"bos": "<\uff5cbegin\uff5c>", "eos": "<\uff5cend\uff5c>"},
        ),
        "Qwen3": (QWEN3, chatml, ("<think>", "</think>"), first),
        "Phi": (PHI, ("<|endoftext|>",), (*ROLES, "<|end|>"), first),
        "GLM": (GLM, ("<|endoftext|>", "[gMASK]", *ROLES), (), first),
    }
    ends = {"Llama 3": "<|eot_id|>", "R1": "<\uff5cend\uff5c>", "Phi": "<|end|>", "GLM": ROLES[1]}
    return {
        name: (
            byte_tokenizer(path / name.replace(" ", "_"), template, special, plain, **settings),
            ends.get(name, "<|im_end|>"),
        )
        for name, (template, special, plain, settings) in makers.items()
    }
