"""The toy tasks against their rules, leaf by leaf and chain by chain."""

from itertools import product

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import minigrpo  # noqa: F401  registers the tasks
from minigrpo.envs import ArithmeticChainEnv, PathTreeEnv

IDS = ("minigrpo/PathTree-v0", "minigrpo/ArithmeticChain-v0")
PATHS = list(product((0, 1), repeat=4))  # the 16 leaves from left to right
PLUS_1, PLUS_3, TIMES_2, END = range(4)


def play(env, actions, seed=0):
    """Reset and act: [(state, reward, terminated, truncated)], the first of the reset."""
    return [(env.reset(seed=seed)[0], 0.0, False, False)] + [env.step(action)[:4] for action in actions]


def outcome(env, actions, seed=0):
    return sum(reward for _, reward, _, _ in play(env, actions, seed))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "ansi"])
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_it(env_id, render_mode):
    env = gym.make(env_id, render_mode=render_mode)
    assert env.render_mode == render_mode
    assert env.spec.id == env_id
    check_env(env.unwrapped)


@pytest.mark.parametrize("r_neg", [-0.5, -1.0, -1.5, 2])
@pytest.mark.parametrize(
    ("target", "n", "leaves"),  # t the target, x r_neg, o the others, from LLLL to RRRR
    [
        ((0, 1, 0, 0), 1, "xxxxtxxxoooooooo"),
        ((0, 1, 0, 0), 2, "ooootxxxoooooooo"),
        ((1, 0, 1, 1), 1, "ooooooooxxxtxxxx"),
        ((1, 0, 1, 1), 2, "ooooooooxxxtoooo"),
        ((1, 1, 1, 0), 3, "ooooooooooooootx"),
        ((1, 1, 1, 1), 0, "xxxxxxxxxxxxxxxt"),
    ],
)
def test_path_tree_rewards_by_hand(target, n, r_neg, leaves):
    env = gym.make(IDS[0], n=n, r_neg=r_neg, target=target)
    rewards = {"t": 1.0, "x": float(r_neg), "o": 0.7}
    assert [outcome(env, path) for path in PATHS] == [rewards[leaf] for leaf in leaves]
    assert (leaves.count("t"), leaves.count("x")) == (1, 2 ** (4 - n) - 1)


def test_path_tree_walks_the_tree():
    env = gym.make(IDS[0], target=[0, 0, 0, 0], render_mode="ansi")
    assert play(env, [0, 1, 1, 0]) == [  # node k has the children 2k + 1 and 2k + 2
        (0, 0.0, False, False),
        (1, 0.0, False, False),
        (4, 0.0, False, False),
        (10, 0.0, False, False),
        (21, -0.5, True, False),
    ]
    assert env.render() == "L R R L"
    assert play(env, [1, 1, 1, 1])[-1] == (30, 0.7, True, False)  # the last of 31 nodes
    assert env.reset()[0] == 0
    assert env.render() == "(root)"


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_path_tree_depth(depth):
    env = gym.make(IDS[0], depth=depth, n=depth - 1, target=(1,) * depth)
    assert env.observation_space == gym.spaces.Discrete(2 ** (depth + 1) - 1)
    states, rewards, terminated, _ = zip(*play(env, [1] * depth), strict=True)
    assert states == tuple(2 ** (t + 1) - 2 for t in range(depth + 1))
    assert rewards == (0.0,) * depth + (1.0,)
    assert terminated == (False,) * depth + (True,)
    assert outcome(env, [1] * (depth - 1) + [0]) == -0.5


def test_path_tree_draws_its_target_from_a_seed_of_its_own():
    targets = [PathTreeEnv(target_seed=seed).target for seed in range(200)]
    assert targets == [PathTreeEnv(target_seed=seed).target for seed in range(200)]
    assert set(targets) == set(PATHS)
    env = gym.make(IDS[0], target_seed=7)
    for seed in range(5):  # the reset's seed does not move it
        assert [outcome(env, path, seed) == 1.0 for path in PATHS].index(True) == PATHS.index(targets[7])


def test_arithmetic_chain_by_hand():
    env = gym.make(IDS[1], start=2, target=10, render_mode="ansi")
    assert play(env, [PLUS_3, TIMES_2, END]) == [  # 2, 5, 10, all with the target before them: 10 · 25 + value
        (252, 0.0, False, False),
        (255, 0.0, False, False),
        (260, 0.0, False, False),
        (260, 1.0, True, False),
    ]
    assert env.render() == "2 +3 → 5 ×2 → 10 =   (target 10)"


