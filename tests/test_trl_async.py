"""The objectives in TRL's asynchronous trainer against `minigrpo.policy_loss`; stand-ins for server and kernel."""

import dataclasses
import queue
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="trl is optional: make test-trl runs these")
pytest.importorskip("trl.experimental.async_grpo.packing", reason="an older TRL has no asynchronous trainer with trees")

from datasets import Dataset
from groups import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer, packing
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
from trl_runs import OFF

import minigrpo
from minigrpo.integrations.async_trl import PUSH, AsyncProcessGRPOTrainer, WholeGroups, collate_pushed, pushed
from minigrpo.integrations.trl import FROM_ADVANTAGES
from minigrpo.llm.models import TINY

G, PROMPTS = 4, [[5, 6, 7], [8, 9]]


def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale=None, causal, window_size):
    """What FlashAttention's call of this name computes: each segment of queries sees the end of its own keys."""
    parts = []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        query, key, value = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        places = torch.arange(d - c)
        mask = places <= places[-(b - a) :].unsqueeze(1)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=True
            ).transpose(0, 1)
        )
    return torch.cat(parts)


class Worker:
    """A rollout worker that has all its samples from the start, those of the groups mixed; then some for the loader.

    accelerate fetches a batch more than is used.
    """

    def __init__(self, groups):
        self.rollout_buffer, self.metrics_queue = queue.Queue(), queue.Queue()
        for number, part in enumerate((groups, groups_of(9))):
            for samples in zip(*part, strict=True):
                for sample in samples:
                    self.rollout_buffer.put(dataclasses.replace(sample, group_id=sample.group_id + 100 * number))

    def start(self):
        """Nothing to begin."""

    def stop(self):
        """Nothing to end."""

    def update_model_version(self, version):
        """The samples are what they are."""

    def check_health(self, stale_after_s):
        raise AssertionError("the queue is empty: samples were held back")


class NoTransfer:
    """No server to send weights to."""

    def __getattr__(self, name):
        return lambda *arguments, **keywords: None


def groups_of(seed=0, old=None):
    """Two groups of completions that share beginnings and end early; their rewards, and old log-probs by prefix."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number, prompt in enumerate(PROMPTS):
        rewards = torch.rand(G, generator=draw)
        advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-8)
        group = []
        for i in range(G):
            length = int(torch.randint(2, 7, (), generator=draw))
            completion = torch.randint(3, 5, (length,), generator=draw).tolist()
            ids = np.array(prompt + completion)
            mask = np.array([0] * len(prompt) + [1] * length)
            group.append(
                RolloutSample([], [], ids, mask, np.zeros(len(ids), dtype=np.float32), float(advantages[i]), 0, number,
                              {"reward": float(rewards[i])})
            )  # fmt: skip
        made.append(group)
    return made


def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def logps_of(model, sample):
    """ln π of a sample's completion, by a plain pass over its row."""
    ids = torch.tensor(sample.input_ids).unsqueeze(0)
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[torch.tensor(sample.completion_mask[1:]).bool()]


def padded(groups):
    """Completions of groups of one length each: ids and mask (P, G, T)."""
    rows = [[s.input_ids[s.completion_mask == 1] for s in group] for group in groups]
    T = max(len(row) for group in rows for row in group)
    ids, mask = torch.zeros(len(groups), G, T, dtype=torch.long), torch.zeros(len(groups), G, T, dtype=torch.bool)
    for p, group in enumerate(rows):
        for i, row in enumerate(group):
            ids[p, i, : len(row)], mask[p, i, : len(row)] = torch.tensor(row), True
    return ids, mask


def trained(tmp_path, monkeypatch, kind, groups, *, micro_batch, **more):
    """One update of TRL's trainer on the groups; the change of its weights."""
    kernel = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setattr(packing, "_flash_attn", lambda: kernel)
    monkeypatch.setattr(packing, "get_target_dtype", lambda query, module: None)
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda accelerator, dtype: None)  # of a card
    args = AsyncGRPOConfig(
        str(tmp_path),
        num_generations=G,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(groups) * G // micro_batch,
        max_steps=1,
        token_budget=0,
        epsilon=0.2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        max_staleness=100,
        dtype="float32",
        **OFF,
    )
    made = kind(
        str(TINY),
        lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["1+1="]}),
        processing_class=AutoTokenizer.from_pretrained(TINY),
        rollout_worker=Worker(groups),
        weight_transfer=NoTransfer(),
        **more,
    )
    start = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    made.train()
    return torch.cat([(value.detach() - start[name]).flatten() for name, value in made.model.named_parameters()])


