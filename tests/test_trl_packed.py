"""TRL with rows packed as a forest: the same training as by TRL's own passes, and each shared token once."""

import json
import warnings

import pytest
import torch

pytest.importorskip("trl", reason="trl is optional: make test-trl runs these")

from datasets import Dataset
from groups import assert_close
from peft import LoraConfig
from test_trl import LORA, launch, vector
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)
from trl import GRPOConfig
from trl.trainer import grpo_trainer
from trl_runs import OFF, PROMPTS, reward, tiny, trainer

from minigrpo.integrations.forest import IGNORED, forest_cost, forest_logps, forest_sizes, make_forest
from minigrpo.integrations.packed import HAS_FUSED_HEAD, ROW, whole_groups
from minigrpo.integrations.trl import ProcessGRPOTrainer
from minigrpo.llm.forward import TREE, ForwardCosts, forward_costs
from minigrpo.llm.models import TINY, checkpointing_name
from minigrpo.packing import ancestor_blocks

EQUAL = ["7+18-4=", "12-7+1=", "11+2-3=", "15-4+2="]  # prompts of as many tokens: TRL's positions are not shifted then


def run(out, pack, objective="lambda_grpo", *, told=False, **settings):
    """Train; the trainer, and how far its weights moved. `told` takes TRL's own passes on the same batches."""
    more = {"objective": objective, "pack": pack}
    torch.manual_seed(0)  # of new adapters
    made = trainer(ProcessGRPOTrainer, out, more=more, deterministic=True, **{"max_steps": 4} | settings)
    start = vector(made)
    if told:
        made._packing.unfit = "the test wants it so"
    made.train()
    return made, vector(made) - start


def all_float64(folder, dropout=0.0):
    """A model all in float64; the norms of `tiny` round to float32. On disk, as TRL makes its reference from there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = len(AutoTokenizer.from_pretrained(TINY))
        rates = {"hidden_dropout": dropout, "attention_dropout": dropout}
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=size, **sizes, **rates)).double().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


CASES = {
    "default": {},
    "KL, iterations, accumulation, clipping": {
        "beta": 0.04,
        "num_iterations": 2,
        "epsilon": 0.02,
        "gradient_accumulation_steps": 2,
    },
    "a generation for two updates": {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "temperature": 0.7},
    "truncated completions masked": {"mask_truncated_completions": True, "max_completion_length": 4},
    "LoRA": {"peft_config": LoraConfig(**LORA), "beta": 0.04},
    "checkpointed, long": {"gradient_checkpointing": True, "per_device_train_batch_size": 64, "num_generations": 32},
    "eager attention, checkpointed": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_packed_is_unpacked(tmp_path, case):
    """Weights and every logged metric, where the norms of the model round to float32."""
    settings = CASES[case]

    def model():
        made = tiny()
        if "eager" in case:  # transformers' own gives NaN for padding on the left in float64
            made.float().set_attn_implementation("eager")
        return made

    (packed, ours), (plain, theirs) = (
        run(tmp_path, True, model=model(), told=told, **settings) for told in (False, True)
    )
    assert packed._packing.unfit == ""
    assert_close(ours, theirs, 1e-4 if "eager" in case else 1e-5)  # a float32 weight moves in steps of 1e-7
    assert theirs.abs().max() > 1e-4
    for a, b in zip(packed.state.log_history, plain.state.log_history, strict=True):
        for name in b:
            if "time" not in name and "per_second" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_model_all_in_float64(tmp_path, beta):
    """TRL's own head, which is fused with the log-softmax, rounds to float32."""
    options = {"prompts": EQUAL, "beta": beta, "num_iterations": 2, "per_device_train_batch_size": 16}
    runs = [run(tmp_path, True, model=all_float64(tmp_path), told=told, **options) for told in (False, True)]
    (packed, ours), (_, theirs) = runs
    assert packed._packing.unfit == ""
    assert_close(ours, theirs, 1e-6)
    assert theirs.abs().max() > 1e-4


def rows(seed=0):
    """Rows of two prompts that begin alike, in no order; one has no completion, one ends early."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 9, 8, 4]]).repeat_interleave(4, 0)
    ids = torch.cat([prompts, torch.randint(3, 5, (8, 6), generator=draw)], dim=1)
    ends = torch.tensor([6, 5, 6, 2, 6, 0, 6, 3]).unsqueeze(1)
    mask = torch.cat([prompts > 0, torch.arange(6) < ends], dim=1)
    order = torch.randperm(8, generator=draw)
    return ids[order], mask[order].long()


def prefixes(ids, mask):
    """Every distinct beginning of the rows, by Python's own sets."""
    found = set()
    for row, own in zip(ids.tolist(), mask.bool().tolist(), strict=True):
        tokens = tuple(token for token, there in zip(row, own, strict=True) if there)
        found |= {tokens[: n + 1] for n in range(len(tokens))}
    return found


