#!/usr/bin/env python3
"""How long a scrape of /metrics takes while many requests run: ci/scrape.py --model NAME --requests 1000

Needs a running server whose model runs so many requests together (the parameter max_batch_size). Prints the times of the scrapes
and how many requests were running when each began."""

import argparse
import asyncio
import json
import re
import statistics
import time


async def http(port: int, text: str):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    await writer.drain()
    return reader, writer


async def stream(args, started: asyncio.Semaphore):
    """A request that generates until its connection is cut."""
    body = json.dumps({"text_input": args.prompt, "max_tokens": args.max_tokens, "stream": True, "end_id": -1})
    head = f"POST /v2/models/{args.model}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reader, writer = await http(args.http, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
    try:
        await reader.read(1)
        started.release()
        while await reader.read(1 << 16):
            pass
    finally:
        writer.close()


async def scrape(args) -> tuple[float, float, int]:
    """Milliseconds, requests in the latest step, and bytes."""
    begin = time.perf_counter()
    reader, writer = await http(args.metrics, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    took = (time.perf_counter() - begin) * 1000
    writer.close()
    series = rf'nv_trt_llm_request_metrics{{[^}}]*model="{args.model}"[^}}]*request_type="scheduled"[^}}]*}} (\S+)'
    running = re.search(series, text)
    return took, float(running[1]) if running else 0.0, len(text)


def told(name: str, scrapes: list[tuple[float, float, int]]):
    times = sorted(took for took, _, _ in scrapes)
    running = [count for _, count, _ in scrapes]
    print(
        f"{name}: median {statistics.median(times):.2f} ms, 95 % within {times[int(len(times) * 0.95)]:.2f} ms, "
        f"longest {times[-1]:.2f} ms; {min(running):.0f} to {max(running):.0f} running; {scrapes[0][2]} bytes"
    )


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, default=8000, help="the server's HTTP port")
    parser.add_argument("--metrics", type=int, default=8002, help="the server's metrics port")
    parser.add_argument("--model", default="tensorrt_llm")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--scrapes", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=1500)
    parser.add_argument("--prompt", default="Once upon a time")
    args = parser.parse_args()

    told("idle", [await scrape(args) for _ in range(args.scrapes)])
    started = asyncio.Semaphore(0)
    streams = [asyncio.create_task(stream(args, started)) for _ in range(args.requests)]
    for _ in streams:
        await started.acquire()
    busy = []
    for _ in range(args.scrapes):
        busy.append(await scrape(args))
        await asyncio.sleep(0.05)
    told(f"{args.requests} requests", busy)
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


asyncio.run(main())
