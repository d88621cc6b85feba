"""Files of published models that are pointers, cut off or no JSON: one line with their name."""

import json
import shutil

import numpy as np
import pytest
from pretrained_models import CONFIG, chat_tokenizer
from safetensors.numpy import load_file, save_file

from dfpo_jax.models import hf, pretrained
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.weights import abstract_params, file_tensors
from dfpo_jax.published_files import read_json
from dfpo_jax.tokenizers import pretrained_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DAMAGES = {
    "pointer": lambda content: POINTER,
    "cut off": lambda content: content[:-30],
    "empty": lambda content: b"",
    "no JSON": lambda content: b"{'model_type': 'llama'}",
    "binary": lambda content: b"\xff\xfe\x00" + content[:50],
}
READERS = {
    "config.json": pretrained.model_config,
    "generation_config.json": pretrained.generation_config,
    "tokenizer.json": pretrained_tokenizer,
    "tokenizer_config.json": pretrained_tokenizer,
    "model.safetensors": pretrained.check,
    "model.safetensors.index.json": pretrained.check,
    "model-00002-of-00002.safetensors": pretrained.check,
}


def write_tensors(directory, config: TransformerConfig):
    """Zeros of the shapes that the configuration asks for."""
    shapes = {name: x for _, _, name, x in file_tensors(config, abstract_params(config))}
    zeros = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
    save_file(zeros, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A directory of a model, without having made any parameters."""
    directory = tmp_path_factory.mktemp("sound")
    hf.to_hf(CONFIG).save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    chat_tokenizer().save_pretrained(directory)
    write_tensors(directory, CONFIG)
    return directory


@pytest.fixture
def model(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


def in_two_files(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i > 4)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: x for n, x in tensors.items() if files[n] == file}, directory / file)
    index = {"weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_sound_directory_is_read(model):
    for name, read in READERS.items():
        if "0000" in name:
            in_two_files(model)
        found = read(str(model))
        assert (found is None) == (read is pretrained.check), name  # a check raises or is silent


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_named_in_one_line(model, name, damage):
    if "0000" in name or "index" in name:
        in_two_files(model)
    path = model / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError) as error:
        READERS[name](str(model))
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert ("git-lfs" in message) == (damage == "pointer")


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "vocab.json"])
def test_other_files_of_a_tokenizer_that_are_pointers(model, name):
    (model / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer"):
        pretrained_tokenizer(str(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "x.json contains a list; it must be a JSON object"),
        (b'{"a": 1', r"x.json is not a JSON file, or is cut off \(7 bytes\)"),
        (b"[" * 10**5, r"x.json is not a JSON file, or is cut off \(100000"),
    ],
)
def test_what_is_no_object_is_named(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json")


def test_a_configuration_that_does_not_fit_names_its_file(model):
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "model_type": "mamba"}))
    with pytest.raises(ValueError, match="config.json: model_type is 'mamba'"):
        pretrained.model_config(str(model))
    (model / "model.safetensors.index.json").write_text("{}")
    (model / "model.safetensors").unlink()
    shutil.copy(model / "tokenizer.json", model / "other.json")
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="index.json has no weight_map"):
        pretrained.check(str(model))


@pytest.mark.parametrize("size", [0, 3, 10, 30, 100, 700, 1500, 3000, 12_000])
def test_a_gguf_file_that_is_cut_off_is_named(tmp_path, size):
    pytest.importorskip("gguf")
    from gguf_files import write_tokenizer

    tokens = [str(number) for number in range(1000)]
    path = write_tokenizer(tmp_path / "x.gguf", tokens, pre="gpt-2", merges=["1 1"])
    content = path.read_bytes()
    assert len(content) > 12_000
    path.write_bytes(content[:size])
    with pytest.raises(
        ValueError, match=rf"x.gguf is not a GGUF file, or is cut off \({size} bytes"
    ):
        pretrained_tokenizer(str(path))
    path.write_bytes(POINTER)
    with pytest.raises(ValueError, match="x.gguf is a git-lfs pointer"):
        pretrained.model_config(str(path))
