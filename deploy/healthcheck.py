"""Whether the server in this container is ready: exit status 0 or 1. The image has no curl, and a proxy is not asked."""

import http.client
import os
import sys


def main() -> int:
    """0 if `/health` answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("DIARIST_PORT") or 7860), timeout=4)
    try:
        connection.request("GET", "/health")
        return int(connection.getresponse().status != http.client.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
