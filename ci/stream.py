"""Streams one answer from a model's generate_stream endpoint to the terminal. Standard library only."""

import argparse
import json
import sys
import urllib.error
import urllib.request


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://localhost:8000/v2/models/tensorrt_llm/generate_stream")
    parser.add_argument("--max-tokens", type=int, default=80)
    arguments = parser.parse_args()
    body = json.dumps({"text_input": arguments.prompt, "max_tokens": arguments.max_tokens, "stream": True}).encode()
    request = urllib.request.Request(arguments.url, body, {"Content-Type": "application/json"})
    print(arguments.prompt, end="", flush=True)
    pieces = 0
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    print(f"\nerror: {event['error']}", file=sys.stderr)
                    return 1
                print(event.get("text_output", ""), end="", flush=True)
                pieces += 1
    except urllib.error.HTTPError as error:
        print(f"\nerror: HTTP {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print(flush=True)
    return 0 if pieces else 1


if __name__ == "__main__":
    sys.exit(main())
