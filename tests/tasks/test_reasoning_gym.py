"""reasoning_gym tasks: splits, exact resume, scores, failing verifiers, error messages."""

import decimal
import logging
import pickle
import random
import sys
import time

import ml_collections
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from dfpo_jax.tasks import TASKS, Item, ReasoningGymTask
from dfpo_jax.tasks import reasoning_gym as reasoning_gym_task
from dfpo_jax.tasks.base import Verdict, is_held_out
from dfpo_jax.tasks.verifier_pool import Pool
from dfpo_jax.tasks.verifiers import VerifierConfig

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 3}
PROMPT = "{metadata[expression]}="


def sums(**kwargs):
    return ReasoningGymTask("chain_sum", SUMS, prompt=PROMPT, **kwargs)


@pytest.fixture
def any_hash_seed(monkeypatch):
    monkeypatch.setattr(reasoning_gym_task, "_HASH_DEPENDENT", frozenset())


def test_registered_by_name():
    task = TASKS["reasoning_gym"]("chain_sum", SUMS)
    assert task.name == "chain_sum"
    assert task.reward_range == (0.0, 1.0)
    assert task.verifier.errors == 0


def test_items_are_entries_of_the_data_set():
    reference = reasoning_gym.create_dataset("chain_sum", seed=0, size=10, **SUMS)
    for item in sums().batch(0, 20):
        entry = reference[item.index]
        assert item.prompt == entry["metadata"]["expression"] + "="
        assert item.answer == entry["answer"]
        left, sign, right = item.prompt.removesuffix("=").split()
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert int(item.answer) == value
    assert ReasoningGymTask("chain_sum", SUMS).batch(0, 1)[0].prompt.startswith("State the final")


def test_batch_is_a_function_of_seed_and_step():
    used, fresh = sums(), sums()
    used.batch(0, 64)
    used.items(16)
    used.score(used.batch(3, 1)[0], "junk")
    assert used.batch(5, 32) == fresh.batch(5, 32)
    assert used.batch(5, 32) == used.batch(5, 32)
    assert used.batch(5, 8) == used.batch(5, 32)[:8]
    prompts = [item.prompt for item in used.batch(5, 32)]
    assert prompts != [item.prompt for item in used.batch(6, 32)]
    assert prompts != [item.prompt for item in sums(seed=1).batch(5, 32)]


def test_evaluation_items_are_fixed_and_distinct():
    parameters = {**SUMS, "max_digits": 1}
    task = ReasoningGymTask("chain_sum", parameters, prompt=PROMPT, held_out_percent=50)
    items = task.items(80)  # of about 100 that exist
    assert len({item.prompt for item in items}) == 80
    task.batch(0, 4)
    assert task.items(80) == items
    assert task.items(20) == items[:20]


def test_splits_never_share_a_prompt():
    parameters = {**SUMS, "max_digits": 1}  # 200 prompts: any leak would show

    def prompts(split, seed):
        task = ReasoningGymTask(
            "chain_sum", parameters, prompt=PROMPT, split=split, seed=seed, held_out_percent=20
        )
        drawn = [item.prompt for step in range(5) for item in task.batch(step, 100)]
        return set(drawn) | {item.prompt for item in task.items(10)}

    train = prompts("train", 0) | prompts("train", 1)
    held_out = prompts("held_out", 0) | prompts("held_out", 2)
    assert not train & held_out
    assert len(train | held_out) > 180
    assert 20 <= len(held_out) <= 60


def test_split_membership_is_pinned():
    # A change here would move prompts between the splits of finished runs.
    assert [i for i in range(40) if is_held_out(f"{i} + {i}=", 10)] == [0, 6, 21, 24]
    assert not any(is_held_out(str(i), 0) for i in range(1000))
    assert all(is_held_out(str(i), 100) for i in range(1000))


