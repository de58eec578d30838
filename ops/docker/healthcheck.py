"""Whether the server of this container is ready: exit 0 or 1. Argument: its address, or a gateway's."""

import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT = 3.0
"""Seconds; less than Docker waits for this program."""


def main(url: str = "http://127.0.0.1:8080/readyz") -> int:
    """Ask once."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        said = answer.read(1000).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as error:
        print(f"{url}: {error}")
        return 1
    finally:
        connection.close()
    print(f"{url}: {answer.status} {said}")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
