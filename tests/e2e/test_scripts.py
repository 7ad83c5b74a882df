"""The scripts that operators' own scripts call, with the options and rules they know."""

import subprocess
import sys

import pytest
from server import ROOT

sys.path.insert(0, str(ROOT / "ci"))
import fill_template  # noqa: E402


@pytest.mark.parametrize(
    "text,values",
    [
        ("a:1,b:2", {"a": "1", "b": "2"}),
        (r"gpu_device_ids:0\,1;2\,3,b:x", {"gpu_device_ids": "0,1;2,3", "b": "x"}),
        (r"url:http\\://host,b:", {"url": "http://host", "b": ""}),
        (r"path:c\\\\d", {"path": r"c\d"}),
    ],
)
def test_substitutions_are_split_with_escapes(text, values):
    assert fill_template.parse(text) == values


def test_a_colon_without_an_escape_is_an_error():
    with pytest.raises(ValueError, match="name:value"):
        fill_template.parse("url:http://host")


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "ci/fill_template.py", *arguments], capture_output=True, text=True)


def test_fill_prints_or_changes_the_file_and_keeps_unknown_placeholders(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("a: ${first} b: ${second} q: ${max_queue_size} d: ${max_queue_delay_microseconds}")
    result = run(file, "first:1")
    assert result.returncode == 0
    assert result.stdout == "a: 1 b: ${second} q: 0 d: 0\n"
    assert "${first}" in file.read_text()
    assert run("-i", file, "first:1,max_queue_size:7").returncode == 0
    assert file.read_text() == "a: 1 b: ${second} q: 7 d: 0"


def test_a_name_that_the_file_does_not_have_is_an_error(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("a: ${first}")
    result = run(file, "other:1")
    assert result.returncode == 1 and "'other' does not exist" in result.stderr
