"""`llm board`: runs of every kind are shown as what they are, in the terminal and on the page."""

import dataclasses
import json
import os
import shutil
import time

import pytest

from minigrpo.cli import main
from minigrpo.llm.board import PATIENCE, Line, board_text, cells, read_board
from minigrpo.llm.settings import Settings
from minigrpo.llm.training import train

QUICK = Settings(
    updates=4, prompts=2, group_size=4, max_new_tokens=8, eval_every=2, eval_size=10, train_size=20, save_every=2
)


def board(*arguments):
    return main(["llm", "board", *map(str, arguments)])


def write_run(folder, updates=100, rows=3, seconds=2.0, checkpoint=False, **settings):
    """A run's folder of made-up numbers."""
    folder.mkdir(parents=True)
    settings = dataclasses.asdict(Settings(updates=updates, **settings))
    (folder / "manifest.json").write_text(json.dumps({"settings": settings}))
    lines = [
        {"update": k, "reward": k / 10, "seconds": seconds, "tokens_per_second": 100.0, "warnings": []}
        for k in range(rows)
    ]
    if rows:
        lines[0] |= {"eval_accuracy": 0.25, "eval_ci_low": 0.2, "eval_ci_high": 0.3}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if checkpoint:
        (folder / "checkpoint.safetensors").write_bytes(b"x")
    return folder


def age(folder, seconds):
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - seconds,) * 2)


def only(folder):
    (line,) = read_board([folder])
    return line


def test_a_run_on_its_way(tmp_path):
    write_run(tmp_path / "anna", objective="lambda_grpo", seed=3)
    line = only(tmp_path)
    assert (line.name, line.state, line.objective, line.seed) == ("anna", "running", "lambda_grpo", 3)
    assert (line.update, line.updates) == (2, 100)
    assert line.reward == pytest.approx(0.1)  # mean of 0, 0.1 and 0.2
    assert line.minutes_left == pytest.approx(98 * 2 / 60)
    assert (line.first, line.accuracy, line.ci_low, line.ci_high) == (0.25, 0.25, 0.2, 0.3)
    assert cells(line)[2:6] == ("2/100", "0.10", "0.25 → 0.25 [0.20, 0.30]", "3 min")
    assert cells(line)[6:] == ("lambda_grpo", "3", "100", "")


@pytest.mark.parametrize(
    ("options", "seconds", "state", "note"),
    [
        ({"rows": 0}, 0, "starting", None),
        ({"rows": 0}, PATIENCE + 1, "silent", None),
        ({}, PATIENCE + 1, "silent", "no checkpoint, and no word for 2 minutes"),
        ({"checkpoint": True}, PATIENCE + 1, "stopped", "a queue goes on by itself"),
        ({"seconds": 100.0}, PATIENCE + 1, "running", None),  # a slow one: five updates may take long
        ({"seconds": 100.0}, 501, "silent", "no checkpoint"),
        ({"updates": 2}, 10_000, "done", None),
    ],
)
def test_states(tmp_path, options, seconds, state, note):
    age(write_run(tmp_path / "run", **options), seconds)
    line = only(tmp_path)
    assert line.state == state
    assert any(note in each for each in line.notes) if note else not line.notes


def half_written(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "rew')


def damaged(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "no row", *lines[1:], ""]))


def without_manifest(run):
    (run / "manifest.json").unlink()


def cut_manifest(run):
    (run / "manifest.json").write_text('{"settings": ')


def not_text(run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("harm", "state", "update", "note"),
    [
        (half_written, "running", 2, None),  # it is being written
        (damaged, "running", 2, "metrics.jsonl, line 2: no row of a run"),
        (without_manifest, "running", 2, "manifest.json is missing"),
        (cut_manifest, "running", 2, "is not whole"),
        (not_text, "starting", None, None),
    ],
)
def test_broken_folders_are_shown_as_what_they_are(tmp_path, harm, state, update, note):
    harm(write_run(tmp_path / "run"))
    line = only(tmp_path)
    assert (line.state, line.update) == (state, update)
    assert any(note in each for each in line.notes) if note else not line.notes


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"reward": 10**400}, "running"),
        ({"reward": float("nan")}, "running"),
        ({"update": True}, "running"),
        ({"eval_accuracy": "high", "eval_ci_low": 0.5}, "running"),
        ({"seconds": "long", "tokens_per_second": []}, "running"),
        ({"warnings": 3}, "running"),
    ],
)
def test_values_of_another_kind_cost_nobody_else_a_line(tmp_path, change, state):
    run = write_run(tmp_path / "anna")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 3, "reward": 0.5} | change) + "\n")
    write_run(tmp_path / "ben")
    anna, ben = read_board([tmp_path])
    assert (anna.state, ben.state) == (state, "running")
    text = board_text([anna, ben])
    assert "nan" not in text
    json.dumps(dataclasses.asdict(anna), allow_nan=False)


