"""Cases of answers: each client gets its own values, all of them, however it reads and whenever the server stops."""

import collections
import contextlib
import threading
import time

import client
import memory
import numpy as np
import subjects
from process import Failed, Server, serving

CLIENTS = 6
# Answers for each datatype or no-op, and for the case that clients have met.
SOME, MANY = 240, 3000
# The executions to an answer, at most, where clients share them.
SHARED = 0.8


def values(name, salt):
    """A row that no other client sends, exact in the model's datatype, as it stands in JSON."""
    count = np.arange(subjects.ALIASED)
    if name == "bool":
        return [bool(bit) for bit in np.random.default_rng(salt).integers(0, 2, subjects.ALIASED)]
    if name == "string":
        # Longer than a string's own small buffer, so that it lies on the heap.
        return [f"client {salt} sent the string number {number}" for number in count]
    if name in ("int8", "uint8"):
        return [int(value) for value in (count * 7 + salt) % 127]
    if name in ("float16", "bfloat16"):
        return [int(value) for value in (count * 3 + salt) % 256]
    return [int(value) for value in (count + salt * 101) % 32_000]


class Checked:
    """Clients that send rows of their own to a model and count the answers that hold other values."""

    def __init__(self, port, model, outputs, answers):
        self.port, self.model, self.outputs = port, model, outputs
        self.seen = collections.Counter()
        self.lock = threading.Lock()
        self.left = answers
        self.threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(5 * client.PATIENCE)

    def _work(self, number):
        path = f"/v1/models/{self.model}:predict"
        connection = None
        salt = number
        while self._take():
            salt += CLIENTS
            sent = values(self.model, salt)
            request = client.post({"inputs": {"x": [sent]}}, path=path)
            # The other form of answers hands ONNX Runtime's memory on as it is.
            floats = np.array(sent, np.float32).tobytes() if self.model == "relu" and salt % 2 else None
            if floats:
                request = client.post(floats, path=f"{path}?outputs=x", form=client.RAW, accept=client.RAW)
            try:
                connection = connection or client.Connection(self.port)
                answer = connection.ask(request)
                verdict = answer.status
                if floats and answer.status == 200:
                    verdict = "right" if answer.body == floats else "WRONG"
                elif answer.status == 200:
                    outputs = answer.json()["outputs"]
                    right = {name if isinstance(name, str) else name[0]: [sent] for name in self.outputs}
                    if self.model == "defaulted":
                        bias = [float(value) for value in range(subjects.ALIASED)]
                        right = {"y": [[a + b for a, b in zip(sent, bias)]], "bias": bias}
                    verdict = "right" if outputs == right else "WRONG"
            except ValueError:
                # Freed memory need not be UTF-8.
                verdict = "WRONG"
            except (OSError, EOFError) as error:
                verdict = type(error).__name__
                connection = None
            with self.lock:
                self.seen[verdict] += 1

    def _take(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0


def aliased(trust):
    """7: outputs that are inputs, or lie where one lies."""
    folder = trust.folder / "aliased"
    outputs = subjects.aliased(folder)
    whole = ["--max-batch-size", "1", "--instances", "2"]
    shared = ["--max-batch-size", "16", "--max-queue-delay", "3ms", "--instances", "2"]
    for mode, flags in (("alone", whole), ("in shared batches", shared)):
        try:
            with serving(trust.program, folder, *flags, "--tuning-time", "off") as server:
                groups = {"relu": (["relu"], MANY)}
                groups |= {"each datatype": (list(subjects.DATATYPES), SOME)}
                groups |= {"through no-ops and defaults": (["no-ops", "no-ops-and-input", "defaulted"], SOME)}
                for group, (names, answers) in groups.items():
                    seen, wrong, before = collections.Counter(), [], memory.executed(server)
                    for name in names:
                        counted = Checked(server.port, name, outputs[name], answers).seen
                        seen += counted
                        wrong += [name] if set(counted) != {"right"} else []
                    measured = client.statuses(seen) + (f" ({', '.join(wrong)})" if wrong and len(names) > 1 else "")
                    what = f"outputs that are inputs, {group}, {mode}"
                    if server.process.poll() is not None:
                        measured += f"; {server.how_it_ended()}"
                    trust.add(what, f"{answers * len(names)} right", measured, not wrong)
                    executions = memory.executed(server) - before
                    # Else the case would not be what it says.
                    if group == "relu" and flags is shared:
                        most = round(SHARED * answers)
                        trust.add(f"{what}: executions", f"<= {most}", f"{executions:.0f}", executions <= most)
        except Failed as failure:
            trust.add(f"outputs that are inputs, {mode}", "a start", failure, False)
    _large_aliased(trust)


def _large_aliased(trust):
    what = "an output of 8 MB that is an input"
    try:
        with serving(trust.program, subjects.large_aliased(trust.folder), "--max-batch-size", "2") as server:
            right = 0
            for number in range(10):
                sent = (memory.row(2_000_000) + number).tobytes()
                request = client.post(sent, path="/predict?outputs=x", form=client.RAW, accept=client.RAW)
                answer = client.ask(server.port, request)
                right += answer.status == 200 and answer.body == sent
            trust.add(what, "10 right", right, right == 10)
    except (Failed, OSError, EOFError) as failure:
        trust.add(what, "10 right", failure, False)


def sent_slowly(trust):
    """8: a large answer, read at a tenth of what the machine could do."""
    model = subjects.widen(trust.folder)
    length, speed = 10_000, 10_000_000
    idle = ["--keep-alive-timeout", "500ms"]
    for what, flags, stops_after in (("with a keep-alive of 500 ms", idle, None), ("across SIGTERM after 1 s", [], 1)):
        server = Server(trust.program, model, *flags)
        try:
            connection = client.Connection(server.port, 256 << 10)
            connection.stream.sendall(memory.wide(length))
            codes = []
            if stops_after:

                def stop(server=server, seconds=stops_after, codes=codes):
                    time.sleep(seconds)
                    codes.append(server.stop())

                stopping = threading.Thread(target=stop, daemon=True)
                stopping.start()
            try:
                complete = memory.is_widened(connection.read(speed), length)
                measured = "complete" if complete else "other values"
            except (OSError, EOFError) as error:
                complete, measured = False, f"cut: {error}"
            if stops_after:
                connection.close()
                stopping.join(client.PATIENCE)
                measured += f", exit code {codes[0] if codes else 'none'}"
                complete = complete and codes == [0]
            wanted = "complete" + (", exit code 0" if stops_after else "")
            trust.add(f"40 MB read at 10 MB/s {what}", wanted, measured, complete)
            with contextlib.suppress(OSError):
                connection.close()
        finally:
            server.end()


def many_rows(trust):
    """11: requests of more rows than share an execution."""
    with serving(trust.program, subjects.addone(trust.folder)) as server:
        for count in (33, 1000):
            sent = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
            answer = client.ask(server.port, client.post({"inputs": sent.tolist()}))
            right = answer.status == 200 and answer.json()["outputs"]["y"] == (sent + 1).tolist()
            report(trust, f"{count} rows in JSON", answer, right)
            answer = client.ask(server.port, client.post(sent.tobytes(), form=client.RAW, accept=client.RAW))
            report(trust, f"{count} rows, raw", answer, answer.status == 200 and answer.body == (sent + 1).tobytes())
    with serving(trust.program, subjects.cumsum(trust.folder)) as server:
        for count in (33, 1000):
            sent = np.arange(count, dtype=np.float32)
            answer = client.ask(server.port, client.post({"inputs": sent.tolist()}))
            right = answer.status == 200 and answer.json()["outputs"]["y"] == np.cumsum(sent).tolist()
            report(trust, f"{count} values to a model without a batch axis", answer, right)


def report(trust, what, answer, right):
    measured = "right" if right else f"{answer.status} {answer.body[:120].decode(errors='replace')}"
    trust.add(what, "200 and right", measured, right)
