"""The example of ranks, as a process by itself."""

import sys

from helpers.example_modules import example

long_context = example("long_context")


def test_long_context_says_its_error_and_its_time(long_context, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["long_context.py", "--tokens", "200", "--repeats", "1"])
    long_context.main()
    lines = capsys.readouterr().out.splitlines()
    assert "1 ranks" in lines[0]
    assert float(lines[1].split()[-2]) < 3
    assert "ms a step" in lines[2]
