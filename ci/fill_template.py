#!/usr/bin/env python3
"""Fills the placeholders of a config.pbtxt: fill_template.py [-i] FILE name:value,name:value

Prints the result, or changes the file with -i. Placeholders that are not named stay as they are. The names of the C++ backend's
templates are known for those of model_repo/ too, where they change what is set there.

A backslash takes the next character literally. The list is split at commas first and then at colons, and each pass
consumes one level of backslashes: write \\, for a comma in a value and \\\\: for a colon.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from string import Template

# Unquoted placeholders that the server could not parse if they stayed.
DEFAULTS = {"max_queue_size": "0", "max_queue_delay_microseconds": "0"}


# What the templates of the C++ backend have as placeholders and those of model_repo/ have set, so that they are valid as
# they are: what to replace between the two groups.
SETTINGS = {
    "triton_backend": [r'^(backend: ")[^"]*(")'],
    "triton_max_batch_size": [r"^(max_batch_size: )\d+()", r"(preferred_batch_size: \[ )\d+( \])"],
    "decoupled_mode": [r"(decoupled: )\w+()"],
    "max_queue_delay_microseconds": [r"(max_queue_delay_microseconds: )\d+()"],
    "max_queue_size": [r"(max_queue_size: )\d+()"],
    "logits_datatype": [r'(name: "(?:draft|context|generation)_logits"\s+data_type: )\w+()'],
    "encoder_input_features_data_type": [r'(name: "encoder_input_features"\s+data_type: )\w+()'],
    "prompt_embedding_table_data_type": [r'(name: "prompt_embedding_table"\s+data_type: )\w+()'],
    **{
        f"{model}_instance_count": [r"(instance_group \[\s*\{\s*count: )\d+()"]
        for model in ("preprocessing", "postprocessing", "bls")
    },
}
# Parameters that model_repo/ leaves out, by the names of their placeholders.
PARAMETERS = {"batching_strategy": "gpt_model_type"}


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


def change_setting(text: str, name: str, value: str) -> str | None:
    """The text with a setting of the C++ backend's templates; None where it has no such setting."""
    if name in PARAMETERS and "parameters:" in text:
        return f'{text.rstrip()}\n\nparameters: {{\n  key: "{PARAMETERS[name]}"\n  value: {{ string_value: "{value}" }}\n}}\n'
    found = 0
    for pattern in SETTINGS.get(name, []):
        text, count = re.subn(pattern, lambda match: match[1] + value + match[2], text, flags=re.MULTILINE)
        found += count
    return text if found else None


def suggestion(text: str, name: str) -> str:
    """What may be meant by a name that a file does not have."""
    close = difflib.get_close_matches(name, re.findall(r"\$\{(\w+)\}", text), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        if name not in text or name in SETTINGS and "${" + name + "}" not in text:
            changed = change_setting(text, name, value)
            if changed is None:
                raise ValueError(f"key '{name}' does not exist in the file{suggestion(text, name)}")
            text = changed
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
