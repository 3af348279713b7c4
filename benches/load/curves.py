"""How throughput and latency go with the number of connections and with the offered rate.

These have no targets; they are drawn. What is compared is again measured in turns, with one load for each point.
"""

import contextlib

import oha
import servers

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
# Of each server's own capacity, the most that it did in the closed loop.
OFFERED = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
# Enough that the load generator never waits for a free one below capacity.
OPEN_CONNECTIONS = 64


def measure(bench):
    """Closed loops by connections, then open loops by rate, of the smallest model."""
    subject = bench.subjects["tiny"]
    connections = CONNECTIONS[::3] if bench.quick else CONNECTIONS
    offered = OFFERED[::3] if bench.quick else OFFERED
    with contextlib.ExitStack() as stack:
        bench.progress("starting the peers")
        ours, fastapi, litserve = (
            stack.enter_context(start(subject.path)) for start in (servers.ours, servers.fastapi, servers.litserve)
        )
        lines = [(ours, "raw"), (ours, "JSON"), (fastapi, "JSON"), (litserve, "JSON")]
        for server, form in lines:
            server.check(subject.request(form))

        def load(server, form, count, **pace):
            with servers.asleep(*([] if server is litserve else [litserve.process])):
                seen = oha.run(oha.Load(server, subject.request(form), count, bench.seconds, **pace))
            return seen.figures()

        closed, opened = {}, {}
        for count in connections:
            bench.progress(f"closed loop, {count} connections")
            for server, form in lines:
                point = {"connections": count, **load(server, form, count)}
                closed.setdefault(f"{server.name}, {form}", []).append(point)
        for share in offered:
            bench.progress(f"open loop, {share:.0%} of each server's capacity")
            for server, form in lines:
                name = f"{server.name}, {form}"
                rate = share * max(point["requests_per_second"] for point in closed[name])
                point = {"share": share, "offered": round(rate, 1), **load(server, form, OPEN_CONNECTIONS, rate=rate)}
                opened.setdefault(name, []).append(point)
    bench.raw["closed loop"], bench.raw["open loop"] = closed, opened
