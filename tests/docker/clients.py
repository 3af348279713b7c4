"""Clients that predict over the published port until the server turns them away."""

import http.client
import json
import threading
import time


def request(port, method, path, body=None, headers=None, timeout=10, host="127.0.0.1"):
    """One request on a connection of its own: status and body."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Clients:
    """Kept-alive connections, each with one request after the other, until the server closes it.

    A connection that the engine's proxy accepts after the server has gone looks like any other, so no client opens
    one once `stopping` is set. Before that every failure counts, and on an established connection it always does.
    """

    # They end by themselves, whatever the server does.
    LONGEST = 60

    def __init__(self, port, count, body, expected, host="127.0.0.1"):
        self.host, self.port, self.body, self.expected = host, port, body, expected
        self.stopping = threading.Event()
        self.answered = self.lost = self.wrong = 0
        self.reasons = []
        self._lock = threading.Lock()
        self._end = time.monotonic() + self.LONGEST
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self):
        for thread in self._threads:
            thread.join(self.LONGEST)

    def _work(self):
        while not self.stopping.is_set() and time.monotonic() < self._end:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
            try:
                connection.connect()
                while time.monotonic() < self._end:
                    connection.request("POST", "/predict", self.body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    closes = answer.will_close
                    right = answer.status == 200 and json.loads(answer.read())["outputs"]["label"] == self.expected
                    with self._lock:
                        self.answered += 1
                        self.wrong += not right
                    if closes:
                        break
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.lost += 1
                    self.reasons.append(repr(error))
            finally:
                connection.close()
