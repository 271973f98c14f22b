"""The loss by hand, the theorem in value and gradient, and where the theorem ends."""

import math

import pytest
import torch
from groups import assert_close, groups, pad
from hypothesis import given

from minigrpo import OBJECTIVES, clipped_surrogate, grpo, kl_k3, lambda_grpo, policy_loss, prm, token_logps

F64 = torch.float64
V = 4
small = groups(leading=((),), vocabularies=((0, 1), (0, 1, 2)))


def tensor(*values):
    return torch.tensor(values, dtype=F64)


# --- tokens, KL, clip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("int_dtype", [torch.int64, torch.int32])
def test_token_logps(dtype, int_dtype):
    logits = 30 * torch.randn(2, 3, 5, V, dtype=dtype)
    ids = torch.randint(V, (2, 3, 5), dtype=int_dtype)
    expected = logits.log_softmax(dim=-1).gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)
    assert_close(token_logps(logits, ids), expected, 1e-6 if dtype == torch.float32 else 1e-14)


def test_kl_k3_by_hand():
    logps = tensor(0.5, 0.5, 0.5).log().requires_grad_()
    ref_logps = tensor(0.25, 0.5, 1.0).log().requires_grad_()  # π_ref/π_θ = 1/2, 1, 2
    kl = kl_k3(logps, ref_logps)
    assert_close(kl, tensor(math.log(2) - 1 / 2, 0.0, 1 - math.log(2)), 1e-14)
    kl.sum().backward()
    assert_close(logps.grad, tensor(1 / 2, 0.0, -1.0), 1e-14)  # d/d ln π_θ = 1 − π_ref/π_θ
    assert ref_logps.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_kl_k3_is_an_unbiased_estimate(dtype):
    logps, ref_logps = torch.randn(2, 50, 7, dtype=dtype).log_softmax(dim=-1)
    kl = kl_k3(logps, ref_logps)
    assert kl.min() >= 0
    assert not kl_k3(logps, logps).any()
    exact = (logps.exp() * (logps - ref_logps)).sum(dim=-1)  # KL(π_θ ‖ π_ref)
    assert exact.min() > 0.01
    assert_close((logps.exp() * kl).sum(dim=-1), exact, 1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(
    ("ratio", "advantage", "epsilon", "value", "gradient"),
    [
        (1.5, 1.0, 0.2, 1.2, 0.0),  # clipped: nothing to gain from going further
        (1.5, -1.0, 0.2, -1.5, -1.5),
        (0.5, 1.0, 0.2, 0.5, 0.5),
        (0.5, -1.0, 0.2, -0.8, 0.0),
        (1.1, 2.0, 0.2, 2.2, 2.2),
        (0.9, -2.0, 0.2, -1.8, -1.8),
        (1.0, 1.0, 0.2, 1.0, 1.0),
        (1.5, 1.0, None, 1.5, 1.5),
        (0.5, -1.0, None, -0.5, -0.5),
    ],
)
def test_clip_by_hand(ratio, advantage, epsilon, value, gradient):
    logps, old_logps = tensor(0.3 * ratio).log().requires_grad_(), tensor(0.3).log().requires_grad_()
    surrogate = clipped_surrogate(logps, old_logps, tensor(advantage), epsilon)
    assert_close(surrogate, tensor(value), 1e-14)
    surrogate.sum().backward()
    if gradient:
        assert_close(logps.grad, tensor(gradient), 1e-14)
    else:
        assert logps.grad.item() == 0
    assert old_logps.grad is None


# --- the reduction ----------------------------------------------------------------------------------------------------

ROWS = [[0, 1, 2], [], [1], [2, 2, 2, 0]]
MASK = pad([ROWS], [[0.0] * 4], width=5).mask  # 8 tokens


def ingredients(dtype=F64):
    """logps, old_logps, ref_logps, advantages, step_weights (4, 5), with numbers under the mask too."""
    logps, old_logps, ref_logps, advantages = torch.randn(4, 4, 5, dtype=dtype)
    advantages = advantages + 0.5  # so that the sum does not come out near 0
    return logps.requires_grad_(), old_logps, ref_logps, advantages, torch.rand(4, 5, dtype=dtype) + 0.1


def by_loop(logps, old_logps, ref_logps, advantages, step_weights, epsilon, beta, aggregation, num_tokens):
    """The loss token by token, in Python floats."""
    rows = []
    for i, row in enumerate(ROWS):
        terms = []
        for t in range(len(row)):
            ratio = math.exp(logps[i, t].item() - old_logps[i, t].item())
            a = advantages[i, t].item()
            surrogate = ratio * a
            if epsilon is not None:
                surrogate = min(surrogate, min(max(ratio, 1 - epsilon), 1 + epsilon) * a)
            x = ref_logps[i, t].item() - logps[i, t].item()
            terms.append(step_weights[i, t].item() * (surrogate - beta * (math.exp(x) - x - 1)))
        rows.append(terms)
    if aggregation == "seq-mean":
        return -sum(sum(terms) / max(len(terms), 1) for terms in rows) / len(rows)
    return -sum(map(sum, rows)) / float(num_tokens or sum(map(len, rows)))


@pytest.mark.parametrize("epsilon", [None, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("aggregation", "num_tokens"),
    [("token-mean", None), ("token-mean", 17), ("token-mean", torch.tensor(17)), ("seq-mean", None)],
)
def test_loss_against_a_loop(epsilon, beta, aggregation, num_tokens):
    logps, old_logps, ref_logps, advantages, step_weights = parts = ingredients()
    options = {"epsilon": epsilon, "beta": beta, "aggregation": aggregation, "num_tokens": num_tokens}
    before = [part.detach().clone() for part in parts]
    loss = policy_loss(logps, old_logps, advantages, step_weights, MASK, ref_logps=ref_logps, **options)
    assert abs(loss.item()) > 0.01
    assert loss.item() == pytest.approx(by_loop(*parts, **options), rel=1e-12)
    loss.backward()
    assert not logps.grad[~MASK].any()
    assert logps.grad.abs().max() > 0.01
    assert all(map(torch.equal, parts, before))


def test_values_under_the_mask_do_not_matter():
    logps, old_logps, ref_logps, advantages, step_weights = parts = ingredients()
    noisy = [torch.where(MASK, part, math.nan) for part in parts]
    losses = [
        policy_loss(x, old, a, w, MASK, beta=0.1, ref_logps=ref, epsilon=0.2) for x, old, ref, a, w in (parts, noisy)
    ]
    assert torch.equal(*losses)


def test_default_options_are_the_theorems():
    """No clip, no KL, Σ mask: ratio 3 stays 3."""
    loss = policy_loss(
        tensor(0.3, 0.3).log(), tensor(0.1, 0.3).log(), tensor(1.0, 1.0), tensor(1.0, 0.5), tensor(1, 1) > 0
    )
    assert loss.item() == pytest.approx(-(3 + 0.5) / 2, rel=1e-14)


def test_old_and_reference_are_constants():
    logps, _, _, advantages, step_weights = ingredients()
    loss = policy_loss(logps, logps, advantages, step_weights, MASK, beta=0.3, ref_logps=logps, epsilon=0.2)
    loss.backward()  # d/d ln π_θ of P·A is A, of k3 is 0, where the three policies are one
    assert_close(logps.grad, torch.where(MASK, -step_weights * advantages / 8, 0.0), 1e-14)

    parts = [part.detach().requires_grad_() for part in ingredients()]
    logps, old_logps, ref_logps, advantages, step_weights = parts
    policy_loss(logps, old_logps, advantages, step_weights, MASK, beta=0.3, ref_logps=ref_logps).backward()
    assert logps.grad.abs().max() > 0.01
    assert old_logps.grad is None
    assert ref_logps.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_micro_batches_sum_to_the_batch(dtype):
    logps, old_logps, ref_logps, advantages, step_weights = ingredients(dtype)

    def loss(rows, num_tokens):
        parts = (part[rows] for part in (logps, old_logps, advantages, step_weights, MASK))
        return policy_loss(*parts, beta=0.3, ref_logps=ref_logps[rows], num_tokens=num_tokens)

    full = loss(slice(None), None)
    # row 1 has no token: with num_tokens given that is legal
    pieces = torch.stack([loss(slice(k, k + 1), MASK.sum()) for k in range(4)]).sum()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert full.dtype == dtype
    assert_close(pieces, full, tolerance)
    gradients = [torch.autograd.grad(x, logps)[0] for x in (pieces, full)]
    assert gradients[1].abs().max() > 0.01
    assert_close(*gradients, tolerance)


# --- the theorem ------------------------------------------------------------------------------------------------------

FIXED = pad(
    [[[0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 1], [0, 1], [2, 0, 0, 1, 2], [2, 0, 1], [1], []]],
    [[1.0, 0.3, 0.0, -1.0, 2.0, 0.5, 0.0, 1.0]],
    width=6,
    garbage=lambda: 2,
)
DISJOINT = pad([[[0, 1], [1, 1, 0], [2]]], [[1.0, 0.0, 0.5]])


def tied(group, table):
    """logps (G, T) that depend on the prefix alone: a row of logits for each distinct prefix (`table` makes them)."""
    places = {}
    for y in group.completions[0]:
        for t in range(len(y)):
            places.setdefault(tuple(y[:t]), len(places))
    logits = table(len(places))
    rows = group.per_token(lambda p, i, t: places[tuple(group.completions[p][i][:t])]).long()
    return logits, token_logps(logits[rows], torch.where(group.mask, group.ids, 0))


def policies(group, on_policy):
    """A table policy with gradients, and old and reference policies tied to prefixes too."""
    torch.manual_seed(1)  # Hypothesis replays an example
    logits, logps = tied(group, lambda n: torch.randn(n, V, dtype=F64, requires_grad=True))
    old_logps, ref_logps = (tied(group, lambda n: torch.randn(n, V, dtype=F64))[1] for _ in range(2))
    return logits, logps, logps.detach() if on_policy else old_logps, ref_logps


def loss_and_gradient(objective, group, policy, scale="std", **options):
    """The loss under one objective, and its gradient with respect to the logits."""
    logits, logps, old_logps, ref_logps = policy
    parts = objective(group.rewards, group.ids, group.mask, scale=scale)
    loss = policy_loss(logps, old_logps, *parts, group.mask, ref_logps=ref_logps, **options)
    return loss.detach(), torch.autograd.grad(loss, logits, retain_graph=True)[0]


def gap(one, other):
    """‖difference‖ relative to the size, of the loss and of the gradient."""
    return [(torch.norm(x - y) / max(torch.norm(x).item(), 1e-3)).item() for x, y in zip(one, other, strict=True)]


HOLDS = {
    "on-policy": (True, {}),
    "on-policy, clip inactive at ratio 1": (True, {"epsilon": 0.2}),
    "off-policy, nothing clipped": (False, {}),
    "off-policy, a wide clip": (False, {"epsilon": 1e6}),
    "KL": (True, {"beta": 0.04}),
    "KL off-policy": (False, {"beta": 1.5}),
    "a constant normaliser, no std": (True, {"num_tokens": 17, "scale": "none"}),
}


@given(small)
def test_theorem(group):
    for on_policy, options in HOLDS.values():
        policy = policies(group, on_policy)
        one, other = (loss_and_gradient(objective, group, policy, **options) for objective in (grpo, prm))
        assert max(gap(one, other)) < 1e-12


@pytest.mark.parametrize("case", HOLDS)
def test_theorem_where_the_gradient_is_large(case):
    on_policy, options = HOLDS[case]
    policy = policies(FIXED, on_policy)
    one, other, repaired = (
        loss_and_gradient(objective, FIXED, policy, **options) for objective in (grpo, prm, lambda_grpo)
    )
    assert one[1].norm() > 0.1
    assert max(gap(one, other)) < 1e-12
    assert (
        grpo(FIXED.rewards, FIXED.ids, FIXED.mask)[0] - prm(FIXED.rewards, FIXED.ids, FIXED.mask)[0]
    ).abs().max() > 0.5
    assert gap(one, repaired)[1] > 0.1  # λ-GRPO is another objective where steps are shared


def test_lambda_grpo_is_grpo_where_nothing_is_shared():
    policy = policies(DISJOINT, on_policy=False)
    one, other = (loss_and_gradient(f, DISJOINT, policy, beta=0.1) for f in (grpo, lambda_grpo))
    assert one[1].norm() > 0.1
    assert max(gap(one, other)) < 1e-14


@pytest.mark.parametrize("case", ["clipping", "seq-mean", "untied"])
def test_theorem_fails(case):
    logits, logps, old_logps, ref_logps = policies(FIXED, on_policy=case != "clipping")
    options = {"clipping": {"epsilon": 0.2}, "seq-mean": {"aggregation": "seq-mean"}, "untied": {}}[case]
    if case == "untied":  # as under dropout
        old_logps = old_logps + 0.5 * torch.randn_like(old_logps)
    one, other = (loss_and_gradient(f, FIXED, (logits, logps, old_logps, ref_logps), **options) for f in (grpo, prm))
    assert min(gap(one, other)) > 1e-3


@given(small)
def test_sum_over_the_tree(group):
    """1/Σlen · Σ_λ Σ_{t∈λ} |λ|·( P·A − D ), each step once, and without |λ| for λ-GRPO."""
    logits, logps, old_logps, ref_logps = policy = policies(group, on_policy=False)
    counted = plain = torch.zeros((), dtype=F64)
    for node in group.tree().nodes:
        for t in range(node.start, node.start + len(node.tokens)):
            x, old, ref = (values[node.members[0], t] for values in (logps, old_logps, ref_logps))
            term = (x - old).exp() * node.advantage - 0.1 * ((ref - x).exp() - (ref - x) - 1)
            counted, plain = counted + len(node.members) * term, plain + term
    for objective, total in ((grpo, counted), (prm, counted), (lambda_grpo, plain)):
        expected = -total / sum(map(len, group.completions[0]))
        expected = expected.detach(), torch.autograd.grad(expected, logits, retain_graph=True)[0]
        assert max(gap(expected, loss_and_gradient(objective, group, policy, beta=0.1))) < 1e-12


@pytest.mark.parametrize("int_dtype", [torch.uint8, torch.int16])
def test_token_logps_takes_any_int(int_dtype):
    logits = torch.randn(3, 5, V)
    ids = torch.randint(V, (3, 5))
    assert torch.equal(token_logps(logits, ids.to(int_dtype)), token_logps(logits, ids))


@pytest.mark.parametrize("under", [-math.inf, math.nan])
def test_no_gradient_from_under_the_mask(under):
    logps, _, _, advantages, step_weights = ingredients()
    logps = logps.detach().masked_fill(~MASK, under).requires_grad_()
    policy_loss(logps, logps, advantages, step_weights, MASK).backward()
    assert not logps.grad[~MASK].any()


def test_seq_mean_of_no_token():
    with pytest.raises(ValueError, match="completion_mask"):
        policy_loss(*ingredients()[:2], *ingredients()[3:], MASK & False, aggregation="seq-mean")


def test_names():
    assert (OBJECTIVES["grpo"], OBJECTIVES["prm"], OBJECTIVES["lambda_grpo"]) == (grpo, prm, lambda_grpo)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: token_logps(torch.zeros(2, 3, 4), torch.full((2, 3), -100)), ValueError, "0 to V − 1 .3.*got -100 to"),
        (lambda: token_logps(torch.zeros(2, 3, 4), torch.full((2, 3), 4)), ValueError, "0 to V − 1 .3.*got 4 to 4"),
        (
            lambda: kl_k3(torch.zeros(4, 4), torch.zeros(4)),
            ValueError,
            r"ref_logps must have shape \(4, 4\), got \(4,\)",
        ),
        (lambda: kl_k3(torch.zeros(4), torch.zeros(4).long()), TypeError, "ref_logps must have a float dtype"),
        (
            lambda: clipped_surrogate(torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4)),
            ValueError,
            r"advantages must have shape \(4, 4\), got \(4,\)",
        ),
        (lambda: loss_with(epsilon="0.1"), TypeError, "epsilon must be a number, got '0.1'"),
        (lambda: loss_with(epsilon=(0.2, 0.3)), TypeError, r"epsilon must be a number, got \(0.2, 0.3\)"),
        (lambda: loss_with(num_tokens=torch.tensor([2, 3])), TypeError, "num_tokens must be a number, got tensor"),
    ],
)
def test_what_the_parts_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def loss_with(**options):
    zeros = torch.zeros(2, 2)
    return policy_loss(zeros, zeros, zeros, zeros, torch.ones(2, 2, dtype=torch.bool), **options)
