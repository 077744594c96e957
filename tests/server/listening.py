"""A server that really listens, in a thread of this process."""

import contextlib
import threading
import time

from diarist.server.serve import make_server
from diarist.settings import ServerSettings


class Running:
    """A server that listens."""

    def __init__(self, server, engine):
        self.server, self.engine = server, engine
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.service = server.config.app.state.service

    def spooled(self):
        """Files of clients that lie in the spool."""
        return [path for path in self.service.spool.folder.iterdir() if path.name != "lock"]


@contextlib.contextmanager
def serving(engine, spool, **settings):
    made = make_server(ServerSettings(_env_file=None, port=0, spool_dir=spool, graceful_stop_s=8.0, **settings), engine)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not (made.started and engine.ready):
        assert thread.is_alive(), "the server has ended"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.02)
    try:
        yield Running(made, engine)
    finally:
        made.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"
