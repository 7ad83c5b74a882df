"""Copies a folder of model templates and puts values into their placeholders.

usage: fill_repository.py SOURCE TARGET name=value ...

Every ${name} in every config.pbtxt becomes the value; names that occur nowhere are an error. Version folders that git
does not keep because they are empty are created.
"""

import shutil
import sys
from pathlib import Path


def main() -> int:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    values = dict(argument.split("=", 1) for argument in sys.argv[3:])
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    unused = set(values)
    for config in sorted(target.glob("*/config.pbtxt")):
        text = config.read_text(encoding="utf-8")
        for name, value in values.items():
            if f"${{{name}}}" in text:
                unused.discard(name)
                text = text.replace(f"${{{name}}}", value.replace("\\", "\\\\").replace('"', '\\"'))
        config.write_text(text, encoding="utf-8")
        (config.parent / "1").mkdir(exist_ok=True)
    if unused:
        print(f"error: no template has ${{{'}, ${'.join(sorted(unused))}}}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
