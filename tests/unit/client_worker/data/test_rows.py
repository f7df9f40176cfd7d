from __future__ import annotations

import importlib.util

import pytest

from client_worker.data.rows import Row, read_hub_splits, read_rows
from fedlora.errors import FedLoraError, Reason


def refusal(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FedLoraError) as caught:
        read_rows(str(path))
    assert caught.value.reason is Reason.INVALID_DATA
    return str(caught.value)


def test_jsonl_rows_know_their_line_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "zwei ü"}\n', encoding="utf-8")
    rows = read_rows(str(path))
    assert [(r.place, r.text("text")) for r in rows] == [
        ("a.jsonl, line 1", "one"),
        ("a.jsonl, line 3", "zwei ü"),
    ]


def test_a_broken_line_is_named_with_its_column(tmp_path):
    assert "a.jsonl, line 2: not JSON at column 9" in refusal(
        tmp_path / "a.jsonl", '{"text": "one"}\n{"text":\n'
    )


def test_a_line_that_is_no_object_is_named(tmp_path):
    assert "line 1: expected a JSON object, got list of length 2" in refusal(
        tmp_path / "a.jsonl", "[1, 2]\n"
    )


def test_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a, ""b""\nc",x\nd,y\n', encoding="utf-8")
    rows = read_rows(str(path))
    assert [dict(r.values) for r in rows] == [
        {"text": 'a, "b"\nc', "label": "x"},
        {"text": "d", "label": "y"},
    ]
    assert rows[1].place == "a.csv, line 4"


def test_a_broken_csv_row_is_told_by_the_line_in_which_it_begins(tmp_path):
    before = 'text,label\n"two\nlines",y\n'
    for row in ('"he said "no"",y\n', '"never closed,y\nnext,y\n'):
        assert "a.csv, line 4: " in refusal(tmp_path / "a.csv", before + row)


@pytest.mark.parametrize("line", ["only-one", "a,b,c"])
def test_a_csv_line_with_another_number_of_fields_is_named(tmp_path, line):
    message = refusal(tmp_path / "a.csv", f"text,label\nd,y\n{line}\n")
    assert "a.csv, line 3: expected 2 fields" in message


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert read_rows(str(path))[0].text("text") == "a"


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(FedLoraError, match="not UTF-8"):
        read_rows(str(path))


def test_an_empty_file_a_missing_file_and_an_unknown_kind_are_refused(tmp_path):
    assert "has no rows" in refusal(tmp_path / "a.jsonl", "\n")
    assert "got '.json'" in refusal(tmp_path / "a.json", "[]")
    with pytest.raises(FedLoraError, match=r"no\.jsonl' does not exist"):
        read_rows(str(tmp_path / "no.jsonl"))


@pytest.mark.parametrize(
    ("suffix", "text", "hint"),
    [
        (
            ".jsonl",
            '{"texts": "a", "label": "b"}\n',
            "Columns: texts, label; name yours in the sec",
        ),
        (".csv", "texts,label\na,b\n", r"Name your columns in the section \[data\]; a .csv file's"),
    ],
)
def test_a_missing_column_is_told_with_those_that_have_names(tmp_path, suffix, text, hint):
    file = tmp_path / f"a{suffix}"
    file.write_text(text)
    (row,) = read_rows(file)
    with pytest.raises(FedLoraError, match=rf"no column 'text' among its 2\. {hint}"):
        row.text("text")


@pytest.mark.parametrize("value", ["", "   ", None, 7, ["a"]])
def test_a_text_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(FedLoraError, match=r"a\.jsonl, line 9: column 'text': expected a text"):
        Row({"text": value}, "a.jsonl, line 9").text("text")


def test_numbers_and_words_are_labels_but_empty_and_broken_values_are_not():
    assert Row({"label": 3}, "here").category("label") == "3"
    for value in ("", None, [1], 0.5):
        with pytest.raises(FedLoraError, match="expected a label"):
            Row({"label": value}, "here").category("label")


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is not None, reason="the package is installed"
)
def test_parquet_and_the_hub_name_the_extra_they_need(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for attempt in (lambda: read_rows(str(tmp_path / "a.parquet")), lambda: read_hub_splits("a/b")):
        with pytest.raises(FedLoraError, match=r"pip install 'fedlora\[data\]'") as caught:
            attempt()
        assert caught.value.reason is Reason.MISSING_EXTRA


def test_parquet_is_read_like_the_other_files(tmp_path):
    pytest.importorskip("datasets", reason="needs fedlora[data]")
    arrow = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    arrow.write_table(table, tmp_path / "a.parquet")
    assert [row.values for row in read_rows(str(tmp_path / "a.parquet"))] == rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(FedLoraError, match=r"broken\.parquet") as caught:
        read_rows(str(tmp_path / "broken.parquet"))
    assert caught.value.reason is Reason.INVALID_DATA
