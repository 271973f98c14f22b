"""Table 1 at the paper's own size: a language model walks the trap, its tokens " L" and " R", all others masked.

One pass over the tree's 15 inner nodes, packed into one sequence, gives the exact probability of all 16 paths; the
samples, the gradient and the score come from it.
Departures: the paper's policy is GPT-2 small with five seeds, and its optimiser is not stated. Here it is any model
under AdamW without weight decay; seeds are paired between objectives, and come in twos that mirror each other's target,
so that a model that prefers L is asked for R as often. The score is the target's probability, of which the paper's
frequency is a sample. A run ends early when that probability says that it is decided, and keeps it to its last update.
Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from minigrpo.envs import PathTreeEnv
from minigrpo.experiments.trap import (
    CELLS,
    COMPARED,
    all_paths,
    draw_leaves,
    uniform_numbers,
)
from minigrpo.files import write_text
from minigrpo.llm.models import load_model
from minigrpo.losses import policy_loss
from minigrpo.objectives import OBJECTIVES
from minigrpo.packing import ancestor_mask, inner_tokens, pack
from minigrpo.settings import setting
from minigrpo.stats import interval

GPT2_RANDOM = (
    "gpt2-random"  # GPT-2 small, 124 million parameters, drawn from its config by the seed
)
GPT2_TOKENS = (50256, 406, 371)  # what its tokenizer makes of PROMPT and of ACTIONS
PROMPT = "<|endoftext|>"  # the begin of a document, for GPT-2 and SmolLM2
ACTIONS = (" L", " R")

FOUND, LOST = 0.95, 1e-5  # a run is decided when the target's probability
STEADY = 10  # was above or below this after so many updates in a row


@dataclass(frozen=True)
class LanguageTrap:
    """Settings of the trap with a language model."""

    policy: str = setting("smollm2-135m", f"a model of `llm train`, or {GPT2_RANDOM}")
    learning_rate: float = setting(1e-5, "of AdamW")
    group_size: int = setting(16, "G, completions of a group")
    depth: int = setting(4, "of the tree, T")
    updates: int = setting(250, "rounds of sampling, at least 50")
    window: int = setting(50, "the score is the mean over this many last updates")

    def __post_init__(self) -> None:
        """Refuse settings out of range with a ValueError that names the field."""
        for name, least in (("group_size", 2), ("depth", 1), ("updates", self.window)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")


# A run: n, r_neg, objective, learning rate, seed.
Run = tuple[int, float, str, float, int]
COLUMNS = (
    *("policy", "n", "r_neg", "objective", "learning_rate", "seed", "target"),
    *("update", "p_target", "p_branch"),
)


class TreePolicy:
    """A model on the tree of its own walks: every inner node is one token of one sequence."""

    def __init__(self, model: PreTrainedModel, prompt: Tensor, actions: Tensor, depth: int) -> None:
        """Lay the tree out once.

        Args:
            model: causal, in float32; it is trained.
            prompt: int (L,), the tokens before the first action.
            actions: int (2,), the tokens of left and right.
            depth: T.
        """
        self.model = model.eval().requires_grad_()
        self.paths, _ = all_paths(depth)  # (leaves, T)
        self.actions = actions
        walks = actions[self.paths].unsqueeze(0)  # (1, leaves, T)
        prompts = prompt.unsqueeze(0)
        tree = pack(prompts, torch.ones_like(prompts).bool(), walks, torch.ones_like(walks).bool())
        self.ids, self.depth, end, parent = inner_tokens(tree)  # (1, M)
        self.mask = ancestor_mask(end).unsqueeze(1)  # (1, 1, M, M)
        self.at = parent[0, tree.place[0]]  # (leaves, T), the node before each action

    def leaf_logps(self) -> Tensor:
        """ln π of each action of each path, all other tokens masked: float (leaves, T), in nats."""
        hidden = self.model.base_model(
            input_ids=self.ids,
            position_ids=self.depth,
            attention_mask=self.mask,
            use_cache=False,
        ).last_hidden_state[0]  # (M, W)
        head = self.model.get_output_embeddings().weight[self.actions]  # (2, W)
        logps = (hidden @ head.T).log_softmax(dim=-1)  # (M, 2)
        return logps[self.at, self.paths]


def load_tree_policies(config: LanguageTrap) -> Callable[[int], TreePolicy]:
    """Prepare a policy for each seed: the model's own weights, or for GPT2_RANDOM those that the seed draws.

    Returns: a function of the seed; its policy is new, whatever was trained before.

    Raises: as `load_model`; ValueError where a model's " L" or " R" is more than one token.
    """
    if config.policy == GPT2_RANDOM:
        prompt, *actions = GPT2_TOKENS

        def drawn(seed: int) -> TreePolicy:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = GPT2LMHeadModel(GPT2Config())
            return TreePolicy(model, torch.tensor([prompt]), torch.tensor(actions), config.depth)

        return drawn
    loaded = load_model(config.policy)
    ids = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ACTIONS]
    if any(len(tokens) != 1 for tokens in ids) or ids[0] == ids[1]:
        raise ValueError(
            f"policy {config.policy}: ' L' and ' R' must be one token each, they are {ids}"
        )
    prompt = loaded.tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def own(seed: int) -> TreePolicy:
        model = copy.deepcopy(loaded.model)
        return TreePolicy(model, prompt[0], torch.tensor(ids)[:, 0], config.depth)

    return own


def mirrored_target(seed: int, depth: int) -> list[int]:
    """The target of a seed: drawn for the even ones, its mirror image for the odd one after."""
    target = np.random.default_rng(seed // 2).integers(2, size=depth)
    return (target ^ (seed % 2)).tolist()


def train_language_trap(
    policy: TreePolicy,
    config: LanguageTrap,
    objective: str,
    cell: tuple[int, float],
    seed: int,
    *,
    early: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[dict]:
    """Train one policy in one cell of the trap.

    Args:
        policy: that is trained.
        config: of the run.
        objective: of OBJECTIVES.
        cell: n, and r_neg.
        seed: of the target and of the samples; equal for both objectives.
        early: whether to end when the run is decided.
        progress: called after each update.

    Returns:
        A row for the policy before the first update and after each: {update, p_target, p_branch}, the probability of
        the target and of its first n actions.

    Raises:
        ValueError: where a probability is no longer a number.
    """
    env = PathTreeEnv(config.depth, *cell, target=mirrored_target(seed, config.depth))
    paths = policy.paths
    rewards = torch.tensor([env.outcome(path) for path in paths.tolist()])  # (leaves,)
    target = paths.tolist().index(list(env.target))
    branch = (paths[:, : env.n] == paths[target, : env.n]).all(dim=1)  # (leaves,)
    draws = uniform_numbers(seed, config.updates, config.group_size)
    mask = torch.ones(config.group_size, config.depth, dtype=torch.bool)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
    )
    rows: list[dict] = []
    for update in range(config.updates):
        # 1. One pass: the probability of every path, and G of them.
        leaf_logps = policy.leaf_logps()  # (leaves, T)
        rows.append(_row(update, leaf_logps, target, branch, config))
        if early and _decided(rows):
            return rows
        leaves = draw_leaves(leaf_logps.detach().double()[None], draws[update][None])[0]  # (G,)

        # 2. The loss of this group, and 3. one update.
        logps = leaf_logps[leaves]  # (G, T)
        advantages, step_weights = OBJECTIVES[objective](rewards[leaves], paths[leaves], mask)
        loss = policy_loss(logps, logps.detach(), advantages, step_weights, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        progress()
    with torch.no_grad():
        rows.append(_row(config.updates, policy.leaf_logps(), target, branch, config))
    return rows


def _row(
    update: int, leaf_logps: Tensor, target: int, branch: Tensor, config: LanguageTrap
) -> dict:
    """What the policy would do after so many updates."""
    chances = leaf_logps.detach().double().sum(dim=1).exp()  # (leaves,)
    if not chances.isfinite().all():
        raise ValueError(
            f"learning_rate {config.learning_rate:g} broke the run at update {update}: "
            "a probability is no longer a number; lower it"
        )
    p_target, p_branch = chances[target].item(), chances[branch].sum().item()
    return {"update": update, "p_target": p_target, "p_branch": p_branch}


def _decided(rows: Sequence[dict]) -> bool:
    """Whether the target was found, or lost, for STEADY updates."""
    last = [row["p_target"] for row in rows[-STEADY:]]
    return len(last) == STEADY and (min(last) > FOUND or max(last) < LOST)


# ---------------------------------------------------------------------------------------------------------------------
# Many runs, kept in one file
# ---------------------------------------------------------------------------------------------------------------------


def language_trap(
    config: LanguageTrap,
    learning_rates: Sequence[float],
    seeds: int,
    file: Path | None = None,
    *,
    progress: Callable[[str], object] = lambda told: None,
) -> Generator[dict, None, bool]:
    """Train the six cells of Table 1, both objectives, paired seeds 0 … seeds − 1, at each learning rate.

    Args:
        config: of the runs, but for the learning rate.
        learning_rates: of AdamW.
        seeds: how many, even: two mirror each other's target.
        file: a CSV with COLUMNS, in which each finished run is kept; its runs are read and not trained again.
        progress: told, after each run, what it was and how it ended.

    Yields:
        The rows of `train_language_trap` of each run, with the other COLUMNS.

    Returns:
        True, at the end.

    Raises:
        ValueError: for an odd number of seeds, or a file of another policy.
    """
    if seeds < 2 or seeds % 2:
        raise ValueError(
            f"seeds must be even and at least 2, got {seeds}: two mirror each other's target"
        )
    kept = read_curves(file, config.policy) if file is not None and file.exists() else {}
    make = None
    for lr, seed, cell, objective in itertools.product(
        learning_rates, range(seeds), CELLS, COMPARED
    ):
        run: Run = (*cell, objective, lr, seed)
        if run not in kept:
            make = make or load_tree_policies(config)
            run_config = dataclasses.replace(config, learning_rate=lr)
            rows = train_language_trap(make(seed), run_config, objective, cell, seed)
            kept[run] = [_identity(config.policy, run, config.depth) | row for row in rows]
            if file is not None:
                write_text(file, curves_text(kept))
            end = rows[-1]
            progress(f"{run}: after {end['update']} updates P(target) = {end['p_target']:.4f}")
        yield from kept[run]
    return True


def _identity(policy: str, run: Run, depth: int) -> dict:
    """What a row says of its run."""
    n, r_neg, objective, lr, seed = run
    target = "".join(PathTreeEnv.action_names[a] for a in mirrored_target(seed, depth))
    return {
        "policy": policy,
        "n": n,
        "r_neg": r_neg,
        "objective": objective,
        "learning_rate": lr,
        "seed": seed,
        "target": target,
    }


def curves_text(runs: dict[Run, list[dict]]) -> str:
    """Runs as CSV, with five digits of a probability."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for rows in runs.values():
        writer.writerows(
            row | {name: f"{row[name]:.5g}" for name in ("p_target", "p_branch")} for row in rows
        )
    return text.getvalue()


