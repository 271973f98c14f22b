"""Lab 06: walks through an environment, and a function called twice."""

import gymnasium


def walk_env(namespace, function, arguments):
    """Make one environment and walk through it: its sizes, and a trace for each list of actions.

    An episode ends where the environment says so, or where the actions do.
    """
    arguments = dict(arguments)
    walks = arguments.pop("walks")
    env = namespace[function](**arguments)
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"{function} must be a gymnasium.Env")
    traces = []
    for actions in walks:
        observation, _ = _values(env.reset(), "reset", "observation, info")
        trace = {"start": int(observation), "observations": [], "rewards": [], "terminated": [], "truncated": []}
        for action in actions:
            result = _values(env.step(action), "step", "observation, reward, terminated, truncated, info")
            observation, reward, terminated, truncated, _ = result
            trace["observations"].append(int(observation))
            trace["rewards"].append(float(reward))
            trace["terminated"].append(bool(terminated))
            trace["truncated"].append(bool(truncated))
            if terminated or truncated:
                break
        traces.append(trace)
    return {"actions": int(env.action_space.n), "nodes": int(env.observation_space.n), "traces": traces}


def _values(result, method, names):
    """The values that a method of an environment returned."""
    if not isinstance(result, tuple) or len(result) != len(names.split(", ")):
        raise TypeError(f"{method} must return {names}")
    return result


def twice(namespace, function, arguments):
    """Two answers to the same arguments, each two numbers."""
    return [[float(end) for end in namespace[function](**arguments)] for _ in range(2)]


DRIVERS = {"walk_env": walk_env, "twice": twice}
