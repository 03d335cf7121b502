"""The first example of docs/adapters.md runs as it stands, with fewer rounds and one method."""

import pathlib
import re

from pfljax.training.study.adapters import ADAPTERS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adapters.md"


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[0]
    example, count = re.subn(r"rounds=\d+", "rounds=1", example)
    assert count == 2
    methods = '("local", "fedavg", "fedavg_ft", "ditto")'
    assert methods in example
    monkeypatch.chdir(tmp_path)
    exec(example.replace(methods, '("fedavg",)'), {})
    method, accuracy, upload = capsys.readouterr().out.splitlines()[-1].split()
    assert (method, upload) == ("fedavg", "6668") and 0 < float(accuracy) <= 1


def test_the_table_of_the_page_has_all_kinds():
    kinds = re.findall(r"^\| `(\w+)` \| .*\|$", PAGE.read_text().split("## Kinds")[1], re.M)
    assert set(kinds) == set(ADAPTERS) - {"none"}
