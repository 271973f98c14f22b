"""Sampling from a language model: the same as the slow way, one full forward pass a token."""

import functools
import math

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from minigrpo.llm import sampling
from minigrpo.llm.models import checkpointing_name
from minigrpo.llm.sampling import cache_argument, completion_logps, context_of, pad_prompts, sample_completions

V, EOS, PAD = 17, 1, 0
SIZES = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 2]]


@pytest.fixture(params=["llama", "qwen2", "gpt2", "mistral"])
def model(request):
    torch.manual_seed(0)
    if request.param == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=64))
    elif request.param == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1, max_position_embeddings=64))
    elif request.param == "mistral":  # its keys and values slide out of the cache
        config = MistralConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, sliding_window=4)
        made = MistralForCausalLM(config)
    else:
        made = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)  # far from uniform
    return made.eval()


def sample(model, prompts=PROMPTS, seed=0, **options):
    options = {"group_size": 4, "max_new_tokens": 12} | options
    generator = torch.Generator().manual_seed(seed)
    return sample_completions(model, prompts, eos_ids=[EOS], pad_id=PAD, generator=generator, **options)


@torch.no_grad()
def slowly(model, prompts, seed, group_size, max_new_tokens, temperature, top_p=1.0):
    """Each completion alone, without padding or cache: the tokens that the same uniform numbers give."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(len(prompts) * group_size, 1, generator=generator) for _ in range(max_new_tokens)]
    completions, logps = [], []
    for row in range(len(prompts) * group_size):
        tokens, kept = [], []
        while len(tokens) < max_new_tokens and tokens[-1:] != [EOS]:
            logits = model(torch.tensor([prompts[row // group_size] + tokens])).logits[0, -1]
            distribution = (logits / (temperature or 1)).softmax(dim=0)
            if temperature == 0:
                token = int(distribution.argmax())
            else:
                likely = sorted(range(V), key=lambda v: -distribution[v])
                nucleus, mass = [], 0.0
                while mass < top_p and len(nucleus) < V:
                    nucleus.append(likely[len(nucleus)])
                    mass += float(distribution[nucleus[-1]])
                candidates = nucleus if top_p < 1 else range(V)
                total = sum(float(distribution[v]) for v in candidates)
                at, level = float(draws[len(tokens)][row]) * total, 0.0
                for token in candidates:
                    level += float(distribution[token])
                    if level > at:
                        break
            tokens.append(token)
            kept.append(float(distribution[token].log()))
        completions.append(tokens)
        logps.append(kept)
    return completions, logps


def alone(model, samples, temperature=1.0):
    """ln π of each completion in a pass of its own, without padding or cache; (P·G, T), 0 where masked."""
    G, T = samples.completion_ids.shape[1:]
    rows = []
    completions = (x.flatten(0, 1) for x in (samples.completion_ids, samples.completion_mask))
    for row, (ids, mask) in enumerate(zip(*completions, strict=True)):
        prompt = samples.prompt_ids[row // G][samples.prompt_mask[row // G]]
        logits = model(torch.cat([prompt, ids[mask]]).unsqueeze(0), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(dim=-1).gather(1, ids[mask].unsqueeze(1)).squeeze(1)
        rows.append(torch.nn.functional.pad(logps, (0, T - len(logps))))
    return torch.stack(rows)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.0, 1.0), (1.0, 0.6)])
def test_samples_equal_the_slow_way(model, temperature, top_p):
    samples = sample(model, seed=3, temperature=temperature, top_p=top_p)
    completions, logps = slowly(model, PROMPTS, 3, 4, 12, temperature, top_p)
    ids, mask = samples.completion_ids.flatten(0, 1), samples.completion_mask.flatten(0, 1)
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == completions
    old = samples.old_logps.flatten(0, 1)
    for row, kept, expected in zip(old, mask, logps, strict=True):
        torch.testing.assert_close(row[kept], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len({len(completion) for completion in completions}) > 1 or temperature == 0  # some end early


def test_opening_once(model, monkeypatch):
    """Prompts of several lengths that begin alike: their opening is computed once, and nothing else changes."""
    prompts = [[3, 4, 5, 6], [3, 4, 5], [3, 4, 5, 9, 8, 2, 7]]
    assert sampling.shared_opening(model, prompts) == 0  # too short to pay
    expected, passes = sample(model, prompts), []
    monkeypatch.setattr(sampling, "MIN_SAVED", 1)
    hook = model.register_forward_pre_hook(lambda *call: passes.append(call[2]["input_ids"].shape), with_kwargs=True)
    samples = sample(model, prompts)
    hook.remove()
    slides = model.config.model_type == "mistral"
    assert sampling.shared_opening(model, prompts) == (0 if slides else 2)  # a prompt keeps a token of its own
    assert passes[: 1 if slides else 2] == ([(3, 7)] if slides else [(1, 2), (3, 5)])
    completions, logps = slowly(model, prompts, 0, 4, 12, 1.0)
    mask = samples.completion_mask
    assert [row.tolist() for row in samples.completion_ids[mask].split(list(map(len, completions)))] == completions
    torch.testing.assert_close(samples.old_logps[mask], torch.tensor(sum(logps, [])), rtol=1e-4, atol=1e-5)
    assert torch.equal(samples.prompt_ids, expected.prompt_ids)
    assert torch.equal(samples.prompt_mask, expected.prompt_mask)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kept_logps_equal_a_full_forward_pass(model, temperature):
    samples = sample(model, temperature=temperature)
    mask = samples.completion_mask
    with torch.no_grad():
        expected = alone(model, samples, temperature).view_as(samples.old_logps)
        full = completion_logps(model, samples, slice(None), temperature=temperature).view_as(samples.old_logps)
        part = completion_logps(model, samples, slice(5, 9), temperature=temperature)
    assert expected[mask].abs().mean() > 0.1
    torch.testing.assert_close(samples.old_logps[mask], expected[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full[mask], expected[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part, full.flatten(0, 1)[5:9], rtol=1e-4, atol=1e-5)
    assert not samples.old_logps[~mask].any()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_that_of_each_completion_alone(model, checkpointing):
    """Whether prompts are shared, or not as the model recomputes what a cache would keep."""
    samples = sample(model, max_new_tokens=6)
    weights = torch.randn(samples.old_logps.shape, generator=torch.Generator().manual_seed(1)) * samples.completion_mask

    def gradient(logps, weights):
        return torch.cat([g.flatten() for g in torch.autograd.grad((logps * weights).sum(), model.parameters())])

    expected = gradient(alone(model, samples), weights.flatten(0, 1))
    model.train()  # no dropout but GPT-2's
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attn_pdrop = 0.0
    if checkpointing:
        getattr(model, f"{checkpointing_name(model)}_enable")({"use_reentrant": False})
    parts = [(rows, completion_logps(model, samples, rows)) for rows in (slice(0, 5), slice(5, 12))]
    found = sum(gradient(logps, weights.flatten(0, 1)[rows]) for rows, logps in parts)
    assert expected.norm() > 1
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_one_token(model):
    samples = sample(model, max_new_tokens=1)
    logps = completion_logps(model, samples, slice(None)).view_as(samples.old_logps)
    assert logps.shape == (3, 4, 1)
    torch.testing.assert_close(logps, samples.old_logps, rtol=1e-4, atol=1e-5)


def test_shape_of_what_comes_back(model):
    samples = sample(model)
    assert samples.completion_ids.shape == samples.completion_mask.shape == samples.old_logps.shape
    assert samples.completion_ids.shape[:2] == (3, 4)
    assert samples.prompt_ids.tolist() == [[0, 0, 3, 4, 5], [0, 0, 0, 0, 6], [7, 8, 9, 10, 2]]
    assert samples.prompt_mask.sum(dim=1).tolist() == [3, 1, 5]
    mask, ids = samples.completion_mask, samples.completion_ids
    assert not (mask[..., 1:] & ~mask[..., :-1]).any()  # no holes
    ends = (ids == EOS) & mask
    assert ends.any()
    assert (ends.sum(dim=-1) <= 1).all()
    assert not (mask[..., 1:] & ends[..., :-1]).any()  # nothing after EOS
    assert (ids[~mask] == PAD).all()


@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_of_several_ends(model, temperature):
    """With more ends a completion is the same up to the first of them, which is its last token."""
    options = {"pad_id": PAD, "group_size": 4, "max_new_tokens": 12, "temperature": temperature}
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    free = sample_completions(model, PROMPTS, eos_ids=(), generator=draws[0], **options)
    assert free.completion_mask.all()
    first, second = free.completion_ids[0, 0, 3].item(), free.completion_ids[-1, -1, 5].item()
    ended = sample_completions(model, PROMPTS, eos_ids={first, second}, generator=draws[1], **options)
    seen = set()
    tensors = (free.completion_ids, ended.completion_ids, ended.completion_mask)
    for expected, ids, mask in zip(*(x.flatten(0, 1) for x in tensors), strict=True):
        places = [t for t, token in enumerate(expected.tolist()) if token in (first, second)]
        length = places[0] + 1 if places else 12
        assert ids[mask].tolist() == expected[:length].tolist()
        seen |= {first, second} & {ids[mask][-1].item()}
    assert seen == {first, second}


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options)).eval()


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE |= {"original_max_position_embeddings": 16}


def test_context_of_a_model():
    assert context_of(llama(max_position_embeddings=64).config) == (64, "the model's context of 64")
    assert context_of(llama(max_position_embeddings=64, rope_parameters=LONGROPE).config)[0] == 16
    assert context_of(llama(max_position_embeddings=8, rope_parameters=LONGROPE).config)[0] == 8
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert context_of(llama(max_position_embeddings=64, rope_parameters=dynamic).config)[0] == 64
    bloom = BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2))
    assert context_of(bloom.config)[0] == math.inf
    text = dict(SIZES, num_key_value_heads=1, head_dim=8, max_position_embeddings=32)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    both = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    assert context_of(both.config)[0] == 32


def test_longrope_up_to_its_switch():
    """Up to it the log-probs kept are the model's own; beyond it they would not be, and the prompt is refused."""
    torch.manual_seed(0)
    model = llama(max_position_embeddings=64, rope_parameters=LONGROPE)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    samples = sample(model, max_new_tokens=11)  # the longest prompt has 5 tokens
    mask = samples.completion_mask.flatten(0, 1)
    assert (alone(model, samples) - samples.old_logps.flatten(0, 1))[mask].abs().max() < 1e-5
    with pytest.raises(ValueError, match="prompt of 5 tokens and max_new_tokens 12 must fit into the 16 tokens up to"):
        sample(model, max_new_tokens=12)


