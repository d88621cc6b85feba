"""tools/metrics_glossary.py: the file it writes, and what it prints; the text has its own tests."""

import types

import metrics_glossary
import pytest


def run(monkeypatch, explain=None):
    monkeypatch.setattr(metrics_glossary.flags, "FLAGS", types.SimpleNamespace(explain=explain))
    metrics_glossary.main()


def test_the_file_is_written(monkeypatch, tmp_path, capsys):
    there = metrics_glossary.FILE.read_bytes()
    monkeypatch.setattr(metrics_glossary, "FILE", tmp_path / "METRICS.md")
    run(monkeypatch)
    assert (tmp_path / "METRICS.md").read_bytes() == there, "run python tools/metrics_glossary.py"
    assert capsys.readouterr().out == f"wrote {tmp_path / 'METRICS.md'}\n"


def test_one_description_is_printed_and_nothing_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(metrics_glossary, "FILE", tmp_path / "METRICS.md")
    run(monkeypatch, "policy/kl_old")
    assert capsys.readouterr().out.startswith("policy/kl_old (Updates)\nKL divergence of the ")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "policy/kl_odl")
    said = capsys.readouterr().err
    assert said.startswith("error: there is no description of a metric 'policy/kl_odl'; the neare")
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())
