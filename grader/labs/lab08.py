"""Lab 08, silent bugs: the six functions of a training script, right and broken, and the runs that show them.

Which run has which bug stands in grader/truth.json, which the students' archive leaves out: the public check looks at
the form of a diagnosis alone. `python -m grader.labs.lab08` trains the runs with the script in solutions/ and writes
grader/labs/lab08_runs.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigrpo
from grader.cases import draw_completions, draw_logps, draw_rewards, pad
from grader.exercise import Case, Exercise, Mistake, Part

# lab08.1: which run has which bug

CAUSES = {
    "mask too short": "the mask ends one token early, so that the last token is never trained",
    "mask too long": "the mask takes in a token of padding, which is trained like a real one",
    "padding shared": "padding is compared like tokens, so that sets are counted too large",
    "sets without prefix": "sets are counted by the token alone, not by the whole prefix",
    "no gradient": "the gradient of the reward term is zero, though the loss is not",
    "stale samples": "samples of an older policy are used as if they were the policy's own",
    "std of the batch": "advantages are divided by the spread of all prompts together",
    "no baseline": "advantages are not centred, so that every sample is pushed up",
    "KL rewarded": "distance from the reference earns reward instead of costing it",
    "KL too weak": "the KL term is scaled down, so that it holds nothing back",
    "mean of means": "every micro-batch counts alike, however many tokens it holds",
    "rate too small": "the learning rate is too small for the number of updates",
}
NAMES = "ABCDEF"  # of the runs with a bug
KEYS = f"the answer must be a dict with the keys {', '.join(NAMES)}"
VALUES = "the cause of each run must be one of the keys of CAUSES"
TRUTH = Path(__file__).parents[1] / "truth.json"
RECORDED = Path(__file__).with_name("lab08_runs.json")


def truth() -> dict[str, str]:
    """The cause of each run. Raises OSError where the file is not, as in the students' archive."""
    return json.loads(TRUTH.read_text(encoding="utf-8"))["lab08.1"]


def diagnosis() -> dict[str, str]:
    """The truth, or where that is not known any answer of the right form."""
    return truth() if TRUTH.exists() else dict.fromkeys(NAMES, next(iter(CAUSES)))


def draw_run(run: str):
    def draw(rng: np.random.Generator) -> Case:
        truth()  # nobody is graded without it
        return {"run": run}

    return draw


def judge_diagnosis(arguments: Case, expected: Any, answer: Any) -> str | None:
    """Judge the form alone where no run is named, so that the public check gives nothing away; else that run.

    Where a mistake's answer stands in for what was expected, an answer is "right" if its form has the same flaw.
    In the students' archive nothing is expected.
    """
    flaw = _flaw(answer)
    known = () if expected is None else _flaw(expected)
    if flaw or known:
        return None if flaw[:1] == known[:1] else ", got ".join(flaw) or "the form is right"
    run = arguments.get("run")
    return f"run {run} has another bug" if run and answer[run] != expected[run] else None


def _flaw(answer: Any) -> tuple[str, ...]:
    """What is wrong with the form of a diagnosis, and what was found there; nothing where it is right."""
    if not isinstance(answer, dict):
        return KEYS, repr(answer)[:80]
    if set(answer) != set(NAMES):
        return KEYS, ", ".join(map(str, answer))[:80]
    wrong = [
        f"{cause!r}"[:80]
        for cause in answer.values()
        if not isinstance(cause, str) or cause not in CAUSES
    ]
    return (VALUES, wrong[0]) if wrong else ()


# lab08.2: the mask


def completion_mask(lengths: Tensor, T: int) -> Tensor:
    return torch.arange(T) < lengths.unsqueeze(-1)


def mask_too_short(lengths: Tensor, T: int) -> Tensor:
    return torch.arange(1, T + 1) < lengths.unsqueeze(-1)


def mask_too_long(lengths: Tensor, T: int) -> Tensor:
    return torch.arange(T) <= lengths.unsqueeze(-1)


def mask_of_floats(lengths: Tensor, T: int) -> Tensor:
    return completion_mask(lengths, T).double()


def mask_on_the_left(lengths: Tensor, T: int) -> Tensor:
    return completion_mask(lengths, T).flip(-1)


def draw_lengths(rng: np.random.Generator) -> Case:
    """Two groups, with an empty completion and a full one among them."""
    T = int(rng.integers(5, 9))
    lengths = rng.integers(1, T, size=(2, 5))
    lengths[0, 0], lengths[1, 1] = T, 0
    return {"lengths": torch.from_numpy(lengths), "T": T}


# lab08.3: the sizes of process sets