@pytest.mark.parametrize("settings", [{"seed": "abc"}, {"seed": 1.0}, {"updates": None}, {"objective": [1]}])
def test_settings_of_another_kind(tmp_path, settings):
    run = write_run(tmp_path / "anna")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({"settings": manifest["settings"] | settings}))
    assert board_text(read_board([tmp_path]))


def deep(run):
    (run / "manifest.json").write_text("[" * 200_000)


def list_of_recipe(run):
    for file in run.iterdir():
        file.unlink()
    (run / "recipe.json").write_text("[]")


def fifo(run):
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipe in the file system")
@pytest.mark.parametrize("harm", [deep, list_of_recipe, fifo])
def test_hostile_folders_are_unreadable(tmp_path, harm):
    harm(write_run(tmp_path / "anna"))
    write_run(tmp_path / "ben")
    assert [line.state for line in read_board([tmp_path])] == ["unreadable", "running"]


def test_a_run_of_trl_that_has_only_begun(tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "recipe.json").write_text('{"objective": "grpo", "seed": 3}')
    line = only(tmp_path)
    assert (line.state, line.objective, line.seed) == ("starting", "grpo", 3)


def test_metrics_of_gigabytes_are_not_read(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(10_000_000_000)  # a hole: it takes no space
    started = time.monotonic()
    line = only(tmp_path)
    assert line.state == "unreadable"
    assert "10000 MB" in line.notes[0]
    assert time.monotonic() - started < 1


def test_links_are_not_followed(tmp_path):
    write_run(tmp_path / "elsewhere" / "run")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "link").symlink_to(tmp_path / "elsewhere")
    assert read_board([tmp_path / "class"]) == []


def test_warnings_stand_below(tmp_path):
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"warnings": ["the loss is exactly 0"]}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last), ""]))
    assert "run: the loss is exactly 0" in board_text(read_board([tmp_path]))


def test_a_real_run_and_one_that_was_resumed(tmp_path):
    assert train(QUICK, tmp_path / "class" / "anna", progress=False)
    shutil.copytree(tmp_path / "class" / "anna", tmp_path / "class" / "ben")
    manifest = tmp_path / "class" / "ben" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"resumed": [2]}))
    anna, ben = read_board([tmp_path / "class"])
    assert (anna.state, anna.update, anna.updates, anna.resumed, ben.resumed) == ("done", 4, 4, 0, 1)
    assert cells(ben)[1] == "done ×2"
    assert anna.accuracy is not None
    assert len(anna.rewards) == 5


def test_a_run_of_trl(tmp_path):
    state = {
        "global_step": 4,
        "max_steps": 10,
        "log_history": [{"step": k, "reward": 0.5, "step_time": 30.0} for k in (1, 2, 3, 4)],
    }
    folder = tmp_path / "carla" / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    line = only(tmp_path)
    assert (line.name, line.state, line.update, line.updates) == ("carla", "running", 4, 10)
    assert (line.reward, line.minutes_left) == (0.5, 3.0)
    (folder / "trainer_state.json").write_text("{}")
    assert only(tmp_path).state == "unreadable"


def test_page_and_json(tmp_path, capsys):
    write_run(tmp_path / "class" / "anna", rows=30, updates=29)
    write_run(tmp_path / "class" / "<b>ben", rows=30, updates=29, objective="lambda_grpo")
    write_run(tmp_path / "class" / "carla", rows=3)  # which has only begun: no curve yet
    assert board(tmp_path / "class", "--page", tmp_path / "board.html", "--json", tmp_path / "board.json") == 0
    page = (tmp_path / "board.html").read_text()
    assert "&lt;b&gt;ben" in page
    assert "<b>ben" not in page
    assert "data:image/svg+xml" in page
    assert 'http-equiv="refresh"' not in page
    rows = json.loads((tmp_path / "board.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"anna", "<b>ben", "carla"}
    out = capsys.readouterr().out
    assert out.startswith("3 runs: 2 done, 1 running\n")
    assert "▁" in out


def test_watching_ends_with_ctrl_c(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert board(tmp_path, "--watch", "7", "--page", tmp_path / "board.html") == 0
    assert naps == [7, 7, 7]
    assert capsys.readouterr().out.count("1 run: ") == 3
    assert 'http-equiv="refresh" content="7"' in (tmp_path / "board.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["."], "no run in"),
        (["nowhere"], "nowhere is not a folder"),
        ([".", "--watch", "0"], "--watch must be at least 1 second, got 0"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert board(*arguments) == 2
    assert words in capsys.readouterr().err


def test_watching_waits_for_the_first_run(tmp_path, monkeypatch, capsys):
    def sleep(seconds):
        if (tmp_path / "run").exists():
            raise KeyboardInterrupt
        write_run(tmp_path / "run")

    monkeypatch.setattr(time, "sleep", sleep)
    assert board(tmp_path, "--watch") == 0
    assert capsys.readouterr().out.startswith("no run yet\n1 run: 1 running\n")


def test_what_is_not_known_is_a_dash():
    assert set(cells(Line("x", "starting"))[2:6]) == {"–"}