@pytest.mark.parametrize("objective", FROM_ADVANTAGES)
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_an_update_is_that_of_policy_loss(tmp_path, monkeypatch, objective, micro_batch):
    """Groups whole in one micro-batch, and spread over several, whose means TRL averages."""
    groups = groups_of()
    first = model()
    noise = torch.Generator().manual_seed(1)
    shift = {}
    for group in groups:
        for sample in group:
            own = np.where(sample.completion_mask == 1)[0]
            logps = logps_of(first, sample).detach()
            for t, place in enumerate(own):  # the policy of the sampler is another one, and the same for equal prefixes
                prefix = (sample.group_id, *sample.input_ids[: place + 1].tolist())
                shift.setdefault(prefix, float(0.4 * torch.randn((), generator=noise)))
                sample.old_log_probs[place] = logps[t] + shift[prefix]
    ours = trained(tmp_path, monkeypatch, AsyncProcessGRPOTrainer, groups, micro_batch=micro_batch, objective=objective)

    ids, mask = padded(groups)
    advantages = torch.tensor([[sample.advantage for sample in group] for group in groups])
    A, w = FROM_ADVANTAGES[objective](advantages, ids, mask)
    # as they leave the queue: each group when its last sample came
    leaving = [*groups[0], *groups[1]]
    weights = list(first.parameters())
    gradient = torch.zeros(sum(weight.numel() for weight in weights))
    clipped = 0
    for start in range(0, len(leaving), micro_batch):
        part = leaving[start : start + micro_batch]
        loss, tokens = 0.0, sum(int(sample.completion_mask.sum()) for sample in part)
        for sample in part:
            p = sample.group_id
            i = [other is sample for other in groups[p]].index(True)
            T = int(mask[p, i].sum())
            logps = logps_of(first, sample)[None]
            old = torch.tensor(sample.old_log_probs[sample.completion_mask == 1])[None]
            ratio = (logps - old).exp()
            clipped += int(((ratio - 1).abs() > 0.2).sum())
            tensors = (x[p, i : i + 1, :T] for x in (A, w))
            loss = loss + minigrpo.policy_loss(
                logps, old, *tensors, torch.ones(1, T, dtype=torch.bool), epsilon=0.2, num_tokens=tokens
            )
        gradient += torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]) * micro_batch / len(leaving)
    assert clipped > 3
    assert_close(ours, -0.01 * gradient, 1e-4)
    assert gradient.abs().max() > 1e-3


def test_grpo_is_trls_own_and_the_others_are_not(tmp_path, monkeypatch):
    moved = {}
    for name, kind, more in (
        ("trl", AsyncGRPOTrainer, {}),
        ("grpo", AsyncProcessGRPOTrainer, {"objective": "grpo"}),
        ("lambda_grpo", AsyncProcessGRPOTrainer, {}),
    ):
        groups = groups_of()
        moved[name] = trained(tmp_path / name, monkeypatch, kind, groups, micro_batch=8, **more)
    assert_close(moved["grpo"], moved["trl"], 1e-5)
    assert (moved["lambda_grpo"] - moved["trl"]).norm() > 0.1 * moved["trl"].norm()


def test_none_leaves_before_its_group_is_whole():
    groups = groups_of()
    source = queue.Queue()
    held = WholeGroups(source, G, "lambda_grpo")
    for sample in (*groups[0][:3], *groups[1][:3]):
        source.put(sample)
    with pytest.raises(queue.Empty):
        held.get(timeout=0.01)
    assert held.qsize() == 6
    source.put(groups[1][3])
    assert [held.get(timeout=0.01) for _ in range(G)] == groups[1]
    assert held.qsize() == 3
    source.put(groups[0][3])
    assert [held.get(timeout=0.01).group_id for _ in range(G)] == [0] * G


def test_weights_by_hand():
    """Completions 3 3 4, 3 3, 4 of one prompt: the first two share two tokens, the second ends there."""
    group = groups_of()[0][:3]
    for sample, completion, advantage in zip(group, ([3, 3, 4], [3, 3], [4]), (1.0, -1.0, 0.5), strict=True):
        sample.input_ids = np.array([5, 6, 7, *completion])
        sample.completion_mask = np.array([0, 0, 0, *[1] * len(completion)])
        sample.advantage = advantage
    found = [sample.metrics[PUSH].tolist() for sample in pushed(group, "lambda_grpo")]
    assert found == [[0.5, 0.5, 1.0], [-0.5, -0.5], [0.5]]
    found = [sample.metrics[PUSH].tolist() for sample in pushed(group, "prm")]
    assert found == [[0.0, 0.0, 1.0], [0.0, 0.0], [0.5]]


def test_another_number_of_terms_is_refused():
    row = packing.TreeRow()
    row.samples = [{"metrics": {PUSH: torch.ones(3)}}]
    collate = collate_pushed(lambda examples: {"advantages": torch.ones(1, 4)})
    with pytest.raises(ValueError, match=r"a term for each trained token, \(1, 3\), got \(1, 4\)"):
        collate([[row]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objective": "rloo"}, "objective must be one of grpo, lambda_grpo, prm, tempo, got 'rloo'"),
        ({"tools": [print]}, "tools must be left out: a tool's tokens are no process steps"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        AsyncProcessGRPOTrainer("no such model", **options)
