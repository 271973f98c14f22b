"""The one runner of all command lines: codes, sentences, and a terminal that lacks letters."""

import argparse
import io

import pytest

from minigrpo.commands import collect, run

ARGUMENTS = argparse.Namespace(command="walk")


def fails(error):
    def call(arguments):
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("steps must be above 0, got -1"), 2, "minigrpo walk: steps must be above 0, got -1\n"),
        (OSError("out/a.json can't be written"), 2, "minigrpo walk: out/a.json can't be written\n"),
        (
            ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot"),
            2,
            "minigrpo walk: the package matplotlib is missing; "
            "pip install 'minigrpo[plots,llm,notebooks]' brings what the commands need\n",
        ),
        (KeyboardInterrupt(), 130, "minigrpo walk: nothing is lost\n"),
    ],
)
def test_an_error_is_one_sentence(capsys, error, code, sentence):
    assert run(ARGUMENTS, fails(error), "minigrpo", "nothing is lost") == code
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("error", [ModuleNotFoundError("gone", name="minigrpo.steps"), ZeroDivisionError("ours")])
def test_a_fault_of_ours_is_not_hidden(error):
    with pytest.raises(type(error)):
        run(ARGUMENTS, fails(error), "minigrpo", "")


def test_the_commands_own_code_is_handed_on():
    assert run(ARGUMENTS, lambda arguments: 1, "minigrpo", "") == 1


def test_a_terminal_without_greek_letters(monkeypatch):
    bytes_written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(bytes_written, encoding="cp1252", write_through=True))
    assert run(ARGUMENTS, lambda arguments: print("|λ| = 2") or 0, "minigrpo", "") == 0
    assert bytes_written.getvalue().split() == [rb"|\u03bb|", b"=", b"2"]


def work(*rows, finished=True, interrupted=False):
    yield from rows
    if interrupted:
        raise KeyboardInterrupt
    return finished


@pytest.mark.parametrize(
    ("options", "whole"), [({}, True), ({"finished": False}, False), ({"interrupted": True}, False)]
)
def test_rows_are_kept_and_it_is_known_whether_they_are_all(options, whole):
    seen = []
    assert collect(work(1, 2, **options), seen.append) == ([1, 2], whole)
    assert seen == [1, 2]


def test_an_interrupt_before_the_first_row_goes_on():
    with pytest.raises(KeyboardInterrupt):
        collect(work(interrupted=True))
    assert collect(work(finished=False)) == ([], False)
