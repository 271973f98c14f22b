"""Groups of episodes against replays of their actions; Monte-Carlo values against the exact ones."""

import math
from dataclasses import fields
from itertools import product

import gymnasium as gym
import pytest
import torch

import minigrpo
from minigrpo.envs import PathTreeEnv
from minigrpo.policies import make_policy
from minigrpo.rollout import (
    Rollout,
    fresh_process_rewards,
    make_envs,
    sample_group,
    stack_groups,
    state_action_ids,
)

torch.set_num_threads(1)
CLIFF = max(name for name in gym.registry if name.startswith("CliffWalking-v"))  # v0 before gymnasium 1.2
TREE, CHAIN, LAKE = "minigrpo/PathTree-v0", "minigrpo/ArithmeticChain-v0", "FrozenLake-v1"
DETERMINISTIC = {  # the last ends by truncation, and pays at every token
    "tree": (TREE, {"n": 2, "target": (0, 1, 0, 0)}),
    "chain": (CHAIN, {}),
    "lake": (LAKE, {"is_slippery": False, "max_episode_steps": 9}),
    "cliff": (CLIFF, {"max_episode_steps": 5}),
}
TASKS = pytest.mark.parametrize("task", DETERMINISTIC)
POLICIES = pytest.mark.parametrize("name", ["tabular", "mlp", "transformer"])


def random_policy(envs, name="tabular", seed=0, **options):
    """A policy for the task with random weights, tables included."""
    S, A = int(envs[0].observation_space.n), int(envs[0].action_space.n)
    policy, generator = make_policy(name, S, A, seed=seed, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight += noise * (0.6 if name == "tabular" else 0.1)
    return policy


def sample(envs, policy, seed=0, **kwargs):
    return sample_group(envs, policy, generator=torch.Generator().manual_seed(seed), **kwargs)


def equal(a, b):
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Rollout))


@POLICIES
@TASKS
def test_a_group_is_its_actions_replayed(task, name):
    env_id, kwargs = DETERMINISTIC[task]
    envs, fresh = make_envs(env_id, 6, **kwargs), gym.make(env_id, **kwargs)
    policy = random_policy(envs, name)
    for start_seed in (0, 1, 2):
        group = sample(envs, policy, start_seed, start_seed=start_seed)
        G, T = group.completion_ids.shape
        assert G == 6
        assert group.completion_mask.shape == group.old_logps.shape == group.states.shape == (G, T)
        assert group.completion_mask.dtype == torch.bool
        assert group.rewards.shape == (G,)
        assert group.rewards.dtype == group.old_logps.dtype == torch.float64
        lengths = []
        for i in range(G):
            state, total, ended, t = fresh.reset(seed=start_seed)[0], 0.0, False, 0
            while not ended:
                assert group.completion_mask[i, t]
                assert group.states[i, t] == state
                state, reward, terminated, truncated, _ = fresh.step(int(group.completion_ids[i, t]))
                total, ended, t = total + float(reward), terminated or truncated, t + 1
            assert not group.completion_mask[i, t:].any()
            assert group.completion_ids[i, t:].eq(0).all()
            assert group.rewards[i] == total
            lengths.append(t)
        assert max(lengths) == T
        assert task != "chain" or min(lengths) < T  # ragged indeed


@POLICIES
@TASKS
def test_old_logps_are_those_of_the_whole_completion(task, name):
    env_id, kwargs = DETERMINISTIC[task]
    envs = make_envs(env_id, 6, **kwargs)
    policy = random_policy(envs, name)
    group = sample(envs, policy)
    logps = policy(group.states, group.completion_ids).log_softmax(dim=-1)
    logps = logps.gather(-1, group.completion_ids.unsqueeze(-1)).squeeze(-1)
    mask = group.completion_mask
    torch.testing.assert_close(group.old_logps[mask], logps[mask], rtol=0, atol=1e-12)
    assert group.old_logps[~mask].eq(0).all()
    assert not group.old_logps.requires_grad
    assert group.old_logps[mask].unique().numel() > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_policy(dtype):
    envs = make_envs(CHAIN, 3)
    group = sample(envs, random_policy(envs, "transformer", dtype=dtype))
    assert group.old_logps.dtype == group.rewards.dtype == dtype
    rewards = fresh_process_rewards(envs, random_policy(envs, dtype=dtype), group, generator=torch.Generator())
    assert rewards.dtype == dtype


