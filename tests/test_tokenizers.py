"""Character tokenizer, strict encoding, padding."""

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dfpo_jax import tokenizers

ALPHABET = "0123456789+-= \n\t.,'<eos>é∑".replace("e", "", 1) + "e"


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_one_token_per_character_and_exact_decoding(pad_is_eos):
    tokenizer = tokenizers.character_tokenizer(ALPHABET, pad_is_eos=pad_is_eos)
    text = " 12 + 3 =\n\n  s , .'é∑\t 9 . "
    ids = tokenizers.encode(tokenizer, text)
    specials = 3 if pad_is_eos else 4
    assert ids == [specials + ALPHABET.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert len(tokenizer) == specials + len(ALPHABET)


def test_special_ids():
    apart = tokenizers.character_tokenizer("ab")
    ids = [apart.pad_token_id, apart.bos_token_id, apart.eos_token_id, apart.unk_token_id]
    assert ids == [0, 1, 2, 3]
    shared = tokenizers.character_tokenizer("ab", pad_is_eos=True)
    assert shared.pad_token_id == shared.eos_token_id
    assert len(shared) == len(apart) - 1
    assert len({shared.eos_token_id, shared.bos_token_id, shared.unk_token_id}) == 3


def test_spelled_out_special_token_stays_text():
    tokenizer = tokenizers.character_tokenizer(ALPHABET)
    ids = tokenizers.encode(tokenizer, "<eos>")
    assert len(ids) == 5
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<eos>"


def test_empty_text():
    tokenizer = tokenizers.character_tokenizer("ab")
    assert tokenizers.encode(tokenizer, "") == []
    assert tokenizer.decode([]) == ""


def byte_level_tokenizer():
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")


def test_ids_without_a_token_stay_visible():
    for tokenizer in (tokenizers.character_tokenizer("12 é"), byte_level_tokenizer()):
        ids, eos = tokenizer.encode("1 é2"), tokenizer.eos_token_id
        assert tokenizers.decode(tokenizer, np.array([*ids, eos])) == "1 é2<eos>"
        row = np.array([len(tokenizer), *ids, 10**6, 10**6, eos])
        assert tokenizers.decode(tokenizer, row) == "\ufffd1 é2\ufffd\ufffd<eos>"
        assert tokenizers.decode(tokenizer, row[:0]) == ""
        rows = [row[:0], row, np.array(ids), row[:1], row[:0]]
        texts = ["", "\ufffd1 é2\ufffd\ufffd<eos>", "1 é2", "\ufffd", ""]
        assert tokenizers.decode_all(tokenizer, rows) == texts
        assert tokenizers.decode_all(tokenizer, []) == []


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_unknown_character_is_named(pad_is_eos):
    tokenizer = tokenizers.character_tokenizer("0123", pad_is_eos=pad_is_eos)
    with pytest.raises(ValueError, match=r"'x' at position 2 of '01x3'"):
        tokenizers.encode(tokenizer, "01x3")


@pytest.mark.parametrize(
    ("alphabet", "message"), [("", "empty"), ("abca", r"repeats \['a'\]"), ("\n\n", "repeats")]
)
def test_bad_alphabet(alphabet, message):
    with pytest.raises(ValueError, match=message):
        tokenizers.character_tokenizer(alphabet)


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize(
    "loader", [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast]
)
def test_saved_tokenizer_is_the_same(tmp_path, loader, pad_is_eos):
    tokenizer = tokenizers.character_tokenizer(ALPHABET, pad_is_eos=pad_is_eos)
    tokenizer.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    text = "1 + 2 =\n  . , 's é <eos> "
    ids = tokenizers.encode(tokenizer, text)
    assert tokenizers.encode(loaded, text) == ids
    assert loaded.decode(ids) == text
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    with pytest.raises(ValueError, match="'x' at position 0"):
        tokenizers.encode(loaded, "x")


def test_padding_sides_and_masks():
    # The pad id also occurs as a token: the mask must come from lengths.
    sequences = [[5, 6], [], [7, 9, 8]]
    tokens, mask = tokenizers.left_pad(sequences, 3, 9)
    np.testing.assert_array_equal(tokens, [[9, 5, 6], [9, 9, 9], [7, 9, 8]])
    np.testing.assert_array_equal(mask, [[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    assert tokens.dtype == np.int32 and mask.dtype == np.float32
    tokens, mask = tokenizers.right_pad(sequences, 4, 9)
    np.testing.assert_array_equal(tokens, [[5, 6, 9, 9], [9, 9, 9, 9], [7, 9, 8, 9]])
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    assert tokens.dtype == np.int32 and mask.dtype == np.float32


@pytest.mark.parametrize("pad", [tokenizers.left_pad, tokenizers.right_pad])
def test_padding_edges(pad):
    tokens, mask = pad([], 4, 0)
    assert tokens.shape == mask.shape == (0, 4)
    tokens, mask = pad([[]], 0, 0)
    assert tokens.shape == mask.shape == (1, 0)
    with pytest.raises(ValueError, match=r"sequence 1 has 3 tokens.*length=2"):
        pad([[1], [1, 2, 3]], 2, 0)


def test_a_published_tokenizer_without_a_pad_token_pads_with_eos(tmp_path):
    tokenizer = tokenizers.character_tokenizer("ab")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "no_pad")
    found = tokenizers.pretrained_tokenizer(str(tmp_path / "no_pad"))
    assert found.pad_token_id == found.eos_token_id == tokenizer.eos_token_id
    assert tokenizers.encode(found, "ab") == tokenizers.encode(tokenizer, "ab")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no_eos")
    with pytest.raises(ValueError, match="has no eos token"):
        tokenizers.pretrained_tokenizer(str(tmp_path / "no_eos"))
    with pytest.raises(ValueError, match="no tokenizer '.*nowhere'"):
        tokenizers.pretrained_tokenizer(str(tmp_path / "nowhere"))