@pytest.mark.parametrize(
    ("actions", "reward"),
    [
        ([TIMES_2, PLUS_3, TIMES_2, PLUS_3, PLUS_1, END], 0.0),  # 18
        ([PLUS_3, PLUS_3, PLUS_1, PLUS_1, END], 1.0),
        ([PLUS_1, TIMES_2, PLUS_3, PLUS_1, END], 1.0),  # 3, 6, 9, 10
        ([END], 0.0),  # ended too early
        ([PLUS_1, PLUS_1, PLUS_1, PLUS_1, PLUS_3, PLUS_1], 0.0),  # 10 was passed, and nothing was ended
        ([PLUS_1, PLUS_1, PLUS_1, PLUS_1, PLUS_1, PLUS_3], 0.0),  # at 10, but never ended
    ],
)
def test_arithmetic_chain_rewards(actions, reward):
    env = gym.make(IDS[1], start=2, target=10)
    path = play(env, actions)
    assert play(env, actions) == path  # a reset begins anew
    assert [step[1] for step in path] == [0.0] * len(actions) + [reward]
    assert [step[2] for step in path] == [False] * len(actions) + [True]


@pytest.mark.parametrize("limit", [12, 24])
def test_arithmetic_chain_stays_at_its_limit(limit):
    env = gym.make(IDS[1], start=limit - 1, target=limit, max_length=8, limit=limit)
    actions = [PLUS_1, PLUS_1, PLUS_3, TIMES_2, END]
    values = [state % (limit + 1) for state, *_ in play(env, actions)]
    assert values == [limit - 1] + [limit] * 5
    assert outcome(env, actions) == 1.0
    assert env.observation_space == gym.spaces.Discrete((limit + 1) ** 2)
    assert env.reset()[0] == limit * (limit + 1) + limit - 1
    assert play(env, [PLUS_1] * 8)[-1][0] == env.observation_space.n - 1  # the largest


def test_every_drawn_problem_is_one_of_18_and_has_a_chain():
    env = ArithmeticChainEnv()
    drawn = {(env.value, env.goal) for seed in range(400) if env.reset(seed=seed)}
    assert drawn == {(start, start + way) for start, way in product(range(1, 4), range(4, 10))}
    chains = [chain + (END,) for length in range(6) for chain in product((PLUS_1, PLUS_3, TIMES_2), repeat=length)]
    for start, target in sorted(drawn):
        problem = ArithmeticChainEnv(start=start, target=target)
        assert any(outcome(problem, chain) == 1.0 for chain in chains), (start, target)


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_and_actions_give_the_same_episode(env_id):
    episodes = [[play(gym.make(env_id), [0, 1, 0, 1], seed) for seed in range(20)] for _ in range(2)]
    assert episodes[0] == episodes[1]
    differ = len({str(episode) for episode in episodes[0]})
    assert differ == 1 if env_id == IDS[0] else differ > 10  # only the chain's problems are drawn at the reset


def test_arithmetic_chain_draws_only_what_is_not_given():
    env = gym.make(IDS[1], target=7)
    infos = [env.reset(seed=seed) for seed in range(30)]
    assert {state for state, _ in infos} == {7 * 25 + start for start in (1, 2, 3)}
    assert all(info == {"target": 7} for _, info in infos)
    env = gym.make(IDS[1], start=4)
    assert {env.reset(seed=seed)[0] % 25 for seed in range(30)} == {4}


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        (IDS[0], {"depth": 0}),
        (IDS[0], {"n": -1}),
        (IDS[0], {"n": 4}),
        (IDS[0], {"n": 2, "depth": 2}),
        (IDS[0], {"r_neg": float("nan")}),
        (IDS[0], {"r_neg": float("-inf")}),
        (IDS[0], {"target": [0, 1, 0]}),
        (IDS[0], {"target": [0, 1, 0, 2]}),
        (IDS[1], {"max_length": 0}),
        (IDS[1], {"limit": 11}),
        (IDS[1], {"start": 0}),
        (IDS[1], {"start": 25}),
        (IDS[1], {"target": 0}),
        (IDS[1], {"target": 25}),
    ],
    ids=str,
)
def test_bad_arguments_are_named(env_id, kwargs):
    name, value = next(iter(kwargs.items()))
    with pytest.raises(ValueError) as error:
        gym.make(env_id, **kwargs)
    assert str(error.value).startswith(f"{name} must ")
    assert str(error.value).endswith(f"got {value}")


@pytest.mark.parametrize(("start", "target", "max_length"), [(1, 24, 1), (24, 1, 1), (12, 12, 1)])
def test_arguments_at_the_edge_are_taken(start, target, max_length):
    env = gym.make(IDS[1], start=start, target=target, max_length=max_length)
    assert play(env, [END])[1] == (target * 25 + start, float(start == target), True, False)
