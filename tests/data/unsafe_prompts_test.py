"""Readers of unsafe prompts, on made-up files in the published formats."""

import gzip
import json

import pytest

from pfljax.data.sources import unsafe_prompts
from pfljax.errors import UserError

DO_NOT_ANSWER = (
    "id,risk_area,types_of_harm,specific_harms,question\n"
    '0,Area one,Type A,Harm a,"How, exactly, is it done?"\n'
    '1,Area two,Type B,Harm b,"Two\nlines"\n'
)
STRONG_REJECT = (
    'category,source,forbidden_prompt\nCategory one,custom,"He said ""no"", then?"\n'
    "Category two,Another set,Naïve question?\n"
)


def test_do_not_answer(tmp_path):
    path = tmp_path / "do_not_answer_en.csv"
    path.write_text(DO_NOT_ANSWER)
    wanted = [
        ("Area one", "Harm a", "", "How, exactly, is it done?"),
        ("Area two", "Harm b", "", "Two\nlines"),
    ]
    assert unsafe_prompts.read_do_not_answer(path) == wanted
    packed = tmp_path / "do_not_answer_en.csv.gz"
    packed.write_bytes(gzip.compress(DO_NOT_ANSWER.encode()))
    assert unsafe_prompts.read_do_not_answer(packed) == wanted
    rows = [{"risk_area": "Area", "specific_harms": "Harm", "question": "Why?"}]
    lines = tmp_path / "data_en.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert unsafe_prompts.read_do_not_answer(lines) == [("Area", "Harm", "", "Why?")]


def test_strong_reject(tmp_path):
    path = tmp_path / "strongreject_dataset.csv"
    path.write_text(STRONG_REJECT, encoding="utf-8")
    assert unsafe_prompts.read_strong_reject(path) == [
        ("Category one", "", "custom", 'He said "no", then?'),
        ("Category two", "", "Another set", "Naïve question?"),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "has no rows"),
        (b"category,source,forbidden_prompt\n", "has no rows"),
        (DO_NOT_ANSWER.encode(), "has a row without category; each needs category, source, forb"),
        (b"category,source,forbidden_prompt\nA,custom\n", "without forbidden_prompt"),
        (b"category,source,forbidden_prompt\nA,custom,Why, and how?\n", "more cells .* in row 1"),
        (b'category,source,forbidden_prompt\nA,custom,"never ends\n', "is not a table"),
        (b"category,source,forbidden_prompt\nA,custom,\xff\xfe\n", "strongreject.csv"),
        (b"\x00\x01\x02", "strongreject.csv"),
    ],
)
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "strongreject.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        unsafe_prompts.read_strong_reject(path)


def test_missing_files(tmp_path):
    for read in (unsafe_prompts.read_do_not_answer, unsafe_prompts.read_strong_reject):
        with pytest.raises(UserError, match="absent.csv"):
            read(tmp_path / "absent.csv")