def test_held_out_share():
    train = sums()
    share = sum(is_held_out(f"{i} + 1=", 10) for i in range(10_000)) / 10_000
    assert 0.085 < share < 0.115
    assert not any(is_held_out(item.prompt, 10) for item in train.batch(0, 100))


def test_scores():
    task = sums()
    item = next(item for item in task.batch(0, 100) if len(item.answer) == 2)
    for right in (item.answer, f"  {item.answer}\n", f"0{item.answer}", f"{item.answer}.0"):
        assert task.score(item, right) == 1.0
        assert task.score(item, right) >= task.solved_at
    for wrong in ("", "   ", "junk", "-", str(int(item.answer) + 1)):
        assert task.score(item, wrong) == 0.0
        assert task.score(item, wrong) < task.solved_at
    assert isinstance(task.score(item, item.answer), float)
    # reasoning_gym's own part credit: length of the answer over length of the response.
    assert task.score(item, f"x{item.answer}y") == 0.5
    assert task.verifier.errors == 0


def test_space_around_a_response_does_not_count():
    # The scorer of this data set compares strings, spaces included.
    task = ReasoningGymTask("count_bits", {})
    item = task.items(1)[0]
    assert task.score(item, f" {item.answer}\n") == 1.0
    assert task._dataset.score_answer(f" {item.answer}\n", item.payload) < 1.0


def test_solved_at():
    task = sums(solved_at=0.5)
    item = next(item for item in task.batch(0, 100) if len(item.answer) == 2)
    assert task.score(item, f"x{item.answer}y") >= task.solved_at
    assert sums().score(item, f"x{item.answer}y") < sums().solved_at
    assert task.score(item, f"xx{item.answer}y") < task.solved_at


def test_failing_verifier_is_counted_and_logged_once_per_item(caplog):
    # Its verifier converts the response to integers without care.
    task = ReasoningGymTask("prime_factorization", {})
    first, second = task.items(2)
    with caplog.at_level(logging.WARNING):
        assert task.score(first, "junk") == 0.0
        assert task.score(first, "more junk") == 0.0
    assert task.verifier.errors == 2
    assert len(caplog.records) == 1
    assert repr(first.prompt) in caplog.text and "'junk'" in caplog.text
    with caplog.at_level(logging.WARNING):
        task.score(second, "junk")
    assert task.verifier.errors == 3
    assert len(caplog.records) == 2
    assert task.score(first, first.answer) == 1.0
    assert task.verifier.errors == 3


@pytest.mark.slow
def test_what_verifiers_make_of_model_text_stays_in_their_processes():
    # The first two pass the response to eval, the third to sympy.
    for dataset, response, status in (
        ("binary_matrix", "__import__('sys').modules.update(judged_here=1) or [[1]]", "ok"),
        ("n_queens", "exit()", "error"),
        ("countdown", "9**9**9", "timeout"),
    ):
        task = ReasoningGymTask(dataset, {}, verifier=VerifierConfig(workers=1, timeout=3.0))
        item = next(i for i in task.items(20) if i.answer)
        wrong, right = task.judge([item, item], [response, item.answer])
        assert wrong.status == status and wrong.reward < 0.1
        assert right == Verdict(1.0)  # neither the process nor the verdict suffered
    assert "judged_here" not in sys.modules


def test_parameters_reach_the_verifier():
    for places, reward in ((2, 1.0), (4, 0.0)):
        parameters = {"min_num_decimal_places": 2, "max_num_decimal_places": places}
        task = ReasoningGymTask("decimal_arithmetic", parameters)
        item = task.items(1)[0]
        assert (
            task.score(item, str(decimal.Decimal(item.answer) + decimal.Decimal("0.01"))) == reward
        )


