"""Lab 09's files: what is no honest adapter scores nothing, what is one is PEFT's, and claims are checked."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load, save  # noqa: E402

from grader import adapters  # noqa: E402
from grader.adapters import CONFIG, METRICS, WEIGHTS, deviation, grade  # noqa: E402
from grader.grade import grade_folder  # noqa: E402
from grader.results import Grading  # noqa: E402
from grader.submission import SubmissionError, read_submission  # noqa: E402
from minigrpo.llm.models import load_model  # noqa: E402

SETTINGS = {"r": 2, "lora_alpha": 4, "target_modules": ["down_proj", "q_proj"]}
HONEST = adapters.FIXED | {"base_model_name_or_path": "tiny"} | SETTINGS


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes | None]:
    """An adapter of random numbers, small enough that the base goes on working, with metrics that claim a gain."""
    layers = adapters.targeted(load_model("tiny").model, adapters.read_config(json.dumps(HONEST).encode()))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in layers.items():
        for letter, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2))):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = 0.02 * torch.randn(shape, generator=generator)
    return {WEIGHTS: save(tensors), CONFIG: json.dumps(HONEST).encode(), METRICS: metrics(0.5, 0.8)}


def metrics(*accuracies: float, problems: int = 200) -> bytes:
    rows = [{"update": k, "eval_accuracy": p, "eval_problems": problems} for k, p in enumerate(accuracies)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def changed(content: bytes, change) -> bytes:
    """The adapter with `change` done to its first B."""
    tensors = load(content)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = change(tensors[name].clone())
    return save(tensors)


def renamed(content: bytes) -> bytes:
    tensors = load(content)
    tensors["base_model.model.lm_head.lora_A.weight"] = tensors.pop(next(iter(tensors)))
    return save(tensors)


def untouched(content: bytes) -> bytes:
    return save({name: torch.zeros_like(x) if "lora_B" in name else x for name, x in load(content).items()})


def config(**changes) -> bytes:
    return json.dumps(HONEST | changes).encode()


FAKES = {
    "an untouched adapter": (WEIGHTS, untouched),
    "NaN": (WEIGHTS, lambda c: changed(c, lambda x: x.fill_(float("nan")))),
    "infinity": (WEIGHTS, lambda c: changed(c, lambda x: x.fill_(float("inf")))),
    "huge numbers": (WEIGHTS, lambda c: changed(c, lambda x: x.fill_(1e30))),
    "a wrong shape": (WEIGHTS, lambda c: changed(c, lambda x: x[:-1])),
    "a transposed tensor": (WEIGHTS, lambda c: changed(c, lambda x: x.T.contiguous())),
    "float64": (WEIGHTS, lambda c: changed(c, lambda x: x.double())),
    "another name": (WEIGHTS, renamed),
    "a pickle": (WEIGHTS, lambda c: pickle.dumps({"weight": [1.0]})),
    "a header of 10 GB": (WEIGHTS, lambda c: struct.pack("<Q", 10 << 30) + c[8:]),
    "a header that is no JSON": (WEIGHTS, lambda c: struct.pack("<Q", 64) + b"\xff" * 128),
    "offsets beyond the file": (WEIGHTS, lambda c: c[:-100]),
    "an empty file": (WEIGHTS, lambda c: b""),
    "no adapter": (WEIGHTS, lambda c: None),
    "no configuration": (CONFIG, lambda c: None),
    "a configuration with a further key": (CONFIG, lambda c: config(auto_mapping={"x": "y"})),
    "a base that is a path": (CONFIG, lambda c: config(base_model_name_or_path="../../secret")),
    "a base that is a list": (CONFIG, lambda c: config(base_model_name_or_path=["tiny"])),
    "another rank": (CONFIG, lambda c: config(r=4)),
    "a rank of 10⁹": (CONFIG, lambda c: config(r=10**9)),
    "a rank that is a bool": (CONFIG, lambda c: config(r=True)),
    "an alpha of NaN": (CONFIG, lambda c: config(lora_alpha=float("nan"))),
    "layers that do not exist": (CONFIG, lambda c: config(target_modules=["q_proj", "os.system"])),
    "the head": (CONFIG, lambda c: config(target_modules=["lm_head"])),
    "a key twice": (CONFIG, lambda c: c[:-1] + b', "r": 2}'),
    "deep JSON": (CONFIG, lambda c: b"[" * 100_000),
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_fake_scores_nothing_on_any_part(fake, contents):
    name, change = FAKES[fake]
    parts = grade(contents | {name: change(contents[name])}, seed=1)
    assert [part["points"] for part in parts] == [1, 3, 2]
    assert all(part["earned"] == 0 and not part["passed"] and part["feedback"] for part in parts)


def test_an_adapter_is_what_peft_makes_of_the_same_files(contents, tmp_path):
    peft = pytest.importorskip("peft")
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes(contents[name])
    ids = torch.arange(2, 12).unsqueeze(0)
    theirs = peft.PeftModel.from_pretrained(load_model("tiny").model, tmp_path).eval()
    ours = load_model("tiny").model
    settings = adapters.read_config(contents[CONFIG])
    layers = adapters.targeted(ours, settings)
    before = ours(ids).logits.detach()
    adapters.merge(layers, adapters.read_weights(contents[WEIGHTS], layers, settings.r), settings)
    after = ours(ids).logits
    torch.testing.assert_close(after, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


@pytest.fixture
def found(monkeypatch):
    """Set what the grader finds: accuracy of the base and of the adapter."""

    def put(before: float, after: float) -> None:
        monkeypatch.setattr(adapters, "base_accuracy", lambda base, seed: before)
        monkeypatch.setattr(adapters, "adapter_accuracy", lambda config, content, seed: after)

    return put


@pytest.mark.parametrize(
    ("before", "after", "claims", "earned"),
    [
        (0.52, 0.80, metrics(0.50, 0.79), [1, 3, 2]),
        (0.52, 0.80, metrics(0.50, 0.99), [1, 3, 0]),  # a better end claimed than there is
        (0.52, 0.80, metrics(0.10, 0.79), [1, 3, 0]),  # a worse start claimed, for a larger gain
        (0.52, 0.61, metrics(0.50, 0.62), [1, 0, 2]),  # honest, and too little
        (0.52, 0.52, metrics(0.50, 0.80), [1, 0, 0]),
        (0.52, 0.80, metrics(0.50, 0.79, problems=5), [1, 3, 0]),  # of five problems any claim would hold
        (0.52, 0.80, metrics(0.50), [1, 3, 0]),
        (0.52, 0.80, metrics(0.50, 0.79).replace(b"0.79", b"NaN"), [1, 3, 0]),
        (0.52, 0.80, metrics(0.50, 0.79).replace(b'"update": 1', b'"update": 7'), [1, 3, 0]),
        (0.52, 0.80, b"\x80\x04pickle", [1, 3, 0]),
        (0.52, 0.80, None, [1, 3, 0]),
    ],
)
def test_gain_and_claims_score_by_themselves(before, after, claims, earned, contents, found):
    found(before, after)
    parts = grade(contents | {METRICS: claims}, seed=1)
    assert [part["earned"] for part in parts] == earned
    assert all(bool(part["feedback"]) != part["passed"] for part in parts)


def test_a_batch_is_graded_as_each_alone(contents, tmp_path, monkeypatch, capfd):
    """Models are loaded for two submissions at a time: transformers can't, so the grader must not."""
    monkeypatch.setitem(adapters.BASES, "tiny", adapters.Base(fresh=8, largest=None))
    weak = contents | {METRICS: metrics(1.0, 1.0)}
    expected = [sum(part["earned"] for part in grade(sent, seed=1)) for sent in (contents, weak)]
    adapters.base_accuracy.cache_clear()
    for k in range(8):
        folder = tmp_path / "in" / f"student{k}"
        folder.mkdir(parents=True)
        (folder / "lab.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
        for name, content in (contents, weak)[k % 2].items():
            (folder / name).write_bytes(content)
    rows = [{"id": "lab09.3", "kind": "artifact", "points": 6, "files": list(adapters.FILES)}]
    entry = {"notebook": "lab.ipynb", "setup": "", "exercises": rows}
    grading = Grading("lab09", entry, 1, "reduced")
    capfd.readouterr()
    found = grade_folder(tmp_path / "in", grading, tmp_path / "out", jobs=2, progress=False)
    earned = {result.student: result.earned for result in found}
    assert earned == {f"student{k}": expected[k % 2] for k in range(8)}
    assert expected[0] >= 1
    assert "Loading" not in capfd.readouterr().err
    adapters.base_accuracy.cache_clear()


def test_an_adapter_can_be_read_by_whoever_reads_the_rest(contents, tmp_path):
    kept = {f"weight.{name.replace('.weight', '.default.weight')}": x for name, x in load(contents[WEIGHTS]).items()}
    settings = {"model": "tiny", "lora_rank": 2, "lora_alpha": 4}
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings}))
    (tmp_path / "checkpoint.safetensors").write_bytes(save(kept))
    (tmp_path / METRICS).write_bytes(contents[METRICS])
    adapters.save_adapter(tmp_path, tmp_path / "adapter")
    files = [tmp_path / "adapter" / name for name in adapters.FILES]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert load(files[0].read_bytes()).keys() == load(contents[WEIGHTS]).keys()
    assert json.loads(files[1].read_text()) == HONEST


