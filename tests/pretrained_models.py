"""A tiny published model, made in process: weights, tokenizer with a chat template, settings."""

import dataclasses
import string

import flax.linen as nn
import jax
from transformers import GenerationConfig

from dfpo_jax.models import TransformerConfig, hf
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.tokenizers import character_tokenizer
from dfpo_jax.training.update import init_policy

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
ALPHABET = string.ascii_letters + string.digits + "+-*/=()., \n<>|_?{}[]':;"
CONFIG = TransformerConfig(96, 16, 1, 2, 1, 8, 32, rope_theta=500.0, max_positions=128)


def chat_tokenizer(template=TEMPLATE):
    """One token per character; `<bos>` and `<eos>` in a template are special tokens."""
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = template
    tokenizer.split_special_tokens = False  # as published tokenizers are
    return tokenizer


def save_tiny(directory, *, eos_ids=(2, 7), seed=0, **fields):
    """Writes the model; returns its configuration and parameters."""
    config = dataclasses.replace(CONFIG, **fields)
    params = nn.unbox(init_policy(Transformer(config), jax.random.key(seed)))
    tokenizer = chat_tokenizer()
    settings = GenerationConfig(
        eos_token_id=list(eos_ids), pad_token_id=0, bos_token_id=1, temperature=0.6, do_sample=True
    )
    hf.save(directory, config, params, tokenizer=tokenizer, generation_config=settings)
    return config, params
