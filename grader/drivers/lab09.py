"""Lab 09: one function, many texts."""


def each_text(namespace, function, arguments):
    """The answers of namespace[function] to arguments["completions"], one after the other."""
    return [namespace[function](completion) for completion in arguments["completions"]]


DRIVERS = {"lab09_each_text": each_text}
