"""Settings: declared once, checked by field, offered as options."""

import argparse
from dataclasses import dataclass, field

import pytest

from minigrpo.experiments import TrapConfig
from minigrpo.llm.settings import Settings
from minigrpo.settings import KINDS, add_options, check_choices, check_kinds, declared, given, kind_of, setting
from minigrpo.trainer import Config


@dataclass(frozen=True)
class Walk:
    shoes: str = setting("boots", "on the feet", choices=("boots", "sandals"))
    steps: int = setting(10, "at 100% at least")
    pace: float | None = setting(None, "metres a second")
    uphill: bool = setting(False, "hard")
    map: dict = field(default_factory=dict)  # no option


def parsed(*argv, **filters):
    parser = argparse.ArgumentParser()
    add_options(parser, Walk, **filters)
    return parser.parse_args(argv)


def test_what_was_given_and_nothing_else():
    assert given(parsed(), Walk) == {}
    argv = ("--shoes", "sandals", "--steps", "3", "--pace", "1.5", "--no-uphill")
    assert given(parsed(*argv), Walk) == {"shoes": "sandals", "steps": 3, "pace": 1.5, "uphill": False}


def test_options_can_be_left_out(capsys):
    assert given(parsed("--steps", "3", only=("steps",)), Walk) == {"steps": 3}
    with pytest.raises(SystemExit):
        parsed("--steps", "3", without=("steps",))
    with pytest.raises(SystemExit):
        parsed("--shoes", "heels")
    assert "invalid choice: 'heels'" in capsys.readouterr().err


def test_help_has_text_and_default(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "at 100% at least [10]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"pace": "fast"}, "pace must be a number or None, got 'fast'"),
        ({"uphill": 1}, "uphill must be true or false, got 1"),
        ({"shoes": None}, "shoes must be a text, got None"),
    ],
)
def test_another_kind_is_refused_by_name(wrong, sentence):
    with pytest.raises(ValueError) as error:
        check_kinds(Walk(**wrong))
    assert str(error.value) == sentence


def test_another_choice_is_refused_by_name():
    with pytest.raises(ValueError, match="shoes must be one of boots, sandals, got 'heels'"):
        check_choices(Walk(shoes="heels"))
    check_choices(Walk())


@pytest.mark.parametrize("kind", [Config, TrapConfig, Settings])
def test_every_program_declares_its_settings_so(kind):
    """A line on each field, a kind that is known, and a default among its choices."""
    fields = declared(kind)
    assert len(fields) >= 7
    for own in fields:
        assert own.metadata["help"]
        assert kind_of(own) in KINDS.values()
        assert not own.metadata["choices"] or own.default in own.metadata["choices"]
