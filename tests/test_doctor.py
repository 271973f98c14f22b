"""The doctor names what is missing and says what to do."""

from __future__ import annotations

from grader import doctor


def test_it_names_what_is_there_with_its_version():
    import torch

    found = {what: (works, text) for works, what, text in [*doctor._python(), *doctor._torch(), *doctor._packages()]}
    assert found["torch"] == (True, torch.__version__)
    assert found["Python"][0]
    assert found["nbformat"][0]


def test_it_says_what_to_do_about_what_is_missing(monkeypatch):
    def looks() -> list[doctor.Finding]:
        return [finding for finding in doctor._packages() if finding[1] == "peft"]

    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "LOOKS", (looks, doctor._kernel))
    lines = doctor.report().splitlines()
    assert [line[:7] for line in lines[:2]] == ["missing", "missing"]
    assert "pip install -r requirements.txt" in lines[0]
    assert lines[-1].startswith("Missing: 2")


def test_an_extra_is_not_missing(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "LOOKS", (doctor._packages,))
    lines = doctor.report().splitlines()
    (line,) = [line for line in lines if "reasoning-gym" in line]
    assert line.startswith("ok     ")
    assert "minigrpo[gym]" in line
    assert lines[-1].startswith(f"Missing: {len(doctor.NEEDED)}")
