"""Data that changed between the start of a run and its resumption."""

import json

import pytest
from pretrained_models import chat_tokenizer
from training.test_loop import run_in

from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.training.run import build_run
from dfpo_jax.training.run_data import digests
from dfpo_jax.training.workdir import open_workdir


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(first, count):
    return [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(first, first + count)]


@pytest.fixture
def config(tmp_path):
    """A run on three files: training, held out, and out of domain."""
    c = default_config()
    c.task.update(name="jsonl", dataset=write(tmp_path / "train.jsonl", sums(0, 40)))
    c.task.parameters = {"held_out": write(tmp_path / "test.jsonl", sums(100, 20))}
    c.out_of_domain.update(name="jsonl", dataset=write(tmp_path / "ood.jsonl", sums(1000, 30)))
    c.out_of_domain.held_out_percent = 50
    c.train.update(prompts=4, samples=2)
    c.evaluation.update(prompts=4, critic_prompts=2)
    c.warm_start.batch_size = 8
    c.mesh.update(data=1, fsdp=1)
    return c


def begin(workdir, config):
    """What a run leaves once it was evaluated; nothing is compiled."""
    run = build_run(parse_config(config))
    open_workdir(workdir, run)
    (workdir / "metrics.jsonl").write_text('{"step": 0}\n')
    (workdir / "before.json").write_text(json.dumps({"prompts": digests(run)}))


def resume(workdir, config):
    open_workdir(workdir, build_run(parse_config(config)), resume=True)


def append_blank(path):
    path.write_text(path.read_text() + "\n")


def change_unused(path):
    """Changes a row that neither evaluation nor the first batch holds: the digest is of all."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [{**rows[0], "note": "new"}, *rows[1:]])


@pytest.mark.parametrize("change", [append_blank, change_unused])
@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("train.jsonl", "task", r"\(task, train data\)"),
        ("test.jsonl", "task", r"\(task, held_out data\)"),
        ("ood.jsonl", "out_of_domain", r"\(out_of_domain, train data\)"),
    ],
)
def test_a_changed_file_is_refused_or_accepted(
    tmp_path, config, caplog, name, section, words, change
):
    workdir = tmp_path / "run"
    begin(workdir, config)
    resume(workdir, config)
    before = {p.name: p.read_bytes() for p in workdir.iterdir()}
    change(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} {words} .*{section}.accept_changed_data=True"):
        resume(workdir, config)
    assert {p.name: p.read_bytes() for p in workdir.iterdir()} == before
    config[section].accept_changed_data = True
    resume(workdir, config)
    assert f"the content of {tmp_path / name}" in caplog.text
    config[section].accept_changed_data = False
    resume(workdir, config)  # what was accepted is the run's data now


def test_other_held_out_prompts_are_accepted_with_their_file(tmp_path, config, caplog):
    workdir = tmp_path / "run"
    begin(workdir, config)
    write(tmp_path / "test.jsonl", sums(200, 20))
    config.task.accept_changed_data = True
    resume(workdir, config)
    assert "the held-out prompts of in_domain; accuracies before and after" in caplog.text
    config.task.accept_changed_data = False
    with pytest.raises(ValueError, match="held-out prompts of in_domain are not those"):
        resume(workdir, config)


@pytest.mark.slow
def test_a_run_ends_on_fewer_held_out_prompts_than_it_began_with(tmp_path, config):
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    config.model.update(d_ff=32, **sizes)
    config.sampling.max_new_tokens = 3
    config.train.iterations, config.log.tensorboard = 1, False
    workdir = tmp_path / "run"
    run_in(workdir, config)
    shown = [i.prompt for i in build_run(parse_config(config)).evaluations["in_domain"].items]
    assert all(prompt in (workdir / "report.html").read_text() for prompt in shown)
    write(tmp_path / "test.jsonl", sums(200, 3))
    config.task.accept_changed_data = True
    config.train.iterations = 2
    config.evaluation.update(critic_prompts=0)
    run_in(workdir, config, resume=True)
    report = (workdir / "report.html").read_text()
    assert not any(prompt in report for prompt in [*shown, "201+201="])


def test_a_copy_elsewhere_is_the_same_data(tmp_path, config):
    workdir = tmp_path / "run"
    begin(workdir, config)
    before = (workdir / "data.json").read_text()
    config.task.dataset = write(tmp_path / "copy.jsonl", sums(0, 40))
    resume(workdir, config)
    assert (workdir / "data.json").read_text() == before


def test_a_run_from_before_there_were_digests_goes_on(tmp_path, config):
    workdir = tmp_path / "run"
    begin(workdir, config)
    (workdir / "data.json").unlink()
    append_blank(tmp_path / "train.jsonl")
    resume(workdir, config)
    assert set(json.loads((workdir / "data.json").read_text())) == {
        "task, train",
        "task, held_out",
        "out_of_domain, train",
    }


def test_prompts_that_change_as_tokens_alone_are_noticed(tmp_path, config, monkeypatch):
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<bos>{{ m['content'] }}<eos>"
        "{% endfor %}{% if add_generation_prompt %}<bos>{% endif %}"
    )
    monkeypatch.setattr(
        "dfpo_jax.training.run.build_tokenizer", lambda config: chat_tokenizer(template)
    )
    config.model.vocab_size = 96
    config.train.prompt_length, config.model.max_positions = 32, 64
    config.task.chat.enabled = True
    workdir = tmp_path / "run"
    begin(workdir, config)
    resume(workdir, config)
    assert json.loads((workdir / "config.json").read_text())["task"]["chat"]["date"]
    config.task.chat.date = "2031-01-02"
    with pytest.raises(ValueError, match=r"prompts of in_domain \(as tokens\) are not those"):
        resume(workdir, config)
