"""What the presets say they need of a GPU is what is computed, and the computation is right where it can be checked."""

import dataclasses
import re

import pytest

from minigrpo.llm.gpu import A10, A100, SHAPES, T4, Shape, memory, minutes
from minigrpo.llm.models import load_model
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.llm.update import prepare

CARDS = {"gpu16": T4, "class": A10, "gpu80": A100, "gpu80-paper": A100, "gpu80-7b": A100}


def test_every_preset_for_a_gpu_has_a_card():
    assert {name for name, preset in PRESETS.items() if preset.settings.device == "cuda"} == set(CARDS)


@pytest.mark.parametrize(("name", "card"), CARDS.items())
def test_presets_say_what_is_computed_and_fit(name, card):
    preset = PRESETS[name]
    needed = memory(preset.settings)["all"]
    assert needed < 0.8 * card.memory
    said = re.search(rf"(\d+) GB of memory, (\d+) minutes on an? {card.name} \(computed, not measured\)", preset.needs)
    assert [int(value) for value in said.groups()] == [round(needed), round(minutes(preset.settings, card))]


def test_parameters_are_the_model_s_own():
    """Of tiny, whose configuration is at hand; and the published count of SmolLM2-135M."""
    loaded = load_model("tiny")
    config = loaded.model.config
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, keys, config.vocab_size)
    shape = Shape(*sizes, config.tie_word_embeddings)
    assert shape.parameters == loaded.model.num_parameters()
    adapted = prepare(loaded.model, Settings(lora_rank=4))
    assert shape.adapters(4) == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert SHAPES["smollm2-135m"].parameters == 134_515_008


def test_weights_and_cache_by_hand():
    settings = Settings(model="smollm2-135m", prompts=2, group_size=4, max_new_tokens=56)
    found = memory(settings)
    assert found["weights"] == pytest.approx(134_515_008 * 16 / 1e9)  # float32: weight, gradient, two moments
    assert found["KV cache"] == pytest.approx(8 * 256 * 30 * 2 * 192 * 4 / 1e9)  # 8 rows of 256 tokens
    with_reference = memory(dataclasses.replace(settings, beta=0.1))
    assert with_reference["weights"] == pytest.approx(134_515_008 * 20 / 1e9)
    cheaper = memory(dataclasses.replace(settings, gradient_checkpointing=True))
    assert cheaper["activations"] < found["activations"] / 5


def test_time_by_hand():
    """One update, decoding bound by launches, and training by products."""
    settings = Settings(model="smollm2-135m", updates=1, eval_every=10, eval_size=64, prompts=1, max_new_tokens=100)
    decoding = 100 * 30 * 0.8e-3
    training = 6 * 134_515_008 * 8 * 300 / (0.3 * 312e12)
    assert minutes(settings, A100) == pytest.approx((2 * decoding + training) / 60)
