"""The three policies: what each place may see, and what it computes from it."""

import math

import pytest
import torch

from minigrpo.policies import POLICIES, make_policy

torch.set_num_threads(1)
S, A, T = 7, 3, 6
NAMES = pytest.mark.parametrize("name", ["tabular", "mlp", "transformer"])


def random_policy(name, **options):
    """A policy whose every weight is random: the table starts out uniform, norms start out as the identity."""
    policy, generator = make_policy(name, S, A, **options), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 2
    return policy.eval()


def random_batch(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(S, shape, generator=generator), torch.randint(A, shape, generator=generator)


def differs(a, b):
    """bool (…, T): where the logits are not the same."""
    return ((a - b).abs() > 1e-12).any(dim=-1)


@NAMES
@pytest.mark.parametrize("t", range(T))
def test_a_place_sees_nothing_later(name, t):
    policy, (states, ids) = random_policy(name), random_batch(2, T)
    logits = policy(states, ids)
    other_states, other_ids = states.clone(), ids.clone()
    other_ids[:, t:] = (ids[:, t:] + 1) % A  # action t itself is not seen at t
    other_states[:, t + 1 :] = (states[:, t + 1 :] + 1) % S
    changed = differs(policy(other_states, other_ids), logits)
    assert not changed[:, : t + 1].any()
    assert changed[:, t + 1 :].all()  # and what came before it is seen


@NAMES
@pytest.mark.parametrize("t", range(T))
def test_which_places_see_one_state_or_one_action(name, t):
    policy, (states, ids) = random_policy(name), random_batch(T)
    logits, later, here = policy(states, ids), torch.arange(T) > t, torch.arange(T) == t
    other = states.clone()
    other[t] = (states[t] + 1) % S
    assert torch.equal(differs(policy(other, ids), logits), later | here if name == "transformer" else here)
    other = ids.clone()
    other[t] = (ids[t] + 1) % A
    assert torch.equal(differs(policy(states, other), logits), later & torch.tensor(name == "transformer"))


def test_the_transformer_sees_the_order():
    policy, states, ids = random_policy("transformer"), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
    swapped = policy(torch.tensor([0, 2, 1, 3]), torch.tensor([1, 0, 2, 0]))  # the pairs of state and earlier action
    assert differs(policy(states, ids), swapped)[3]


@NAMES
def test_leading_dimensions_are_loops(name):
    policy, (states, ids) = random_policy(name), random_batch(2, 5, T)
    logits = policy(states, ids)
    assert logits.shape == (2, 5, T, A)
    for p in range(2):
        torch.testing.assert_close(policy(states[p], ids[p]), logits[p], rtol=0, atol=1e-12)
        for i in range(5):
            torch.testing.assert_close(policy(states[p, i], ids[p, i]), logits[p, i], rtol=0, atol=1e-12)


@NAMES
@pytest.mark.parametrize("shared", [1, 3, T])
def test_equal_prefixes_get_equal_logits(name, shared):
    policy, (states, ids) = random_policy(name), random_batch(4, T)
    states[:, :shared], ids[:, :shared] = states[0, :shared], ids[0, :shared]
    logits = policy(states, ids)
    assert not differs(logits[1:, :shared], logits[0, :shared]).any()
    assert name == "tabular" or logits.unique().numel() > A  # not merely constant


@NAMES
def test_seeds(name):
    before = torch.get_rng_state()
    first, again, other = ([*make_policy(name, S, A, seed=seed).parameters()] for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    same = [torch.equal(a, b) for a, b in zip(first, other, strict=True)]
    assert all(same) if name == "tabular" else not all(same)  # a table starts uniform, whatever the seed


@NAMES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dtypes(name, dtype):
    policy, (states, ids) = random_policy(name, dtype=dtype), random_batch(2, T)
    assert {weight.dtype for weight in policy.parameters()} == {dtype}
    logits = policy(states, ids)
    assert logits.dtype == dtype
    exact = random_policy(name, dtype=dtype).double()(states, ids)
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


def test_the_default_is_float64():
    assert all(make_policy(name, S, A).state_dict()[key].dtype == torch.float64 for name, key in WEIGHTS.items())


WEIGHTS = {"tabular": "logits", "mlp": "head.weight", "transformer": "head.weight"}


@pytest.mark.parametrize("name", ["table", "", None])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"^policy must be one of mlp, tabular, transformer, got {name!r}$"):
        make_policy(name, S, A)
    assert sorted(POLICIES) == sorted(WEIGHTS)


def test_dropout_acts_in_training_alone():
    plain, policy = (make_policy("transformer", S, A, dropout=p) for p in (0.0, 0.5))
    states, ids = random_batch(2, T)
    policy.eval()
    assert torch.equal(policy(states, ids), policy(states, ids))
    assert torch.equal(policy(states, ids), plain(states, ids))  # the same seed, the same weights
    policy.train()
    assert differs(policy(states, ids), plain(states, ids)).any()


def test_tabular_is_a_row_for_a_state():
    policy, (states, ids) = make_policy("tabular", S, A), random_batch(2, T)
    assert torch.equal(policy(states, ids).softmax(-1), torch.full((2, T, A), 1 / A, dtype=torch.float64))
    policy = random_policy("tabular")
    (table,) = policy.parameters()
    assert table.shape == (S, A)
    logits = policy(states, ids)
    assert all(torch.equal(logits[i, t], table[states[i, t]]) for i in range(2) for t in range(T))


@pytest.mark.parametrize("width", [32, 4])
def test_mlp_is_a_perceptron_on_the_one_hot_state(width):
    policy, (states, ids) = random_policy("mlp", **({} if width == 32 else {"width": width})), random_batch(2, T)
    first, weight, bias = policy.parameters()
    assert (first.shape, weight.shape) == ((S, width), (A, width))
    one_hot = torch.eye(S, dtype=torch.float64)[states]
    expected = torch.tanh(one_hot @ first) @ weight.T + bias
    torch.testing.assert_close(policy(states, ids), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "layers", "heads"), [(8, 1, 1), (8, 2, 2), (12, 3, 3)])
def test_transformer_place_by_place(width, layers, heads):
    """Against pre-norm causal attention written out: softmax(q·k/√d) over the places so far, one head at a time."""
    policy, (states, ids) = random_policy("transformer", width=width, layers=layers, heads=heads), random_batch(T)
    d, places = width // heads, torch.arange(T, dtype=torch.float64)
    begun = [policy.action.weight[A], *(policy.action.weight[a] for a in ids[:-1])]
    x = policy.state.weight[states] + torch.stack(begun)
    angles = places[:, None] / 10_000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    x = x + torch.cat([angles.sin(), angles.cos()], dim=1)
    assert len(policy.blocks) == layers
    for block in policy.blocks:
        q, k, v = (block.norm1(x) @ block.qkv.weight.T + block.qkv.bias).split(width, dim=1)
        mixed = torch.zeros_like(x)
        for t in range(T):
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                attention = (k[: t + 1, part] @ q[t, part] / math.sqrt(d)).softmax(dim=0)
                mixed[t, part] = attention @ v[: t + 1, part]
        x = x + mixed @ block.out.weight.T + block.out.bias
        up, down = block.mlp[0], block.mlp[-1]
        hidden = block.norm2(x) @ up.weight.T + up.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
        x = x + hidden @ down.weight.T + down.bias
    expected = policy.norm(x) @ policy.head.weight.T + policy.head.bias
    torch.testing.assert_close(policy(states, ids), expected, rtol=1e-10, atol=1e-10)