@pytest.mark.slow
def test_every_data_set_is_judged_in_a_process_as_it_judges_itself():
    pool, refused, credulous = Pool("reasoning_gym", 2), [], set()
    for name in sorted(DATASETS):
        try:
            parameters = {"seed": 0, "size": 3}
            dataset = reasoning_gym.create_dataset(name, **parameters)
        except AssertionError:
            refused.append(name)
            continue
        entries = [dataset[0], dataset[2]]
        answers = [str(entry["answer"]) for entry in entries]
        settings = pickle.dumps((name, parameters))
        requests = list(zip([*answers, "0 0"], [*answers, ""], [*entries, entries[0]], strict=True))
        for (status, value), (response, _, entry) in zip(
            pool.run(requests, 20.0, settings), requests, strict=True
        ):
            try:
                expected = "ok", float(dataset.score_answer(response.strip(), entry=entry))
            except Exception as error:
                expected = "error", f"{type(error).__name__}: {error}"
            if expected == ("ok", 1.0) and response == "0 0":
                credulous.add(name)  # gives its full score to any text where the answer is False
                expected = "ok", 0.0
            assert (name, status, value) == (name, *expected)
    assert refused == ["composite"]  # needs parameters
    assert credulous == {"game_of_life_halting"}


def test_what_a_policy_could_live_on_scores_nothing():
    pool = Pool("reasoning_gym", 1)
    for name in ("complex_arithmetic", "game_of_life_halting"):
        parameters = {"seed": 0, "size": 12}
        dataset = reasoning_gym.create_dataset(name, **parameters)
        entries = [dataset[index] for index in range(12)]
        for response in ("nan", "inf", "banana", "?", " NaN "):
            requests = [(response, str(entry["answer"]), entry) for entry in entries]
            settings = pickle.dumps((name, parameters))
            assert {r for r in pool.run(requests, 20.0, settings)} == {("ok", 0.0)}
        requests = [(str(e["answer"]).upper(), str(e["answer"]), e) for e in entries]
        if name == "game_of_life_halting":
            assert {r for r in pool.run(requests, 20.0, settings)} == {("ok", 1.0)}
            assert {str(entry["answer"]) for entry in entries} == {"True", "False"}


def test_judging_is_quick():
    task = ReasoningGymTask("spell_backward", {})
    items, seconds = task.batch(0, 1024), []
    for _ in range(6):
        begun = time.monotonic()
        assert {verdict.status for verdict in task.judge(items, [i.answer for i in items])} == {
            "ok"
        }
        seconds.append(time.monotonic() - begun)
    assert min(seconds) < 0.25


def test_item_without_reference_answer():
    item = ReasoningGymTask("graph_color", {}).items(1)[0]
    assert item.answer == ""
    assert isinstance(item, Item)


@pytest.mark.usefixtures("any_hash_seed")
@pytest.mark.parametrize("dataset", ["list_functions", "gsm_symbolic", "word_ladder"])
def test_data_sets_that_prepare_every_entry(dataset):
    items = ReasoningGymTask(dataset, {}).batch(0, 4)
    assert len({item.prompt for item in items}) > 1


def test_entries_that_the_global_generator_decides_are_fixed_too():
    task = ReasoningGymTask("list_functions", {})
    random.seed(7)
    items, after = task.batch(0, 60), random.random()
    assert task.batch(0, 60) == items
    random.seed(7)
    assert random.random() == after


@pytest.mark.usefixtures("any_hash_seed")
def test_refused_index_leaves_no_trace(monkeypatch):
    task = ReasoningGymTask("word_ladder", {"size": 500})
    expected = [item.prompt for item in task.batch(1, 8)]
    generate = type(task._dataset)._generate_word_pair
    failures = iter([True] * 3)

    def sometimes(self, rng, length):
        if next(failures, False):
            raise RuntimeError("no pair")
        return generate(self, rng, length)

    monkeypatch.setattr(type(task._dataset), "_generate_word_pair", sometimes)
    assert len(task.batch(0, 8)) == 8
    assert next(failures, None) is None
    assert [item.prompt for item in task.batch(1, 8)] == expected


