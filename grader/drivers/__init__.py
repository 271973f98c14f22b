def call(namespace, function, arguments):
    return namespace[function](**arguments)


DRIVERS = {"call": call}
