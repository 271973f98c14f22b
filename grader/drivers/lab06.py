"""Lab 06: walks through an environment."""

import gymnasium

from grader.drivers import number
from grader.protocol import ProtocolError


def walk_env(namespace, function, arguments):
    """Make one environment and walk through it: its sizes, and a trace for each list of actions.

    An episode ends where the environment says so, or where the actions do.
    """
    arguments = dict(arguments)
    walks = arguments.pop("walks")
    env = namespace[function](**arguments)
    if not isinstance(env, gymnasium.Env):
        raise ProtocolError(f"{function} must be a gymnasium.Env, got {env!r:.80}")
    traces = []
    for actions in walks:
        observation, _ = _values(env.reset(), "reset", "observation, info")
        trace = {"start": number(observation, "reset's observation", int)}
        trace |= {"observations": [], "rewards": [], "terminated": [], "truncated": []}
        for action in actions:
            result = _values(
                env.step(action), "step", "observation, reward, terminated, truncated, info"
            )
            observation, reward, terminated, truncated, _ = result
            trace["observations"].append(number(observation, "step's observation", int))
            trace["rewards"].append(number(reward, "step's reward"))
            trace["terminated"].append(number(terminated, "step's terminated", bool))
            trace["truncated"].append(number(truncated, "step's truncated", bool))
            if trace["terminated"][-1] or trace["truncated"][-1]:
                break
        traces.append(trace)
    return {
        "actions": _size(env.action_space),
        "nodes": _size(env.observation_space),
        "traces": traces,
    }


def _size(space):
    """How many values a space of whole numbers has."""
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise ProtocolError(
            f"action_space and observation_space must be Discrete, got {space!r:.80}"
        )
    return int(space.n)


def _values(result, method, names):
    """The values that a method of an environment returned."""
    if not isinstance(result, tuple) or len(result) != len(names.split(", ")):
        raise ProtocolError(f"{method} must return {names}, got {result!r:.80}")
    return result


DRIVERS = {"walk_env": walk_env}