def test_the_forest_predicts_each_prefix_once():
    ids, mask = rows()
    forest = make_forest(ids, mask, 6)
    found = [prefix for prefix in prefixes(ids, mask) if len(prefix) > 1]  # what its last token's predecessor predicts
    assert forest.ids.shape == (1, len(found))
    assert sorted(forest.depth[0].tolist()) == sorted(len(prefix) - 2 for prefix in found)
    assert sorted(forest.ids[0].tolist()) == sorted(prefix[-2] for prefix in found)
    prompts = {tuple(row[own.bool()].tolist()) for row, own in zip(ids[:, :5], mask[:, :5], strict=True)}
    scored = [prefix for prefix in found if any(len(prefix) > len(p) and prefix[: len(p)] == p for p in prompts)]
    assert sorted(forest.label[forest.label != IGNORED].tolist()) == sorted(prefix[-1] for prefix in scored)
    assert int(forest.scored.sum()) == int(mask[:, -6:].sum()) > len(scored)  # some are shared


def test_log_probs_entropies_and_gradients_of_rows(tmp_path):
    ids, mask = rows()
    model = all_float64(tmp_path)
    forest = make_forest(ids, mask, 6)
    logps, entropies = forest_logps(model, model.config, forest, temperature=0.7, entropies=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -7:-1] / 0.7
    all_logps = logits.log_softmax(-1)
    there = mask[:, -6:].bool()
    expected = all_logps.gather(-1, ids[:, -6:, None])[..., 0].masked_fill(~there, 0)
    assert_close(logps, expected)
    assert_close(entropies, -(all_logps.exp() * all_logps).sum(-1).masked_fill(~there, 0).detach())
    weigh = torch.linspace(-1, 1, 48, dtype=torch.float64).view(8, 6)
    trained = list(model.parameters())
    ours, theirs = (torch.autograd.grad((found * weigh).sum(), trained) for found in (logps, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.skipif(not HAS_FUSED_HEAD, reason="this version of TRL takes log-probs from all logits")
def test_the_fused_head_gives_what_the_logits_do():
    ids, mask = rows()
    forest = make_forest(ids, mask, 6)
    plain, fused = tiny().float(), tiny().float()
    grpo_trainer.add_fused_lm_head(fused, temperature=0.7, outputs=("log_probs", "entropy"))
    answers = [
        forest_logps(model, model.config, forest, temperature=0.7, entropies=True, fused=model is fused)
        for model in (plain, fused)
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert_close(theirs, ours, 1e-5)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(logps.sum(), list(model.parameters()))])
        for model, (logps, _) in zip((plain, fused), answers, strict=True)
    ]
    assert_close(gradients[1], gradients[0], 1e-5)


def test_long_forests_and_checkpointed_layers():
    """The mask goes in by blocks of 128 tokens and more, in the backward pass too, where layers are computed again."""
    ids = torch.randint(3, 10, (40, 24), generator=torch.Generator().manual_seed(0))
    forest = make_forest(ids, torch.ones_like(ids), 16)
    assert forest.ids.shape[1] > 3 * 128
    gradients = []
    for attention, checkpointed in (("sdpa", False), (TREE, False), (TREE, True)):
        model = tiny().train()
        model.set_attn_implementation(attention)
        if checkpointed:
            name = checkpointing_name(model)
            getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
        logps, _ = forest_logps(model, model.config, forest)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(logps.sum(), list(model.parameters()))]))
    assert_close(gradients[1], gradients[0], 1e-6)
    assert_close(gradients[2], gradients[1])


def test_tokens_through_the_model(tmp_path):
    """What the model is run on in training: a token for each distinct prediction in TRL's micro-batch, not its rows."""
    seen, batches = [], []
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": True}, deterministic=True, max_steps=2)
    made.model.model.register_forward_pre_hook(
        lambda module, given, keywords: seen.append(keywords["input_ids"].numel()) if module.training else None,
        with_kwargs=True,
    )
    ask = made._compute_loss

    def keep(model, inputs):
        batches.append({name: inputs[name] for name in inputs if name.endswith(("ids", "mask"))})
        seen.clear()
        loss = ask(model, inputs)
        batches[-1]["seen"] = list(seen)
        return loss

    made._compute_loss = keep
    made.train()
    for batch in batches[1:]:  # the first asks the probe too
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        predicted = [prefix for prefix in prefixes(ids, mask) if len(prefix) > 1]
        assert batch["seen"] == [len(predicted)]
        assert len(predicted) < ids.numel() / 2