@pytest.mark.parametrize("env_id", [TREE, CHAIN, LAKE])
def test_the_generator_is_the_only_source_of_randomness(env_id):
    envs = make_envs(env_id, 8)
    policy = random_policy(envs)
    first = sample(envs, policy, 1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert equal(sample(make_envs(env_id, 8), policy, 1), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(sample(envs, policy, 2), first)
    generator = torch.Generator().manual_seed(1)
    assert equal(sample_group(envs, policy, generator=generator), first)
    assert not equal(sample_group(envs, policy, generator=generator), first)  # it moves on


def test_a_group_shares_its_start_state():
    envs = make_envs(CHAIN, 5)
    policy, starts = random_policy(envs), set()
    for start_seed in range(8):
        state = sample(envs, policy, start_seed=start_seed).states[:, 0]
        assert state.eq(gym.make(CHAIN).reset(seed=start_seed)[0]).all()
        starts.add(int(state[0]))
    assert len(starts) > 4
    assert equal(sample(envs, policy, 3), sample(envs, policy, 3, start_seed=0))


def test_slippery_transitions_are_independent_within_a_group():
    envs, mid = make_envs(LAKE, 64, is_slippery=True), 4
    policy = random_policy(envs)
    group = sample(envs, policy)
    ids, keys, mask = group.completion_ids, state_action_ids(group, 4), group.completion_mask
    assert torch.equal(keys, 4 * group.states + ids)
    assert group.states[:, 0].eq(0).all()
    moved = group.states[ids[:, 0] == 1, 1]  # after "down" from the start: down, or slipped right or left into the wall
    assert set(moved.tolist()) == {0, 1, 4}
    # Equal actions share a step though their states differ; keyed by state and action they do not.
    shared, keyed = (minigrpo.same_prefix(tokens, mask)[:, :, 1] for tokens in (ids, keys))
    apart = group.states[:, 1].unsqueeze(0) != group.states[:, 1].unsqueeze(1)
    assert (shared & apart).any()
    assert not (keyed & apart).any()
    assert torch.equal(keyed, shared & ~apart)
    # One group later nothing repeats, though the start does.
    generator = torch.Generator().manual_seed(0)
    slips = [sample_group(envs, policy, generator=generator, prefix=[2] * mid) for _ in range(2)]
    assert not torch.equal(slips[0].states[:, :mid], slips[1].states[:, :mid])


def test_state_action_ids_are_one_name_for_each_pair():
    pairs = torch.tensor([list(product(range(5), range(3)))])  # (1, 15, 2)
    states, actions = pairs.unbind(dim=-1)
    blank = torch.zeros(1, 15)
    group = Rollout(actions, blank.bool(), blank, blank, states)
    assert state_action_ids(group, 3).tolist() == [list(range(15))]


@POLICIES
def test_a_prefix_is_taken_first(name):
    envs = make_envs(TREE, 12)
    policy = random_policy(envs, name)
    for prefix in ((), (1,), (0, 1), [1, 1, 0], (0, 0, 0, 0), (0, 1, 1, 0, 1, 1)):
        group = sample(envs, policy, prefix=prefix)
        assert group.completion_ids.shape == (12, 4)
        taken = torch.tensor(prefix[:4], dtype=torch.long)
        assert group.completion_ids[:, : len(taken)].eq(taken).all()
        assert len({*map(str, group.completion_ids.tolist())}) > 1 or len(taken) == 4  # the rest is sampled
        logps = policy(group.states, group.completion_ids).log_softmax(dim=-1)
        logps = logps.gather(-1, group.completion_ids.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(group.old_logps, logps, rtol=0, atol=1e-12)
    ended = sample(make_envs(CHAIN, 3), random_policy(make_envs(CHAIN, 1)), prefix=(0, 3, 0))
    assert ended.completion_ids.tolist() == [[0, 3]] * 3  # "=" ends the episode, the rest of the prefix is not taken


def test_actions_come_at_the_policys_probabilities():
    envs = make_envs(TREE, 400)
    policy, generator = random_policy(envs), torch.Generator().manual_seed(0)
    groups = stack_groups([sample_group(envs, policy, generator=generator) for _ in range(20)])
    states, ids, rejected = groups.states.flatten(), groups.completion_ids.flatten(), 0
    flat = (policy.logits * 0.8).softmax(dim=-1)[:, 1].tolist()  # another policy, not far from it
    for node, p in enumerate(policy.logits.softmax(dim=-1)[:15, 1].tolist()):
        count, right = int((states == node).sum()), int(ids[states == node].sum())
        assert count > 50
        assert abs(right - count * p) < 4 * math.sqrt(count * p * (1 - p)), node
        rejected += abs(right - count * flat[node]) > 4 * math.sqrt(count * p * (1 - p))
    assert rejected > 0  # the same bound tells the two apart


def test_stack_groups_pads_on_the_right():
    envs = make_envs(CHAIN, 4, max_length=9)
    policy = random_policy(envs)
    groups = [sample(envs, policy, seed, start_seed=seed) for seed in range(6)]
    lengths = [group.completion_ids.shape[-1] for group in groups]
    assert len(set(lengths)) > 1
    batch = stack_groups(groups)
    assert batch.completion_ids.shape == (6, 4, max(lengths))
    for p, (group, T) in enumerate(zip(groups, lengths, strict=True)):
        for name in ("completion_ids", "completion_mask", "old_logps", "states"):
            part = getattr(batch, name)[p]
            assert part.dtype == getattr(group, name).dtype
            assert torch.equal(part[:, :T], getattr(group, name))
            assert not part[:, T:].any()
        assert torch.equal(batch.rewards[p], group.rewards)


# The exact values: enumerate the 16 leaves.


def leaves(policy, n, r_neg, target):
    """{path: (probability, reward)} of PathTree under a policy of nodes."""
    table, result = policy.logits.detach().softmax(dim=-1), {}
    for path in product((0, 1), repeat=4):
        node, probability = 0, 1.0
        for action in path:
            probability, node = probability * float(table[node, action]), 2 * node + 1 + action
        reward = 1.0 if path == target else r_neg if path[:n] == target[:n] else 0.7
        result[path] = probability, reward
    assert sum(p for p, _ in result.values()) == pytest.approx(1, abs=1e-12)
    return result


def moments(tree, prefix):
    """Mean and variance of the outcome of an episode that begins with a prefix."""
    below = [leaf for path, leaf in tree.items() if path[: len(prefix)] == prefix]
    total = sum(p for p, _ in below)
    mean = sum(p * r for p, r in below) / total
    return mean, sum(p * (r - mean) ** 2 for p, r in below) / total


def check_values(values, group, tree, count):
    """Each token's value within 4 standard errors of the exact one; exact at the leaf. Returns |z| of each prefix."""
    z = {}
    for i in range(len(group.rewards)):
        for t in range(4):
            prefix = tuple(group.completion_ids[i, : t + 1].tolist())
            mean, variance = moments(tree, prefix)
            error = float(values[i, t]) - mean
            assert abs(error) <= 4 * math.sqrt(variance / count(i, t)) + 1e-12, prefix
            if variance > 1e-12:
                z[prefix] = abs(error) / math.sqrt(variance / count(i, t))
    assert values[:, 3].tolist() == pytest.approx(group.rewards.tolist(), abs=1e-12)  # nothing is left to chance
    return z


PROBLEM = {"n": 2, "r_neg": -1.0, "target": (1, 0, 0, 1)}


def test_fresh_process_rewards_estimate_the_exact_values():
    envs = make_envs(TREE, 50, **PROBLEM)
    policy = random_policy(envs, seed=1)
    tree = leaves(policy, **PROBLEM)
    ids = torch.tensor([*tree])  # all 16 paths
    rewards = torch.tensor([reward for _, reward in tree.values()], dtype=torch.float64)
    group = Rollout(ids, torch.ones(16, 4).bool(), torch.zeros(16, 4), rewards, torch.zeros_like(ids))
    values = fresh_process_rewards(envs, policy, group, generator=torch.Generator().manual_seed(1), samples=600)
    z = check_values(values, group, tree, lambda i, t: 600)
    assert sorted(z) == [(1,), (1, 0), (1, 0, 0)]  # the others lead to one reward
    assert max(z.values()) > 0.05  # sampled, not enumerated
    assert values[:, 0].max() - values[:, 0].min() > 0.1  # what a constant would not meet


def test_a_groups_own_process_rewards_estimate_the_same_values():
    envs = make_envs(TREE, 500, **PROBLEM)
    policy = random_policy(envs, seed=1)
    group = sample(envs, policy)
    values = minigrpo.process_rewards(group.rewards, group.completion_ids, group.completion_mask)
    sizes = minigrpo.step_sizes(group.completion_ids, group.completion_mask)
    z = check_values(values, group, leaves(policy, **PROBLEM), lambda i, t: int(sizes[i, t]))
    assert max(z.values()) > 0.05
    assert values[:, 0].max() - values[:, 0].min() > 0.1


def test_fresh_process_rewards_of_ragged_episodes():
    envs = make_envs(CHAIN, 4)
    policy = random_policy(envs)
    group = next(g for g in (sample(envs, policy, s, start_seed=3) for s in range(99)) if g.rewards.any())

    def fresh(group=group, seed=0, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return fresh_process_rewards(envs, policy, group, generator=generator, start_seed=3, **kwargs)

    values, mask = fresh(), group.completion_mask
    assert not mask.all()
    assert values[~mask].eq(0).all()
    last = mask.sum(dim=1) - 1
    assert torch.equal(values.gather(1, last.unsqueeze(1)).squeeze(1), group.rewards)
    assert torch.equal(values * 4, (values * 4).round())  # as many samples as envs, where nothing is said
    eighths = fresh(samples=8) * 8
    assert torch.equal(eighths, eighths.round())
    assert (eighths % 2 != 0).any()
    same = minigrpo.same_prefix(group.completion_ids, mask)
    assert ((values.unsqueeze(1) == values.unsqueeze(0)) | ~same).all()  # one prefix, one value
    unscored = Rollout(group.completion_ids, mask, group.old_logps, torch.zeros_like(group.rewards), group.states)
    assert torch.equal(fresh(unscored), values)  # the outcomes are new ones, not the group's
    assert not torch.equal(fresh(seed=1), values)


@pytest.mark.parametrize("samples", [0, -4, 3, 6])
def test_samples_are_a_multiple_of_the_envs(samples):
    envs = make_envs(TREE, 4)
    policy = random_policy(envs)
    message = rf"^samples must be a multiple of the number of envs \(4\), got {samples}$"
    with pytest.raises(ValueError, match=message):
        fresh_process_rewards(envs, policy, sample(envs, policy), generator=torch.Generator(), samples=samples)


def test_fresh_process_rewards_check_the_group():
    envs = make_envs(TREE, 4)
    policy = random_policy(envs)
    group = sample(envs, policy)
    holes = group.completion_mask.clone()
    holes[0, 1] = False
    group = Rollout(group.completion_ids, holes, group.old_logps, group.rewards, group.states)
    with pytest.raises(ValueError, match="^completion_mask must have no holes"):
        fresh_process_rewards(envs, policy, group, generator=torch.Generator())


class OddSpaces(PathTreeEnv):
    """PathTree with a space that does not start from 0, or is not Discrete."""

    def __init__(self, space, value):
        super().__init__()
        setattr(self, space, value)


gym.register("tests/OddSpaces-v0", entry_point=OddSpaces)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("minigrpo/NoSuchTree-v0", {}, "can't be made"),
        ("no_such_namespace/PathTree-v0", {}, "can't be made"),
        ("PathTree", {}, "can't be made"),
        (TREE, {"height": 3}, "can't be made.*height"),
        ("CartPole-v1", {}, r"must have Discrete\(n\) as its observation_space, got Box"),
        ("Blackjack-v1", {}, r"must have Discrete\(n\) as its observation_space, got Tuple"),
        (LAKE, {"map_name": "9x9"}, "can't be made.*KeyError"),
        ("no_such_module:PathTree-v0", {}, "can't be made.*ModuleNotFoundError"),
        *(
            ("tests/OddSpaces-v0", {"space": space, "value": value}, rf"must have Discrete\(n\) as its {space}, got ")
            for space in ("observation_space", "action_space")
            for value in (gym.spaces.Discrete(2, start=1), gym.spaces.MultiDiscrete([2, 2]))
        ),
    ],
)
def test_make_envs_refuses_what_it_cannot_use(env_id, kwargs, words):
    with pytest.raises(ValueError, match=f"^env '{env_id}' {words}"):
        make_envs(env_id, 2, **kwargs)


def test_make_envs_makes_separate_copies():
    envs = make_envs(TREE, 3, depth=2, r_neg=-7.0)
    assert len({id(env.unwrapped) for env in envs}) == 3
    assert all((env.unwrapped.depth, env.unwrapped.r_neg) == (2, -7.0) for env in envs)
    with pytest.raises(ValueError, match="^r_neg must be finite"):
        make_envs(TREE, 2, r_neg=math.inf)


def test_each_env_has_a_random_stream_of_its_own():
    envs = make_envs(LAKE, 64, is_slippery=True)
    policy = make_policy("tabular", 16, 4)
    sample_group(envs, policy, generator=torch.Generator().manual_seed(0))
    states = {str(env.unwrapped.np_random.bit_generator.seed_seq.entropy) for env in envs}
    assert len(states) == 64


def test_an_episode_that_does_not_end_is_cut():
    envs = make_envs(CLIFF, 2)  # no time limit
    policy = make_policy("tabular", 48, 4)
    with torch.no_grad():
        policy.logits[:, 0] = 50.0  # up, for ever
    group = sample_group(envs, policy, generator=torch.Generator().manual_seed(0), max_tokens=30)
    assert group.completion_mask.shape == (2, 30)
    assert group.completion_mask.all()