def test_a_model_that_keeps_a_state():
    model = MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM keeps a state: take a model of attention layers"):
        sample(model)


def test_the_name_of_the_cache():
    """transformers 5.0 has one name and later ones the other; a wrapped forward keeps its own."""
    assert cache_argument(lambda input_ids, past_key_values=None: None) == "past_key_values"
    assert cache_argument(lambda input_ids, cache=None: None) == "cache"


@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_name_that_is_on_its_way_out(model):
    assert sample(model).completion_mask.any()


@pytest.fixture
def passes(model, monkeypatch):
    """The shapes of what the model was given, pass by pass."""
    shapes = []
    forward = type(model).forward

    @functools.wraps(forward)
    def counted(self, input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    return shapes


def test_one_prefill_a_prompt_and_one_row_a_distinct_prefix(model, passes):
    samples = sample(model)
    P, G, T = samples.completion_ids.shape
    rows = [
        {
            (p, *samples.completion_ids[p, i, : t + 1].tolist())
            for p in range(P)
            for i in range(G)
            if samples.completion_mask[p, i, t] and samples.completion_ids[p, i, t] != EOS
        }
        for t in range(T - 1)
    ]
    assert passes == [(3, 5)] + [(len(prefixes), 1) for prefixes in rows]
    assert len(rows[0]) < P * G  # some share their first token


def test_seeds(model):
    assert torch.equal(sample(model).completion_ids, sample(model).completion_ids)
    other = sample(model, seed=1).completion_ids
    assert other.shape != sample(model).completion_ids.shape or not torch.equal(other, sample(model).completion_ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"max_new_tokens": 60}, "prompt of 5 tokens and max_new_tokens 60 must fit into the model's context of 64"),
        ({"prompts": [[3], []]}, r"prompts must each hold a token, got lengths \[1, 0\]"),
        ({"prompts": []}, r"prompts must each hold a token, got lengths \[\]"),
    ],
)
def test_bad_options(model, options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        sample(model, **options)


def test_pad_prompts():
    ids, mask = pad_prompts([[5], [6, 7]], pad_id=9)
    assert ids.tolist() == [[9, 5], [6, 7]]
    assert mask.tolist() == [[False, True], [True, True]]
