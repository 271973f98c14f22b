"""`--report-to`: rows reach a tracker by TRL's names, and what is missing is said before a model is loaded."""

import dataclasses
import sys
import types

import pytest

from minigrpo.cli import main
from minigrpo.llm import trackers
from minigrpo.llm.runs import read_metrics
from minigrpo.llm.settings import Settings
from minigrpo.llm.trackers import NAMES, named
from minigrpo.llm.training import train

QUICK = Settings(updates=3, prompts=2, group_size=4, max_new_tokens=8, eval_every=2, eval_size=10, train_size=20)


class StandIn(types.ModuleType):
    """The three functions of wandb that are used, and what they were given."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, numbers, step):
        self.calls.append(("log", step, numbers))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    module = StandIn("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers.util, "find_spec", lambda name: object() if name == "wandb" else None)
    return module


def test_names_are_trl_s():
    row = {
        "update": 3,
        "reward": 0.5,
        "length": 7.0,
        "path_depth": 2.0,
        "warnings": [],
        "passes": {},
        "memory_gb": None,
    }
    assert named(row) == {"train/reward": 0.5, "train/completions/mean_length": 7.0, "minigrpo/path_depth": 2.0}
    import inspect

    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    ours = [name.removeprefix("train/") for name in NAMES.values() if name.startswith("train/")]
    missing = [name for name in ours if f'"{name}"' not in source and name not in ("loss", "grad_norm", "step_time")]
    assert missing == []  # those three are of the trainer that TRL builds on


def test_each_row_is_reported(tmp_path, wandb):
    assert train(QUICK, tmp_path / "anna", report_to=["wandb"], progress=False)
    (_, options), *logs, last = wandb.calls
    assert options["name"] == "anna"
    assert options["config"] == dataclasses.asdict(QUICK)
    assert options["resume"] == "allow"
    assert last == ("finish",)
    rows = read_metrics(tmp_path / "anna")
    assert [step for _, step, _ in logs] == [row["update"] for row in rows]
    assert [numbers["train/reward"] for _, _, numbers in logs] == [row["reward"] for row in rows]
    assert ["eval/accuracy" in numbers for _, _, numbers in logs] == ["eval_accuracy" in row for row in rows]


def test_a_tracker_is_ended_by_a_run_that_fails(tmp_path, wandb, monkeypatch):
    def fails(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("minigrpo.llm.training.descend", fails)
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, tmp_path, report_to=["wandb"], progress=False)
    assert wandb.calls[-1] == ("finish",)


def test_tensorboard(tmp_path):
    """Its own reader finds the curve."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed, which nothing else here needs")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(QUICK, tmp_path, report_to=["tensorboard"], progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path)
    found = [(event.step, event.value) for event in events.Scalars("train/reward")]
    assert found == [(row["update"], pytest.approx(row["reward"])) for row in rows]


def test_a_resumed_run_is_one_run_there_too(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr("minigrpo.llm.training.deadline", lambda minutes: lambda: False)
    assert not train(QUICK, tmp_path, report_to=["wandb"], max_minutes=1, progress=False)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(trackers.util, "find_spec", lambda name: object())
    assert train(QUICK, tmp_path, resume=True, report_to=["wandb"], progress=False)
    first, second = (call[1] for call in wandb.calls if call[0] == "init")
    assert first == second
    assert [call[1] for call in wandb.calls if call[0] == "log"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlflow", "report_to must be of tensorboard, trackio, wandb, got 'mlflow'"),
        ("trackio", "report_to trackio needs a package: pip install trackio"),
    ],
)
def test_what_is_missing_is_said_at_once(tmp_path, capsys, monkeypatch, name, words):
    monkeypatch.setattr(trackers.util, "find_spec", lambda name: None)
    assert main(["llm", "train", "--out", str(tmp_path / "run"), "--report-to", name]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