def read_curves(file: Path, policy: str | None = None) -> dict[Run, list[dict]]:
    """Read the runs of a CSV.

    Args:
        file: with COLUMNS.
        policy: that it must be of; None for any.

    Raises: ValueError for other columns or another policy.
    """
    runs: dict[Run, list[dict]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{file} must have the columns {', '.join(COLUMNS)}")
        for row in reader:
            if policy not in (None, row["policy"]):
                raise ValueError(
                    f"{file} holds runs of {row['policy']}, not of {policy}: name another"
                )
            run = (
                int(row["n"]),
                float(row["r_neg"]),
                row["objective"],
                float(row["learning_rate"]),
                int(row["seed"]),
            )
            numbers = {name: float(row[name]) for name in ("p_target", "p_branch")}
            identity = _identity(row["policy"], run, len(row["target"]))
            runs.setdefault(run, []).append(identity | {"update": int(row["update"])} | numbers)
    return runs


def language_trap_rows(
    curves: Sequence[dict], config: LanguageTrap
) -> tuple[list[dict], list[dict]]:
    """Score runs: the target's mean probability over the last updates, with a 95% bootstrap interval over seeds.

    Args:
        curves: rows of `language_trap`.
        config: that they were made with.

    Returns:
        Rows and paired differences, with the keys of `trap_rows`; and in the rows prior, the target's mean probability
        before the first update, and found, the share of runs whose target ends above one half.
    """
    runs: dict[Run, list[float]] = {}
    for row in curves:
        run = (row["n"], row["r_neg"], row["objective"], row["learning_rate"], row["seed"])
        runs.setdefault(run, []).append(row["p_target"])
    rates = sorted({run[3] for run in runs})
    rows, differences = [], []
    for lr, cell in itertools.product(rates, CELLS):
        label = {"policy": config.policy, "optimizer": "adamw", "lr": lr}
        found = {}
        for objective in COMPARED:
            taken = [p for run, p in sorted(runs.items()) if run[:4] == (*cell, objective, lr)]
            scores = np.array([_score(p, config) for p in taken])
            found[objective] = scores
            rows.append(
                {"n": cell[0], "r_neg": cell[1], "objective": objective}
                | label
                | interval(scores)
                | {"prior": float(np.mean([p[0] for p in taken]))}
                | {"found": float(np.mean(scores > 0.5))}
            )
        first, other = COMPARED
        if len(found[first]) == len(found[other]):
            differences.append(
                {"n": cell[0], "r_neg": cell[1], "difference": f"{other} − {first}"}
                | label
                | interval(found[other] - found[first])
            )
    return rows, differences


def _score(p_target: Sequence[float], config: LanguageTrap) -> float:
    """The mean over the last updates; a run that ended early keeps its last value."""
    whole = [*p_target, *[p_target[-1]] * (config.updates - len(p_target))]
    return float(np.mean(whole[config.updates - config.window : config.updates]))