def test_the_deviation_is_that_of_two_shares():
    assert deviation(0.5, 100, 0.6, 100) == pytest.approx(0.1 / (0.55 * 0.45 * 0.02) ** 0.5)
    assert deviation(1.0, 200, 1.0, 400) == 0
    assert 0 < deviation(1.0, 200, 0.99, 400) < 3


def test_fresh_problems_are_held_out_follow_the_seed_and_differ_between_seeds():
    for base in adapters.BASES:
        drawn = [set(adapters.fresh_task(base, seed).heldout["prompt"]) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(drawn[0]) == adapters.BASES[base].fresh
        assert not drawn[0] & set(adapters.load_base_task(base).train["prompt"])


def test_links_are_not_followed(contents, tmp_path):
    entry = {"notebook": "lab.ipynb", "exercises": []}
    secret = tmp_path / "secret"
    secret.write_bytes(contents[WEIGHTS])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "lab.ipynb").write_text('{"cells": []}')
    (folder / WEIGHTS).symlink_to(secret)
    submission = read_submission(folder, "s", entry, adapters.FILES)
    assert WEIGHTS not in submission.files
    link = zipfile.ZipInfo(WEIGHTS)
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("lab.ipynb", '{"cells": []}')
        archive.writestr(link, str(secret))
    with pytest.raises(SubmissionError, match="link"):
        read_submission(tmp_path / "s.zip", "s", entry, adapters.FILES)


@pytest.mark.slow
def test_the_recipe_of_the_lab_earns_everything_and_an_edited_claim_its_points(tmp_path):
    from grader.labs.lab09 import RECIPES
    from minigrpo.llm.settings import Settings
    from minigrpo.llm.training import train

    recipe = RECIPES["tiny"] | {"max_new_tokens": 16, "lora_rank": 8, "lora_alpha": 16}
    train(Settings(seed=99, **recipe), tmp_path / "run", progress=False)
    adapters.save_adapter(tmp_path / "run", tmp_path / "adapter")
    sent = {name: (tmp_path / "adapter" / name).read_bytes() for name in adapters.FILES}
    assert [part["earned"] for part in grade(sent, seed=3)] == [1, 3, 2]
    assert [part["earned"] for part in grade(sent | {METRICS: metrics(0.5, 1.0)}, seed=3)] == [1, 3, 0]
