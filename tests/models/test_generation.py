"""Published generation settings: what is read, from which file, and that they can be written."""

import json

import pytest
from transformers import GenerationConfig

from dfpo_jax.models.generation import made_valid, read_generation_config

LLAMA2 = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_length": 4096,
    "pad_token_id": 0,
    "temperature": 0.9,
    "top_p": 0.6,
    "transformers_version": "4.31.0.dev0",
}
QWEN = {
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}


@pytest.fixture
def read(tmp_path):
    def write_and_read(generation=None, config=None):
        for name, values in (("generation_config.json", generation), ("config.json", config)):
            (tmp_path / name).unlink(missing_ok=True)
            if values is not None:
                (tmp_path / name).write_text(json.dumps(values))
        return read_generation_config(tmp_path)

    return write_and_read


@pytest.mark.parametrize(
    ("generation", "kept", "left_out"),
    [
        (LLAMA2, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}, ()),
        (QWEN, QWEN, ()),
        ({"top_k": 20}, {"do_sample": True, "top_k": 20}, ()),
        ({"do_sample": False, "temperature": 1e-6}, {"do_sample": False}, ("temperature",)),
        ({"do_sample": False, "top_p": 0.5, "min_p": 0.1}, {}, ("top_p", "min_p")),
        ({"temperature": 0.0}, {"do_sample": None}, ("temperature",)),
        ({"length_penalty": 2.0, "early_stopping": True}, {}, ("length_penalty", "early_stopping")),
        ({"num_return_sequences": 3}, {}, ("num_return_sequences",)),
        ({"max_new_tokens": 0, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}, ()),
        ({"cache_implementation": "odd"}, {}, ("cache_implementation",)),
        ({"output_scores": True}, {}, ("output_scores",)),
        ({}, {}, ()),
    ],
)
def test_what_is_published_can_be_written_again(read, tmp_path, generation, kept, left_out):
    found = read({"eos_token_id": 2, **generation})
    found.eos_token_id = [2, 7]  # as a run changes it
    made_valid(found).save_pretrained(tmp_path / "out")
    again = GenerationConfig.from_pretrained(tmp_path / "out")
    assert again.eos_token_id == [2, 7]
    for name, value in kept.items():
        if name != "eos_token_id":
            assert (getattr(again, name) or None) == (value or None), name
    for name in left_out:
        assert getattr(again, name) in (None, getattr(GenerationConfig(), name))


def test_what_is_left_out_is_said(read, caplog):
    made_valid(read({"do_sample": False, "temperature": 0.5}))
    assert "left out: {'temperature': 0.5}" in caplog.text


def test_what_cannot_be_mended_is_refused(read, monkeypatch):
    def refuse(self, strict=False, **_):
        raise ValueError("`do_sample` is odd")

    config = read({"do_sample": True})
    monkeypatch.setattr(GenerationConfig, "validate", refuse)
    with pytest.raises(ValueError, match="do_sample"):
        made_valid(config)


@pytest.mark.parametrize(
    ("generation", "config", "eos"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, 3),
        (None, {"eos_token_id": [4, 5]}, [4, 5]),
        ({"temperature": 0.6, "do_sample": True}, {"eos_token_id": [4, 5]}, [4, 5]),
        ({"eos_token_id": None}, {"eos_token_id": 4}, 4),
        ({"eos_token_id": -1}, {"eos_token_id": 4}, 4),
        ({"eos_token_id": [-1, 6]}, {}, [6]),
        ({"eos_token_id": []}, {}, None),
        (None, None, None),
    ],
)
def test_the_end_of_a_response_is_read_from_wherever_it_stands(read, generation, config, eos):
    assert read(generation, config).eos_token_id == eos


def test_ids_that_mean_none_are_none(read):
    found = read({"pad_token_id": -1, "bos_token_id": 0}, {"pad_token_id": -1})
    assert (found.pad_token_id, found.bos_token_id) == (None, 0)


@pytest.mark.parametrize("value", ["</s>", True, 1.5, ["2"], {"id": 2}])
def test_what_is_no_id_is_named_with_its_file(read, value):
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id is .*id of a tok"):
        read({"eos_token_id": value})
    with pytest.raises(ValueError, match=r"/config.json: eos_token_id is"):
        read({}, {"eos_token_id": value})