def sizes_with_padding(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    same = completion_ids.unsqueeze(-3) == completion_ids.unsqueeze(-2)
    return same.cumprod(dim=-1).sum(dim=-2) * completion_mask


def sizes_half_masked(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    same = completion_ids.unsqueeze(-3) == completion_ids.unsqueeze(-2)
    return (same.cumprod(dim=-1) * completion_mask.unsqueeze(-3)).sum(dim=-2)


def sizes_of_tokens(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    same = completion_ids.unsqueeze(-3) == completion_ids.unsqueeze(-2)
    return (same & completion_mask.unsqueeze(-3) & completion_mask.unsqueeze(-2)).sum(dim=-2)


def sizes_over_the_wrong_group(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    flat = minigrpo.step_sizes(completion_ids.flatten(0, 1), completion_mask.flatten(0, 1))
    return flat.view(completion_ids.shape)


def sizes_with_empty_ones(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    return minigrpo.step_sizes(completion_ids, completion_mask).clamp(min=1)


def two_groups(groups: list[list[list[int]]]) -> Case:
    """Two groups as one batch (2, G, T), padded with 0, which is a token, too."""
    padded = [pad(completions) for completions in groups]
    T = max(ids.shape[1] for ids, _ in padded)
    ids, masks = (
        [torch.nn.functional.pad(x[k], (0, T - x[k].shape[1])) for x in padded] for k in (0, 1)
    )
    return {"completion_ids": torch.stack(ids), "completion_mask": torch.stack(masks)}


def draw_groups(rng: np.random.Generator) -> Case:
    """Ragged groups with a completion that ends where another goes on with the filler."""
    groups = [draw_completions(rng) for _ in range(2)]
    for completions in groups:
        first = completions[0]
        completions[1], completions[2] = first[:5] + [0, 0], first[:5]
    return two_groups(groups)


def draw_other_endings(rng: np.random.Generator) -> Case:
    """Completions that go on with anything but the filler: padding meets padding alone."""
    groups = []
    for _ in range(2):
        stem = rng.integers(1, 3, size=4).tolist()
        groups.append(
            [stem, [*stem, 1], [*stem, 1, 2], [stem[0], 3, stem[2]], stem, [3, *stem[1:]]]
        )
    return two_groups(groups)


# lab08.4: advantages


def group_advantages(rewards: Tensor) -> Tensor:
    return minigrpo.group_advantages(rewards)


def advantages_of_the_batch(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean(dim=-1, keepdim=True)) / (rewards.std() + 1e-4)


def advantages_centred_on_the_batch(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std(dim=-1, keepdim=True) + 1e-4)


def advantages_with_n(rewards: Tensor) -> Tensor:
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + 1e-4)


def advantages_over_prompts(rewards: Tensor) -> Tensor:
    return minigrpo.group_advantages(rewards.mT).mT


def advantages_not_divided(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=-1, keepdim=True)


def draw_stakes(rng: np.random.Generator) -> Case:
    """Prompts whose rewards are of very different size."""
    return {
        "rewards": draw_rewards(rng, 3, 6)
        * torch.tensor([[10.0], [1.0], [0.1]], dtype=torch.float64)
    }


def draw_equal(rng: np.random.Generator) -> Case:
    """One prompt whose completions all have one reward, between others."""
    rewards = draw_rewards(rng, 3, 6)
    rewards[1] = float(rng.choice([0.5, 1.0]))
    return {"rewards": rewards}


# lab08.5: the surrogate


def surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return minigrpo.clipped_surrogate(logps, old_logps, advantages)


def surrogate_that_cancels(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return (logps - old_logps).exp() * advantages


def surrogate_cut_off(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return (logps - old_logps).exp().detach() * advantages


def surrogate_without_ratio(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return logps * advantages


def surrogate_always_one(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return (logps - logps.detach()).exp() * advantages


def surrogate_upside_down(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    return (old_logps.detach() - logps).exp() * advantages


def draw_two_policies(rng: np.random.Generator) -> Case:
    logps = draw_logps(rng, 3, 4)
    near = logps + torch.from_numpy(rng.normal(scale=0.3, size=(3, 4)))
    advantages = torch.from_numpy(rng.normal(size=(3, 4)))
    return {
        "logps": logps,
        "old_logps": near,
        "advantages": advantages,
        "wrt": ["logps", "old_logps"],
    }


def draw_one_policy(rng: np.random.Generator) -> Case:
    case = draw_two_policies(rng)
    return case | {"old_logps": case["logps"].clone(), "wrt": ["logps"], "same": ["old_logps"]}


# lab08.6: the KL penalty


def kl_penalty(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    return beta * minigrpo.kl_k3(logps, ref_logps)


def kl_rewarded(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    return -kl_penalty(logps, ref_logps, beta)


def kl_the_other_way(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    log_ratio = logps - ref_logps.detach()
    return beta * (log_ratio.expm1() - log_ratio)


def kl_of_the_log_ratio(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    return beta * (logps - ref_logps.detach())


def kl_with_the_reference_in_it(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    return beta * ((ref_logps - logps).expm1() - (ref_logps - logps))


def kl_without_beta(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    return minigrpo.kl_k3(logps, ref_logps)


def draw_kl(rng: np.random.Generator) -> Case:
    case = draw_two_policies(rng)
    beta = float(rng.uniform(0.05, 0.5))
    return {
        "logps": case["logps"],
        "ref_logps": case["old_logps"],
        "beta": beta,
        "wrt": ["logps", "ref_logps"],
    }


# lab08.7: the loss of a batch that comes in micro-batches


def batch_loss(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    return torch.where(completion_mask, losses, 0).sum() / completion_mask.sum()


def _means(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> list[Tensor]:
    parts = zip(losses.split(micro_batch), completion_mask.split(micro_batch), strict=True)
    return [(part * kept).sum() / kept.sum() for part, kept in parts]


def loss_mean_of_means(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    return torch.stack(_means(losses, completion_mask, micro_batch)).mean()


def loss_sum_of_means(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    return torch.stack(_means(losses, completion_mask, micro_batch)).sum()


def loss_by_places(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    return (losses * completion_mask).mean()


def loss_by_completions(losses: Tensor, completion_mask: Tensor, micro_batch: int) -> Tensor:
    return ((losses * completion_mask).sum(dim=-1) / completion_mask.sum(dim=-1)).mean()


def loss_of_whole_micro_batches(
    losses: Tensor, completion_mask: Tensor, micro_batch: int
) -> Tensor:
    rows = len(losses) // micro_batch * micro_batch
    return (losses * completion_mask)[:rows].sum() / completion_mask.sum()


def draw_batch(rng: np.random.Generator, rows: int, micro_batch: int) -> Case:
    """Rows of different lengths, with numbers under the mask that must not count."""
    T = 6
    lengths = torch.from_numpy(rng.integers(1, T, size=rows))
    lengths[0], lengths[-1] = 1, T
    losses = torch.from_numpy(rng.normal(size=(rows, T)))
    mask = completion_mask(lengths, T)
    return {
        "losses": losses,
        "completion_mask": mask,
        "micro_batch": micro_batch,
        "wrt": ["losses"],
    }


# The runs whose curves the lab shows: each with one broken function among five right ones

RIGHT = {
    function.__name__: function
    for function in (
        completion_mask,
        minigrpo.step_sizes,
        group_advantages,
        surrogate,
        kl_penalty,
        batch_loss,
    )
}
BUGS = {
    "KL rewarded": {"kl_penalty": kl_rewarded},
    "mask too short": {"completion_mask": mask_too_short},
    "mean of means": {"batch_loss": loss_mean_of_means},
    "no gradient": {"surrogate": surrogate_that_cancels},
    "padding shared": {"step_sizes": sizes_with_padding},
    "std of the batch": {"group_advantages": advantages_of_the_batch},
}


def recorded_runs() -> dict[str, list[dict[str, float]]]:
    """A row of measurements for each update of the healthy run, and of A to F."""
    columns = json.loads(RECORDED.read_text(encoding="utf-8"))
    return {
        run: [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
        for run, named in columns.items()
    }


RUNS = recorded_runs()

EXERCISES = (
    Exercise(
        id="lab08.1",
        function="diagnosis",
        reference=diagnosis,
        driver="lab08_without_arguments",
        judge=judge_diagnosis,
        parts=tuple(
            Part(
                name=f"run {run}",
                points=1,
                draw=draw_run(run),
                hint=f"run {run} has another bug. Look for the column in which it differs from the healthy run.",
                draws=1,
                examples=({},),
                secret=True,
            )
            for run in NAMES
        ),
        mistakes=(  # of form alone: the check says nothing of right and wrong before it is graded
            Mistake(
                name="other keys",
                hint="name a cause for each of the six runs, under its capital letter.",
                wrong=lambda: dict.fromkeys(NAMES.lower(), next(iter(CAUSES))),
            ),
            Mistake(
                name="other causes",
                hint="a cause is a key of CAUSES, spelt as there.",
                wrong=lambda: dict.fromkeys(NAMES, "bad luck"),
            ),
        ),
    ),
    Exercise(
        id="lab08.2",
        function="completion_mask",
        reference=completion_mask,
        parts=(
            Part(
                name="lengths from 0 to T",
                points=1,
                draw=draw_lengths,
                hint="a completion of length n has n True places: 0 … n − 1.",
                examples=({"lengths": torch.tensor([[3, 1], [4, 2]]), "T": 4},),
            ),
        ),
        mistakes=(
            Mistake(
                name="last token lost",
                hint="your mask leaves out the last token of each completion. Length n means that n places are True.",
                wrong=mask_too_short,
            ),
            Mistake(
                name="one too many",
                hint="your mask takes in the first place after the completion.",
                wrong=mask_too_long,
            ),
            Mistake(
                name="floats",
                hint="return a bool tensor: a mask is indexed with, too.",
                wrong=mask_of_floats,
            ),
            Mistake(
                name="wrong side",
                hint="completions are padded on the right; your mask has them there.",
                wrong=mask_on_the_left,
            ),
        ),
    ),
    Exercise(
        id="lab08.3",
        function="step_sizes",
        reference=minigrpo.step_sizes,
        parts=(
            Part(
                name="completions that end where others go on",
                points=1,
                draw=draw_groups,
                hint="a completion which has ended shares nothing more, even where the filler reads "
                "like the next token.",
                examples=(two_groups([[[1, 0, 0], [1], [2]], [[1, 1], [1, 1], [1, 2, 1]]]),),
            ),
            Part(
                name="padding beside padding",
                points=1,
                draw=draw_other_endings,
                hint="count members of the token's own group that share its whole prefix, and give 0 where masked.",
            ),
        ),
        mistakes=(
            Mistake(
                name="padding counted",
                hint="you compare ids where the other completion has ended. Multiplying by the mask at "
                "the end clears your own padding, not the other's.",
                wrong=sizes_with_padding,
            ),
            Mistake(
                name="own padding kept",
                hint="sizes under the mask have to be 0, and a completion that has ended can't be a "
                "member: you mask one of the two dimensions.",
                wrong=sizes_half_masked,
            ),
            Mistake(
                name="tokens alone",
                hint="agreement has to hold from token 0 on, not at token t alone.",
                wrong=sizes_of_tokens,
            ),
            Mistake(
                name="groups mixed",
                hint="you compare completions of different prompts: the leading dimension holds groups.",
                wrong=sizes_over_the_wrong_group,
            ),
            Mistake(
                name="never 0",
                hint="under the mask sizes are 0, not 1.",
                wrong=sizes_with_empty_ones,
            ),
        ),
    ),
    Exercise(
        id="lab08.4",
        function="group_advantages",
        reference=group_advantages,
        parts=(
            Part(
                name="stakes that differ",
                points=1,
                draw=draw_stakes,
                hint="each group is centred and scaled by itself: with its own mean and its own std (n − 1).",
                examples=(
                    {"rewards": torch.tensor([[0.0, 10.0], [0.0, 0.1]], dtype=torch.float64)},
                ),
            ),
            Part(
                name="equal rewards",
                points=1,
                draw=draw_equal,
                hint="a group of equal rewards has advantages of 0, and the others none.",
            ),
        ),
        mistakes=(
            Mistake(
                name="std of the batch",
                hint="your std is over all prompts at once. One prompt with large rewards then makes "
                "the others' small.",
                wrong=advantages_of_the_batch,
            ),
            Mistake(
                name="mean of the batch",
                hint="centre each group on its own mean.",
                wrong=advantages_centred_on_the_batch,
            ),
            Mistake(
                name="divided by n",
                hint="the paper's std is the unbiased one, with n − 1.",
                wrong=advantages_with_n,
            ),
            Mistake(
                name="over prompts",
                hint="you take mean and std over the prompts; a group lies along the last dimension.",
                wrong=advantages_over_prompts,
            ),
            Mistake(
                name="not divided",
                hint="divide by the std, plus 1e-4.",
                wrong=advantages_not_divided,
            ),
        ),
    ),
    Exercise(
        id="lab08.5",
        function="surrogate",
        reference=surrogate,
        driver="lab08_output_and_grads",
        parts=(
            Part(
                name="an older policy",
                points=1,
                draw=draw_two_policies,
                hint="the ratio is exp(logps − old_logps), times the advantage; the old policy is a constant.",
            ),
            Part(
                name="the policy itself as the old one",
                points=1,
                draw=draw_one_policy,
                hint="where both arguments are one tensor the ratio is 1, but its gradient is not 0.",
            ),
        ),
        mistakes=(
            Mistake(
                name="gradients cancel",
                hint="old_logps, and it alone, is a constant (detach). Where both are one tensor, what "
                "flows into the one cancels what flows into the other, and without a gradient of logps "
                "there is none at all.",
                wrong=surrogate_that_cancels,
            ),
            Mistake(
                name="cut off",
                hint="no gradient flows into logps at all: only the old policy is a constant.",
                wrong=surrogate_cut_off,
            ),
            Mistake(
                name="no ratio",
                hint="you weigh ln π; the surrogate weighs the ratio π/π_old.",
                wrong=surrogate_without_ratio,
            ),
            Mistake(
                name="ratio always 1",
                hint="your ratio is 1 whatever the old policy was: it has to compare with old_logps.",
                wrong=surrogate_always_one,
            ),
            Mistake(
                name="upside down",
                hint="the ratio is new over old.",
                wrong=surrogate_upside_down,
            ),
        ),
    ),
    Exercise(
        id="lab08.6",
        function="kl_penalty",
        reference=kl_penalty,
        driver="lab08_output_and_grads",
        parts=(
            Part(
                name="values and gradients",
                points=1,
                draw=draw_kl,
                hint="β·(π_ref/π_θ − ln(π_ref/π_θ) − 1): never below 0; the reference is a constant.",
            ),
        ),
        mistakes=(
            Mistake(
                name="rewarded",
                hint="your penalty is below 0, so that the loss falls as the policy leaves the reference.",
                wrong=kl_rewarded,
            ),
            Mistake(
                name="the other way",
                hint="your ratio is π_θ/π_ref; k3 has π_ref/π_θ.",
                wrong=kl_the_other_way,
            ),
            Mistake(
                name="log-ratio alone",
                hint="ln(π_θ/π_ref) is k1, which may be negative; asked is k3.",
                wrong=kl_of_the_log_ratio,
            ),
            Mistake(
                name="reference not constant",
                hint="gradient flows into ref_logps; the reference is a constant.",
                wrong=kl_with_the_reference_in_it,
            ),
            Mistake(
                name="no β",
                hint="β is missing.",
                wrong=kl_without_beta,
            ),
        ),
    ),
    Exercise(
        id="lab08.7",
        function="batch_loss",
        reference=batch_loss,
        driver="lab08_output_and_grads",
        parts=(
            Part(
                name="even micro-batches",
                points=1,
                draw=lambda rng: draw_batch(rng, rows=6, micro_batch=2),
                hint="all micro-batches share one denominator: the number of real tokens in the whole batch.",
            ),
            Part(
                name="a last one that is smaller",
                points=1,
                draw=lambda rng: draw_batch(rng, rows=7, micro_batch=3),
                hint="the last micro-batch may hold fewer rows; its tokens count like all others.",
            ),
        ),
        mistakes=(
            Mistake(
                name="mean of means",
                hint="you take each micro-batch's own mean, and then the mean of those: a token in a "
                "short micro-batch counts more than one in a long one.",
                wrong=loss_mean_of_means,
            ),
            Mistake(
                name="sum of means",
                hint="you add the micro-batches' means: the loss grows with their number.",
                wrong=loss_sum_of_means,
            ),
            Mistake(
                name="places",
                hint="you divide by all places, padding too; divide by the real tokens.",
                wrong=loss_by_places,
            ),
            Mistake(
                name="completions",
                hint="you give each completion its own mean; here every token counts alike.",
                wrong=loss_by_completions,
            ),
            Mistake(
                name="last rows lost",
                hint="rows which do not fill a micro-batch are left out.",
                wrong=loss_of_whole_micro_batches,
            ),
        ),
    ),
)


def record(updates: int = 200) -> dict[str, dict[str, list[float]]]:
    """Train the runs with the script in solutions/; column by column, in four digits."""
    from grader.source import read_source

    script: dict[str, Any] = {}
    for cell in read_source(Path(__file__).parents[2] / "solutions" / "lab08_silent_bugs.py").cells:
        if cell.cell_type == "code" and "train" not in script:  # what follows looks at the runs
            exec(compile(cell.source, "<lab08>", "exec"), script)
    functions = {"healthy": RIGHT} | {run: RIGHT | BUGS[cause] for run, cause in truth().items()}
    histories = {run: script["train"](own, updates=updates) for run, own in functions.items()}
    return {
        run: {name: [float(f"{row[name]:.4g}") for row in rows] for name in rows[0]}
        for run, rows in histories.items()
    }


if __name__ == "__main__":
    from minigrpo.files import write_bytes

    write_bytes(
        RECORDED, json.dumps(record(), ensure_ascii=False).replace("}, ", "},\n").encode() + b"\n"
    )