def test_sizes_are_counted_without_laying_out():
    ids, mask = rows()
    for given in (ids, torch.arange(ids.numel()).view_as(ids)):
        forest = make_forest(given, mask, 6)
        assert forest_sizes(given, mask, 6) == (forest.ids.numel(), int((forest.label != IGNORED).sum()))


def test_the_estimated_cost_of_a_forest_is_near_that_of_its_blocks():
    costs = forward_costs(tiny())
    draw = torch.Generator().manual_seed(0)
    for B, S, shared in ((8, 100, 60), (16, 60, 10), (4, 200, 0)):
        ids = torch.randint(3, 40, (B, S), generator=draw)
        ids[:, :shared] = ids[:1, :shared]
        mask = torch.ones_like(ids)
        forest = make_forest(ids, mask, S - shared)
        blocks = [mask for _, mask in ancestor_blocks(forest.end)]
        tokens, scored = forest_sizes(ids, mask, S - shared)
        pairs = sum(block.numel() for block in blocks)
        exact = costs.of(tokens=tokens, scored=scored, pairs=pairs, blocks=len(blocks))
        assert forest_cost(tokens, scored, S, costs) == pytest.approx(exact, rel=0.2)


def test_auto_takes_the_cheaper_way(tmp_path):
    """The same rows packed where tokens are dear, and left to TRL where pairs are, or where nothing is shared."""
    ids, mask = rows()
    apart = torch.arange(ids.numel()).view_as(ids)
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": "auto"})
    assert made._packing.costs == forward_costs(made.model)
    full = torch.ones_like(mask)
    for given, there, pair, packed in ((ids, mask, 0.1, True), (ids, mask, 1e3, False), (apart, full, 0.0, False)):
        made._packing.costs = ForwardCosts(token=1.0, scored=0.0, pair=pair, call=0.0)
        assert bool(made._packing._forests(given, there, 6, 8)) == packed


def test_dropout_is_told_and_trained_unpacked(tmp_path):
    options = {"prompts": EQUAL, "max_steps": 1}
    made = trainer(ProcessGRPOTrainer, tmp_path, model=all_float64(tmp_path, 0.5), more={"pack": True}, **options)
    with pytest.warns(UserWarning, match="updates are not packed: its log-probs differ by .* as dropout would"):
        made.train()
    assert "dropout" in made._packing.unfit


def test_the_probe_draws_nothing_of_the_runs(tmp_path):
    """A resumed run asks it again, and must go on as an unbroken one: dropout is what draws."""
    made = trainer(ProcessGRPOTrainer, tmp_path, model=all_float64(tmp_path, 0.5), more={"pack": True})
    made.model.train()
    state = torch.random.get_rng_state()
    ids, mask = rows()
    with pytest.warns(UserWarning, match="as dropout would make them"):
        made._get_per_token_logps_and_entropies(made.model, ids, mask, 6)
    asked = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    made._get_per_token_logps_and_entropies(made.model, ids, mask, 6)
    assert torch.equal(asked, torch.random.get_rng_state())
    assert not torch.equal(asked, state)  # TRL's own pass draws


def test_what_is_saved_names_no_attention_of_ours(tmp_path):
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": "auto"})
    made.save_model(str(tmp_path / "saved"))
    assert made.model.config._attn_implementation == TREE
    assert TREE not in json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8")).values()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config._attn_implementation != TREE


def test_a_model_that_takes_no_mask_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("minigrpo.integrations.packed.unfit_kind", lambda model: "attention 'its own' takes no mask")
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": True}, deterministic=True, max_steps=1)
    with pytest.warns(UserWarning, match="updates are not packed: attention 'its own' takes no mask"):
        made.train()
    assert made._packing.unfit == "attention 'its own' takes no mask"


def test_shifted_positions_are_told(tmp_path):
    """GPT-2 in TRL counts the padding on the left into its positions; packed it would not."""
    size, rates = (
        len(AutoTokenizer.from_pretrained(TINY)),
        dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0),
    )
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, **rates)
    made = trainer(
        ProcessGRPOTrainer,
        tmp_path,
        model=GPT2LMHeadModel(config),
        more={"pack": True},
        prompts=EQUAL,
        max_steps=1,
    )
    with pytest.warns(UserWarning, match="updates are not packed: its log-probs differ by"):
        made.train()
    assert "nats from TRL's own" in made._packing.unfit


