"""Lab 05: several calls in one case, where an answer to a single one could be guessed."""


def answer_all(namespace, function, arguments):
    """The answers to arguments["calls"], each of them a dict of arguments."""
    return [namespace[function](**call) for call in arguments["calls"]]


DRIVERS = {"answer_all": answer_all}
