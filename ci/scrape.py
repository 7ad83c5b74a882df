#!/usr/bin/env python3
"""How long a scrape of /metrics takes while many requests run: ci/scrape.py --model NAME --requests 1000 --pid SERVER

Needs a running server whose model runs so many requests together (the parameter max_batch_size). The clients are a process of
their own with the lowest priority: what they need of the cores is not the server's. Prints the times of the scrapes and how many
requests were running when each began; with --pid (Linux) also how much of each was waiting for a core, of the threads that answer
and of this program."""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import socket
import statistics
import time
from pathlib import Path


async def client(args, started):
    """A request that generates until this process ends."""
    body = json.dumps({"text_input": args.prompt, "max_tokens": args.max_tokens, "stream": not args.whole, "end_id": -1})
    reader, writer = await asyncio.open_connection("127.0.0.1", args.http)
    endpoint = "generate" if args.whole else "generate_stream"
    head = f"POST /v2/models/{args.model}/{endpoint} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()
    started()
    while await reader.read(1 << 16):
        pass


def clients(args, number, ready):
    os.nice(19)

    async def run():
        left = number

        def started():
            nonlocal left
            left -= 1
            if left == 0:
                ready.release()

        await asyncio.gather(*(client(args, started) for _ in range(number)), return_exceptions=True)

    asyncio.run(run())


def page(args) -> bytes:
    with socket.create_connection(("127.0.0.1", args.metrics)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def waited_ns(pid: int | str, thread: int) -> int:
    """How long a thread has been ready to run and had no core, since it began."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])


def answering_threads(args) -> list[int]:
    """The threads of the server that a scrape runs through: those that run at least once more for each."""
    count = 200

    def runs():
        threads = Path(f"/proc/{args.pid}/task").iterdir()
        return {int(thread.name): int((thread / "schedstat").read_text().split()[2]) for thread in threads}

    if args.pid is None:
        return []
    before = runs()
    for _ in range(count):
        page(args)
    return [thread for thread, after in runs().items() if after - before.get(thread, after) >= count]


def scrape(args, answering) -> dict:
    own = os.getpid()
    waits = lambda: (sum(waited_ns(args.pid, thread) for thread in answering), waited_ns(own, own))
    before, begin = waits(), time.perf_counter()
    text = page(args).decode()
    took = (time.perf_counter() - begin) * 1000
    waited = [(after - since) / 1e6 for after, since in zip(waits(), before)]
    series = rf'nv_trt_llm_request_metrics{{[^}}]*model="{args.model}"[^}}]*request_type="scheduled"[^}}]*}} (\S+)'
    running = re.search(series, text)
    # Both may wait at the same time.
    rest = max(took - sum(waited), 0)
    return {"took": took, "server": waited[0], "own": waited[1], "rest": rest, "running": float(running[1]) if running else 0, "bytes": len(text)}


def told(name: str, scrapes: list[dict], with_waits: bool):
    def line(what, key):
        times = sorted(scrape[key] for scrape in scrapes)
        print(f"  {what}: median {statistics.median(times):.2f} ms, 95 % within {times[int(len(times) * 0.95)]:.2f} ms, longest {times[-1]:.2f} ms")

    running = [scrape["running"] for scrape in scrapes]
    print(f"{name}: {len(scrapes)} scrapes, {min(running):.0f} to {max(running):.0f} running, {scrapes[0]['bytes']} bytes")
    line("time", "took")
    if with_waits:
        line("of it the server's threads waited for a core", "server")
        line("of it this program waited for a core", "own")
        line("the rest", "rest")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, default=8000, help="the server's HTTP port")
    parser.add_argument("--metrics", type=int, default=8002, help="the server's metrics port")
    parser.add_argument("--model", default="tensorrt_llm")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--scrapes", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=1500)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--whole", action="store_true", help="answers in one piece, so that hardly anything is sent while they run")
    parser.add_argument("--pid", type=int, help="the server's process")
    args = parser.parse_args()

    answering = answering_threads(args)
    told("idle", [scrape(args, answering) for _ in range(args.scrapes)], bool(answering))
    ready = multiprocessing.Semaphore(0)
    load = multiprocessing.Process(target=clients, args=(args, args.requests, ready), daemon=True)
    load.start()
    ready.acquire()
    end = time.monotonic() + 120
    while scrape(args, [])["running"] < args.requests and time.monotonic() < end:
        time.sleep(0.2)
    busy = []
    for _ in range(args.scrapes):
        busy.append(scrape(args, answering))
        time.sleep(0.05)
    told(f"{args.requests} requests", busy, bool(answering))
    load.terminate()
    load.join()


if __name__ == "__main__":
    main()