def test_whole_groups_by_hand():
    shuffled = torch.tensor([6, 1, 0, 5, 3, 2, 7, 4])  # rows 0–3 are one group, 4–7 the other
    batches = [
        {ROW: part, "advantages": part * 1.5, "items": torch.tensor(8), "nothing": None} for part in shuffled.split(4)
    ]
    first, second = whole_groups(batches, 4)
    assert first[ROW].tolist() == [4, 5, 6, 7]  # the group of row 6, which came first
    assert second["advantages"].tolist() == [0.0, 1.5, 3.0, 4.5]
    assert first["items"] == 8
    assert first["nothing"] is None


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_rows_beyond_a_sliding_window_are_told(tmp_path, wanted):
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": wanted}, deterministic=True, max_steps=2)
    made._packing.window = 4
    with pytest.warns(UserWarning, match="some updates are not packed: the model's sliding window of 4 tokens") as told:
        made.train()
    assert sum("not packed" in str(warning.message) for warning in told) == 1
    assert made._packing.unfit == ""


def test_images_are_told(tmp_path):
    """What TRL would give the model beside tokens."""
    made = trainer(ProcessGRPOTrainer, tmp_path, more={"pack": "auto"})
    made._packing.unfit = ""
    ids, mask = rows()
    given = {"others": {"pixel_values": ids}, "batch_size": None, "temperature": 1.0, "entropies": False}
    with pytest.warns(UserWarning, match="some updates are not packed: the model is given more than tokens"):
        assert made._packing.answer(made.model, made.model.config, ids, mask, 6, None, **given) is None


def test_bfloat16(tmp_path):
    """Under autocast the two ways differ by what a bfloat16 holds, and far less than another objective does."""
    low = {"bf16": True, "prompts": EQUAL}
    runs = {}
    for objective, told, options in (("lambda_grpo", False, low), ("lambda_grpo", True, low), ("grpo", True, low)):
        made, runs[objective, told] = run(tmp_path, True, objective, model=tiny().float(), told=told, **options)
        assert told or made._packing.unfit == ""
    ours, theirs, other = runs.values()
    gap = (ours - theirs).norm() / theirs.norm()
    assert gap < 0.05 < 0.2 < (other - theirs).norm() / theirs.norm()


def test_evaluation_is_packed_too(tmp_path):
    more = {"pack": True, "eval_dataset": Dataset.from_dict({"prompt": PROMPTS})}
    made = trainer(ProcessGRPOTrainer, tmp_path, more=more, deterministic=True, per_device_eval_batch_size=8)
    blocks = []
    made.model.model.register_forward_pre_hook(
        lambda module, given, keywords: blocks.append("blocks" in keywords), with_kwargs=True
    )
    assert "eval_loss" in made.evaluate()
    assert not made._packing.unfit
    assert blocks.count(False) == 1  # TRL's own, for the probe
    assert blocks.count(True) > len(PROMPTS) / 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pack": "always"}, "pack must be True, False or 'auto', got 'always'"),
        ({"pack": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, "must be a multiple of"),
        (
            {"pack": True, "columns": {"image": ["a.png"] * 8}},
            "train_dataset must have no column 'image' with pack=True",
        ),
    ],
)
def test_refusals(tmp_path, options, sentence):
    more = {"pack": options.pop("pack")}
    with pytest.raises(ValueError, match=sentence):
        trainer(ProcessGRPOTrainer, tmp_path, model="no such model", more=more, **options)


def test_off_is_trl_and_no_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = trainer(ProcessGRPOTrainer, tmp_path, deterministic=True, max_steps=1)
        made.train()
    assert made._packing.unfit == "pack is False"
    assert ROW not in made._buffered_inputs[0]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    options = {"beta": 0.04, "num_iterations": 2, "max_steps": 4, "learning_rate": 0.001}
    two = launch(tmp_path / "two", 2, objective="lambda_grpo", pack=True, **options)
    _, one = run(tmp_path, True, gradient_accumulation_steps=2, **options)
    assert_close(vector(two["weights"]) - vector(dict(tiny().named_parameters())), one, 1e-5)
    assert one.abs().max() > 1e-4


def test_auto_is_the_default(tmp_path):
    small = {"max_completion_length": 4, "num_generations": 4, "report_to": "none"}
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **small, **OFF)
    made = ProcessGRPOTrainer(tiny().float(), reward, args, Dataset.from_dict({"prompt": PROMPTS}))
    assert made._packing.wanted == "auto"
    assert made._packing.costs == forward_costs(made.model)
