"""Runs from published files: what ends responses, how prompts begin and are cut."""

import json

import pytest
from chat_tokenizers import CHATML, LLAMA3, QWEN3, byte_tokenizer
from pretrained_models import CONFIG

from dfpo_jax.models import hf
from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.training.run import build_run

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258


def model(path, template=CHATML, eos=SPECIAL[0], generation=None, begins=False, **declared):
    """A published model without its weights."""
    byte_tokenizer(path, template, SPECIAL, eos=eos, bos=SPECIAL[1], begins=begins)
    config = hf.to_hf(CONFIG).to_dict()
    config |= {"vocab_size": 259, "eos_token_id": None, **declared}
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def build(source, *, chat=True, question="What is 2+3?", **task):
    rows = [{"question": f"{i} {question}", "answer": "5"} for i in range(40)]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = default_config()
    c.weights.source, c.tokenizer.name, c.model.max_positions = str(source), "weights", 128
    c.task.update(name="jsonl", dataset=str(source / "rows.jsonl"), held_out_percent=30)
    c.task.chat.enabled = chat
    c.task.update(**task)
    c.train.update(prompts=4, samples=2, prompt_length=64)
    c.evaluation.update(prompts=4, critic_prompts=2, out_of_domain=False)
    c.warm_start.batch_size = 8
    c.mesh.update(data=1, fsdp=1)
    return c


def built(config):
    return build_run(parse_config(config), training=False)


@pytest.mark.parametrize(
    ("eos", "generation", "declared", "chat", "ends"),
    [
        (SPECIAL[0], {"eos_token_id": 256}, 256, True, (258, 256)),
        (SPECIAL[2], {"eos_token_id": [258, 256]}, 258, True, (258, 256)),
        (SPECIAL[2], None, [258, 256], True, (258, 256)),
        (SPECIAL[0], {"eos_token_id": 256}, 256, False, (256,)),
        (SPECIAL[2], {"temperature": 0.6, "do_sample": True}, [256, 257], True, (258, 256, 257)),
        (SPECIAL[2], None, None, True, (258,)),
        (SPECIAL[0], {"eos_token_id": -1}, -1, False, (256,)),
    ],
)
def test_responses_end_at_what_template_tokenizer_and_model_say(
    tmp_path, eos, generation, declared, chat, ends
):
    source = model(tmp_path / "m", eos=eos, generation=generation, eos_token_id=declared)
    assert built(build(source, chat=chat)).sampler.eos_ids == ends


def test_raw_prompts_begin_as_the_setting_says(tmp_path):
    source = model(tmp_path / "m", LLAMA3, begins=True)
    for begin, first in (("auto", True), ("bos", True), ("nothing", False)):
        config = build(source, chat=False)
        config.tokenizer.begin = begin
        run = built(config)
        items = run.train_task.items(2)
        tokens, mask = run.sampler.prompts(items)
        row = tokens[0][mask[0] > 0]
        assert (row[0] == 257) == first
        assert run.tokenizer.decode(row[first:]) == items[0].prompt
    config.tokenizer.begin = "eos"
    with pytest.raises(ValueError, match="config.tokenizer.begin is 'eos'; it must be one of"):
        built(config)


def test_a_conversation_that_is_too_long_loses_text_and_no_frame(tmp_path):
    config = build(model(tmp_path / "m"), question="word " * 40 + "?", overlong="truncate")
    config.task.chat.system = "Be brief."
    config.train.prompt_length = 100
    run = built(config)
    tokens, mask = run.sampler.prompts(run.train_task.batch(0, 2))
    text = run.tokenizer.decode(tokens[0][mask[0] > 0])
    assert mask[0].sum() <= 100 < len(run.sampler.encode(run.train_task.batch(0, 1)[0]))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("word word ?<|im_end|>\n<|im_start|>assistant\n")
    config.train.prompt_length = 20
    with pytest.raises(ValueError, match="around an empty prompt; prompt_length is 20"):
        built(config)


def test_a_verifier_that_reads_behind_what_the_prompt_writes_is_refused(tmp_path):
    config = build(model(tmp_path / "m", QWEN3))
    config.task.verifier.after = "</think>"
    with pytest.raises(ValueError, match="verifier.after is '</think>', which the chat template"):
        built(config)
    config.task.chat.update(thinking=True, check_prefix=False)
    built(config)
