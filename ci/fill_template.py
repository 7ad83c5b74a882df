#!/usr/bin/env python3
"""Fills the placeholders of a config.pbtxt: fill_template.py [-i] FILE name:value,name:value

Prints the result, or changes the file with -i. Placeholders that are not named stay as they are.

A backslash takes the next character literally. The list is split at commas first and then at colons, and each pass
consumes one level of backslashes: write \\, for a comma in a value and \\\\: for a colon.
"""

import argparse
import sys
from pathlib import Path
from string import Template

# Unquoted placeholders that the server could not parse if they stayed.
DEFAULTS = {"max_queue_size": "0", "max_queue_delay_microseconds": "0"}


def split(text: str, delimiter: str) -> list[str]:
    """Splits at every delimiter that no backslash precedes; consumes one level of backslashes."""
    parts, current, characters = [], "", iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == delimiter:
            parts.append(current)
            current = ""
        else:
            current += character
    return parts + [current]


def parse(substitutions: str) -> dict[str, str]:
    pairs = {}
    for item in split(substitutions, ","):
        parts = split(item, ":")
        if len(parts) != 2:
            raise ValueError(f"'{item}' is not name:value; a colon or comma inside a value needs a backslash (see --help)")
        pairs[parts[0]] = parts[1]
    return pairs


def fill(text: str, values: dict[str, str]) -> str:
    for name in values:
        if name not in text:
            raise ValueError(f"key '{name}' does not exist in the file")
    return Template(text).safe_substitute({**DEFAULTS, **values})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file_path", type=Path, help="the config.pbtxt")
    parser.add_argument("substitutions", help="name:value,name:value")
    parser.add_argument("--in_place", "-i", action="store_true", help="change the file instead of printing it")
    arguments = parser.parse_args()
    try:
        text = fill(arguments.file_path.read_text(encoding="utf-8"), parse(arguments.substitutions))
    except (OSError, ValueError) as error:
        print(f"error: {arguments.file_path}: {error}", file=sys.stderr)
        return 1
    if arguments.in_place:
        arguments.file_path.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
