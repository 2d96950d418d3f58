"""Python imports this module when it starts: no process of a command under test may reach a network.

Each attempt is written to the file that MOBILER2L_SOCKETS names, and fails. Sockets of the file system, through which
the processes of a machine talk to each other, are no network.
"""

import os
import sys


def refuse(event: str, arguments: tuple) -> None:
    """Audit hook: Python announces each use of a socket, also by compiled code that goes through its socket module."""
    reaches = event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(arguments[1], tuple)
    if event == "socket.bind" and arguments[1] == ("::1", 0):
        return  # urllib3 asks in this way whether the machine knows IPv6, when it is imported
    if reaches or event in ("socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["MOBILER2L_SOCKETS"], "a") as file:
            print(event, arguments[1:] if reaches else arguments, file=file)
        raise ConnectionRefusedError("no network in tests")


sys.addaudithook(refuse)
