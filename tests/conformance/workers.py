"""Processes that examine cases, two at a time, so that a case that ends one of them ends nothing else."""

import collections
import json
import subprocess
import sys
import threading


def serve(examine):
    """The part of a worker: names of cases come in, what `examine` makes of them goes out, a line each."""
    for line in sys.stdin:
        print(json.dumps(examine(line.strip())), flush=True)


class _Worker:
    def __init__(self, command):
        self._command = command
        self._process = None

    def examine(self, name, crashed):
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._process = None
        return crashed(f"this test's own process ended with exit code {code}")

    def end(self):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


def run(script, flags, names, crashed):
    """What the workers make of `names`, in this order; of a case that ended its worker, what `crashed` does."""
    waiting = collections.deque(names)
    results = {}

    def drain():
        worker = _Worker([sys.executable, "-B", script, *flags, "--worker"])
        try:
            while waiting:
                name = waiting.popleft()
                results[name] = worker.examine(name, crashed)
        except IndexError:
            pass  # the other one took the last
        finally:
            worker.end()

    threads = [threading.Thread(target=drain) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: results[name] for name in names}