def test_config_dict_parameters():
    config = ml_collections.ConfigDict(SUMS)
    for parameters in (config, ml_collections.FrozenConfigDict(SUMS)):
        task = ReasoningGymTask("chain_sum", parameters, prompt=PROMPT)
        assert task.batch(0, 4) == sums().batch(0, 4)


def test_large_batch_is_quick():
    task = sums()
    seconds = []
    for step in range(5):
        start = time.process_time()
        task.batch(step, 512)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.03


def test_exhausted_split():
    parameters = {**SUMS, "min_terms": 1, "max_terms": 1, "max_digits": 1}  # ten prompts
    for split in ("train", "held_out"):
        task = ReasoningGymTask("chain_sum", parameters, prompt=PROMPT, split=split)
        with pytest.raises(ValueError, match=rf"of 11 distinct prompts of chain_sum.*'{split}'"):
            task.items(11)


def test_empty_split():
    def one_entry(**kwargs):
        return ReasoningGymTask("chain_sum", {**SUMS, "size": 1}, prompt=PROMPT, **kwargs)

    only = one_entry(held_out_percent=0).batch(0, 1)[0].prompt
    splits = ("train", "held_out") if is_held_out(only, 10) else ("held_out", "train")
    with pytest.raises(ValueError, match=f"found 0 of 3 prompts of chain_sum.*'{splits[0]}'"):
        one_entry(split=splits[0]).batch(0, 3)
    assert [item.prompt for item in one_entry(split=splits[1]).batch(0, 3)] == [only] * 3


def test_no_items():
    assert sums().items(0) == []
    assert sums().batch(0, 0) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataset": "chainsum"}, "dataset='chainsum'.*closest valid names are: chain_sum"),
        ({"parameters": {"min_term": 1}}, "'min_term' is unknown; valid: min_terms.*max_digits"),
        ({"parameters": {"seed": 1}}, "'seed' is unknown"),
        ({"parameters": {"min_terms": 0}}, "min_terms must be positive"),
        ({"parameters": {"min_terms": "2"}}, "'min_terms': '2'"),
        ({"parameters": {"max_terms": None}}, "'max_terms': None"),
        ({"dataset": "composite"}, "Must specify at least one dataset"),
        ({"prompt": "{expression}"}, r"'expression'.*\{metadata\[expression\]\}"),
        ({"prompt": "{metadata[expresion]}"}, r"'expresion'.*\{metadata\[expression\]\}"),
        ({"prompt": "{}"}, "names no field"),
        ({"prompt": "hello"}, "names no field"),
        ({"prompt": "{question"}, "is not a format string"),
        ({"split": "test"}, "split='test' is unknown; valid: held_out, train"),
        ({"held_out_percent": 100}, "held_out_percent=100"),
        ({"held_out_percent": -1}, "held_out_percent=-1"),
        ({"held_out_percent": 0, "split": "held_out"}, "held_out_percent=0"),
        ({"seed": -1}, "seed=-1"),
        ({"solved_at": 0.0}, "solved_at=0.0"),
        ({"solved_at": 1.5}, "solved_at=1.5"),
    ],
)
def test_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGymTask(**{"dataset": "chain_sum", "parameters": {}, **kwargs})


def test_negative_step():
    with pytest.raises(ValueError, match="step=-1"):
        sums().batch(-1, 2)


def test_only_train_split():
    task = sums(held_out_percent=0)
    assert len(task.batch(0, 100)) == 100


def test_without_partial_credit_rewards_are_zero_or_one():
    settings = {"min_word_len": 5, "max_word_len": 5}
    graded = ReasoningGymTask("spell_backward", settings)
    exact = ReasoningGymTask("spell_backward", settings, partial_credit=False)
    item = graded.batch(0, 1)[0]
    close = item.answer[:-1] + "?"
    assert 0.0 < graded.score(item, close) < 1.0
    assert exact.score(item, close) == 0.0
    assert exact.score(item, item.answer) == 1.0
