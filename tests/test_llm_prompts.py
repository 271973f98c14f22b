"""Chat templates: a system role or none, a date, what can't be used; and what a run says that it found."""

import dataclasses
import datetime

import pytest

from minigrpo.llm.found import found, found_lines
from minigrpo.llm.models import load_model
from minigrpo.llm.prompts import encode_prompts, fix_date, has_system_role, longest_prompt
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import load_task

USER = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}<assistant>"
EVERY = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}<assistant>"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + USER
ALTERNATING = "{% if messages[0].role != 'user' %}{{ raise_exception('must begin with user') }}{% endif %}" + USER
MERGING = "{% if messages[0].role == 'system' %}<user>{{ messages[0].content }}\n\n{{ messages[1].content }}{% endif %}"


@pytest.fixture
def loaded():
    return load_model("tiny")


def rendered(tokenizer, template, system):
    tokenizer.chat_template = template
    (ids,) = encode_prompts(tokenizer, ["1+1="], system)
    return tokenizer.decode(ids)


@pytest.mark.parametrize("template", [None, USER, REFUSING, ALTERNATING], ids=["tiny", "dropped", "refused", "order"])
def test_a_template_without_a_system_role(loaded, template):
    """The system prompt stands before the user's text, with a blank line between; tiny knows no letters or newlines."""
    template = template or loaded.tokenizer.chat_template
    said = rendered(loaded.tokenizer, template, "2+2=4")
    assert said == loaded.tokenizer.decode(loaded.tokenizer.encode("<user>2+2=4\n\n1+1=<assistant>"))
    assert not has_system_role(loaded.tokenizer)
    assert rendered(loaded.tokenizer, template, None) == "<user>1+1=<assistant>"


@pytest.mark.parametrize("template", [EVERY, MERGING])
def test_a_template_with_a_system_role_is_left_alone(loaded, template):
    loaded.tokenizer.chat_template = template
    assert has_system_role(loaded.tokenizer)
    messages = [{"role": "system", "content": "2+2=4"}, {"role": "user", "content": "1+1="}]
    expected = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompts(loaded.tokenizer, ["1+1="], "2+2=4") == [expected]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('nothing\nat all') }}", "nothing"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[0].content[0].type.name }}", "has no attribute 'type'"),
        ("{{ 1 + messages[0].content }}", "unsupported operand"),
        ({"tool_use": USER}, "no default specified"),
    ],
    ids=["raises", "syntax", "undefined", "type", "no default"],
)
def test_a_template_that_can_t_be_used(loaded, template, words):
    for system in (None, "2+2=4"):
        with pytest.raises(ValueError, match="the chat template of model 'tiny' can't be used: ") as caught:
            rendered(loaded.tokenizer, template, system)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


DAY = datetime.date(2026, 7, 26)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("{{ strftime_now('%d') }}", "26"),
        ("{{ strftime_now ('%j') }}", "207"),
        ('{% set day = strftime_now( "%j" ) if strftime_now is defined else "0" %}{{ day }}', "207"),
        ("{{ strftime_now('%d') }}-{{ strftime_now('%m') }}", "26-07"),
        ("{{ strftime_now('%d') | int + 1 }}", "27"),
    ],
)
def test_a_date_is_kept(loaded, asked, shown):
    template = asked + USER
    loaded.tokenizer.chat_template = template
    assert fix_date(loaded, DAY).template_date == "2026-07-26"
    assert rendered(loaded.tokenizer, loaded.tokenizer.chat_template, None) == f"{shown}<user>1+1=<assistant>"


def test_a_template_without_a_date(loaded):
    before = loaded.tokenizer.chat_template
    assert fix_date(loaded, DAY).template_date is None
    assert loaded.tokenizer.chat_template == before


@pytest.mark.parametrize(
    "asked", ["{% set f = '%d' %}{{ strftime_now(f) }}", "{% set now = strftime_now %}{{ now('%d') }}"]
)
def test_a_date_that_can_t_be_kept(loaded, asked):
    loaded.tokenizer.chat_template = asked + USER
    with pytest.raises(ValueError, match="template of model 'tiny' asks for the date in a way that a run can't keep"):
        fix_date(loaded, DAY)


def test_found_in_plain_lines(loaded):
    task = load_task("arithmetic", train_size=20, heldout_size=20)
    prompts = [*task.train["prompt"], *task.heldout["prompt"]]
    longest = longest_prompt(loaded, task, 24)
    assert longest == max(map(len, prompts)) + 2  # <user> and <assistant>
    lines = found_lines(found(loaded, task, Settings(), longest) | {"updates": "padded, as asked"})
    assert lines == [
        "model: minigrpo/llm/tiny, 0.794 million parameters, cpu, float32",
        "a completion ends at <eos> (1), or after 24 tokens",
        "chat template: no system prompt, no date",
        f"prompts: at most {longest} tokens, {longest + 24} with the new ones, of a context of 128",
        f"right answers: {task.golds_checked} checked, each is right by its own text",
        "updates: padded, as asked",
    ]
    loaded.tokenizer.chat_template = "{{ strftime_now('%d') }}" + USER
    task = dataclasses.replace(task, system_prompt="2+2=4", golds_checked=9, unequal_golds=("x", "y"))
    lines = found_lines(found(fix_date(loaded, DAY), task, Settings(), longest))
    assert lines[2] == (
        "chat template: the system prompt stands before the user's text, as the template has no place for it, "
        "today is 2026-07-26"
    )
    assert lines[4] == "right answers: 9 checked, 2 that are not right by their own text"
    assert len(lines) == 5
