"""Published shapes of tokenizers and templates: tokens of the frame, ends of turns, beginnings."""

import json

import pytest
from chat_tokenizers import CHATML, LLAMA3, byte_tokenizer, shapes

from dfpo_jax.chat import Chat, ChatConfig
from dfpo_jax.control_tokens import ControlTokens
from dfpo_jax.rollout.prompts import prompt_ids, shortened_ids
from dfpo_jax.tasks import Item
from dfpo_jax.tokenizers import beginning, pretrained_tokenizer

NAMES = ["listed", "extra", "decoder", "tokenizer.json only", "added, not special"]
NAMES += ["Llama 3", "R1", "Qwen3", "Phi", "GLM"]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("shapes"))


def user(text):
    return ({"role": "user", "content": text},)


def chat_of(tokenizer, **settings):
    return Chat(tokenizer, ChatConfig(enabled=True, **settings))


def controls(tokenizer, ids):
    names = {t.content for t in tokenizer.added_tokens_decoder.values()}
    return [t for t in tokenizer.convert_ids_to_tokens(ids) if t in names]


def spelled_by(tokenizer):
    """Texts that spell every added token, whole, doubled, joined with others or cut."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values()]
    for name in names:
        yield f"what is {name}?"
        yield name
        yield f"{name[:2]}{name}{name[2:]}"
    yield "".join(names) + " \n".join(reversed(names))
    yield "no|>one <| im_start |> spells <|im_"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_message_spells_stays_text_and_the_frame_stays_tokens(shaped, name):
    tokenizer, _ = shaped[name]
    chat = chat_of(tokenizer)
    frame = controls(tokenizer, chat.encode(user("2+3?")))
    assert len(frame) >= 2
    for text in spelled_by(tokenizer):
        ids = chat.encode(user(text))
        assert controls(tokenizer, ids) == frame, text
        assert tokenizer.decode(ids) == chat.render(user(text))


@pytest.mark.parametrize("name", NAMES)
def test_a_harmless_prompt_is_what_the_tokenizer_makes_of_it(shaped, name):
    tokenizer, _ = shaped[name]
    chat = chat_of(tokenizer)
    talk = (*user(" Hi \n"), {"role": "assistant", "content": "Yes?"}, *user("caf\u00e9 <b>"))
    for messages in (user("2+3?"), talk):
        rendered = chat.render(messages)
        assert chat.encode(messages) == tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_turn_is_found_by_rendering(shaped, name):
    tokenizer, end = shaped[name]
    assert tokenizer.convert_ids_to_tokens(chat_of(tokenizer).turn_end()) == end


def test_a_model_that_would_make_a_control_token_of_letters_is_kept_from_it(tmp_path):
    byte_tokenizer(tmp_path / "t", CHATML, SPECIAL, eos=SPECIAL[0])
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["ignore_merges"] = True  # a piece that is in the vocabulary is that token
    content["model"]["vocab"] |= {name: 256 + i for i, name in enumerate(SPECIAL)}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {**split, "pattern": {"Regex": r"<\|im_end\|>"}},
            {**content["pre_tokenizer"], "use_regex": False},
        ],
    }
    path.write_text(json.dumps(content))
    tokenizer = pretrained_tokenizer(str(tmp_path / "t"))
    spelled = tokenizer.encode("<|im_end|>", add_special_tokens=False, split_special_tokens=True)
    assert spelled == [258]
    ids = chat_of(tokenizer).encode(user("<|im_start|><|im_end|><|im_start|>"))
    assert controls(tokenizer, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert "<|im_start|><|im_end|><|im_start|>" in tokenizer.decode(ids)


def test_blanks_that_are_added_tokens_are_text(tmp_path):
    tokenizer = byte_tokenizer(tmp_path / "t", CHATML, SPECIAL, ("  ", "\n"), eos=SPECIAL[0])
    ids = chat_of(tokenizer).encode(user("a  b"))
    assert ids == tokenizer.encode(chat_of(tokenizer).render(user("a  b")))
    assert tokenizer.convert_tokens_to_ids("  ") in ids
    assert "  " not in ControlTokens(tokenizer, CHATML + "  ").ids


def test_a_raw_prompt_begins_as_the_tokenizer_begins_a_text(shaped):
    for name, first in (("Llama 3", ["<|begin_of_text|>"]), ("Qwen3", []), ("R1", [])):
        tokenizer, _ = shaped[name]
        ids = prompt_ids(tokenizer, None, Item("2+3=", "5"))
        assert ids == tokenizer.encode("2+3=")
        assert controls(tokenizer, ids) == first
    llama, r1 = shaped["Llama 3"][0], shaped["R1"][0]
    item = Item("say <|begin_of_text|>", "")
    assert controls(llama, prompt_ids(llama, None, item)) == ["<|begin_of_text|>"]
    assert prompt_ids(llama, None, Item("2", ""), "nothing") == llama.encode("2")[1:]
    assert prompt_ids(r1, None, Item("2", ""), "bos")[0] == r1.bos_token_id
    with pytest.raises(ValueError, match="begin is 'bos'; the tokenizer has no bos token"):
        beginning(shaped["Qwen3"][0], "bos")
    with pytest.raises(ValueError, match="begin is 'eos'; it must be one of auto, bos, nothing"):
        beginning(llama, "eos")


def test_a_raw_prompt_that_is_cut_keeps_its_beginning(shaped):
    tokenizer, _ = shaped["Llama 3"]
    item = Item("0123456789", "")
    ids = prompt_ids(tokenizer, None, item)
    cut = shortened_ids(tokenizer, None, item, ids, 5)
    assert tokenizer.decode(cut) == "<|begin_of_text|>6789"
    assert shortened_ids(tokenizer, None, item, ids, 1) == [tokenizer.bos_token_id]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_that_is_cut_loses_text_of_its_longest_message(shaped, name):
    tokenizer, _ = shaped[name]
    chat = chat_of(tokenizer, system="Be brief." if name != "GLM" else "")
    long = "".join(f"{i} " for i in range(40)) + "is it <|im_end|>?"
    talk = (*user("Hello."), {"role": "assistant", "content": "Yes?"}, *user(long))
    whole = chat.encode(talk)
    for limit in (len(whole) - 60, len(whole) - 1, len(whole)):
        ids = chat.encode(talk, limit)
        assert min(limit, len(whole)) - 2 <= len(ids) <= limit
        assert controls(tokenizer, ids) == controls(tokenizer, whole)
        kept = tokenizer.decode(ids)
        assert "Hello." in kept and "Yes?" in kept and "is it <|im_end|>?" in kept
    empty = (*user(""), talk[1], *user(""))
    fewest = len(chat.encode(empty))
    assert chat.encode(talk, fewest) == chat.encode(empty)
    with pytest.raises(ValueError, match=f"{fewest} tokens .*; prompt_length is {fewest - 1}"):
        chat.encode(talk, fewest - 1)


# Templates that cannot be used


def test_a_message_that_the_template_drops_is_refused(tmp_path):
    drop = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% elif "
        "m['role'] == 'assistant' %}A: {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer = byte_tokenizer(tmp_path / "t", drop, SPECIAL, eos=SPECIAL[2])
    assert chat_of(tokenizer).render(user("2+3?")) == "USER: 2+3? A:"
    with pytest.raises(ValueError, match="drops the message of role 'system': 'Be brief.'"):
        chat_of(tokenizer, system="Be brief.").render(user("2+3?"))
    own = ({"role": "system", "content": "Own words."}, *user("2+3?"))
    with pytest.raises(ValueError, match="drops the message of role 'system': 'Own words.'"):
        chat_of(tokenizer).encode(own)
    with pytest.raises(ValueError, match="drops the message of role 'tool'"):
        chat_of(tokenizer).encode(({"role": "tool", "content": "7"}, *user("2+3?")))


def test_a_template_without_its_generation_prompt_is_refused(tmp_path):
    without = CHATML.partition("{% if add_generation_prompt")[0]
    tokenizer = byte_tokenizer(tmp_path / "a", without, SPECIAL, eos=SPECIAL[2])
    for call in (lambda c: c.render(user("2+3?")), lambda c: c.check(user("2+3?"), "5")):
        with pytest.raises(ValueError, match="no generation prompt: it writes .*assistant"):
            call(chat_of(tokenizer, check_prefix=False))
    # A template whose prompt ends where the answer begins needs none.
    bare = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    tokenizer = byte_tokenizer(tmp_path / "b", bare, SPECIAL, eos=SPECIAL[2])
    chat_of(tokenizer).check(user("2+3?"), "5")
    assert chat_of(tokenizer).render(user("2+3?")) == "[INST] 2+3? [/INST]"


def test_a_mark_that_the_prompt_holds_already_is_refused(shaped):
    tokenizer, _ = shaped["Qwen3"]
    with pytest.raises(ValueError, match="verifier.after is '</think>'.* chat.thinking to True"):
        chat_of(tokenizer).check_mark("</think>")
    chat_of(tokenizer).check_mark("")
    chat_of(tokenizer, thinking=True).check_mark("</think>")
    chat_of(shaped["R1"][0]).check_mark("</think>")


# Dates


@pytest.mark.parametrize(
    ("source", "day", "text"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "2024-07-26", "26 Jul 2024"),
        (
            "{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A') }}",
            "2031-01-02",
            "2031-01-02|Thur",
        ),
        ("{% set f = '%B ' ~ '%-d, ' %}{{ strftime_now(f ~ '%Y') }}", "2031-01-02", "January 2, 2"),
        ("{{ strftime_now('at 100% %d%%') }}", "2031-01-02", "at 100% 02%"),
        (
            "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}"
            "{% endif %}{{ date_string }}",
            "2031-01-02",
            "02 Jan 2031",
        ),
        ("{% if strftime_now is defined %}{{ strftime_now('%y') }}{% endif %}", "2031-01-02", "31"),
    ],
)
def test_a_template_that_writes_the_date_writes_the_day_it_is_given(tmp_path, source, day, text):
    tokenizer = byte_tokenizer(tmp_path / "t", "\n" + source + CHATML, SPECIAL, eos=SPECIAL[2])
    plain = byte_tokenizer(tmp_path / "p", "\n" + CHATML, SPECIAL, eos=SPECIAL[2])
    rendered = chat_of(tokenizer, date=day).render(user("2+3?"))
    start = chat_of(plain).render(user("2+3?")).partition("<|im_start|>")[0]
    assert rendered.startswith(start + text)
    assert rendered.endswith(chat_of(plain).render(user("2+3?"))[len(start) :])


def test_the_day_is_the_same_every_day_and_a_day(tmp_path):
    tokenizer = byte_tokenizer(
        tmp_path / "t",
        "{{ strftime_now('%d %b %Y') }}" + LLAMA3,
        SPECIAL,
        bos=SPECIAL[0],
        eos=SPECIAL[2],
    )
    assert chat_of(tokenizer).render(user("?")).startswith("26 Jul 2024")
    for wrong in ("", "today", "2024-13-01", "26 Jul 2024"):
        with pytest.raises(ValueError, match=f"date is '{wrong}'; it must be a day, YYYY-MM-DD"):
            ChatConfig(date=wrong)
