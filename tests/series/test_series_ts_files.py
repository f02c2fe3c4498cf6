"""`read_ts` on small files of the UEA format, right and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odenet.series import LabelledSeries, from_lists, read_ts
from series.random_series import same

NAN = float("nan")

PLAIN = """# a comment
% another, in Latin-1: é
@problemName Small
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down

@data
1,2.5,?:-1,0.5,NaN:down
# between samples
3:4 , 1e-3: up
"""


def read(tmp_path: Path, text: str, dtype: torch.dtype | None = None) -> LabelledSeries:
    path = tmp_path / "small.ts"
    path.write_text(text, encoding="latin-1")
    return read_ts(path, dtype)


def test_plain_values(tmp_path: Path) -> None:
    series, labels, classes = read(tmp_path, PLAIN)
    wanted = from_lists(
        [[0, 1, 2], [0, 1]], [[[1, -1], [2.5, 0.5], [NAN, NAN]], [[3, 4], [NAN, 1e-3]]]
    )  # a missing value has its row
    assert same(series, wanted)
    assert labels is not None and labels.tolist() == [1, 0] and labels.dtype == torch.int64
    assert classes == ("up", "down")


def test_options(tmp_path: Path) -> None:
    path = tmp_path / "small.ts"
    path.write_text(PLAIN, encoding="utf-8-sig")  # with a byte order mark, and as a text
    assert read_ts(str(path), torch.float64).series.t.dtype == torch.float64
    series, _, _ = read(tmp_path, PLAIN.replace("\n", "\r\n").replace("@timeStamps false", "@TIMESTAMPS\tFALSE"))
    assert series.length.tolist() == [3, 2]


def test_time_stamps(tmp_path: Path) -> None:
    text = "@timeStamps true\n@classLabel true a b\n@data\n(0.5,1),(0.25,2):(3,?),( 7 , -1.5 ):b\n:(1,1):a\n"
    series, labels, _ = read(tmp_path, text)
    assert same(
        series, from_lists([[0.25, 0.5, 3, 7], [1]], [[[2, NAN], [1, NAN], [NAN, NAN], [NAN, -1.5]], [[NAN, 1]]])
    )
    assert labels is not None and labels.tolist() == [1, 0]


def test_univariate(tmp_path: Path) -> None:
    series, _, _ = read(tmp_path, "@univariate true\n@classLabel true 1 2\n@data\n1,2,3:1\n4,5:2\n")
    assert same(series, from_lists([[0, 1, 2], [0, 1]], [[1, 2, 3], [4, 5]]))


def test_targets_of_a_regression(tmp_path: Path) -> None:
    series, labels, classes = read(tmp_path, "@targetlabel true\n@data\n1,2:0.5\n3,4:-1e2\n")
    assert labels is not None and labels.tolist() == [0.5, -100.0] and labels.dtype == series.x.dtype and classes == ()


def test_without_labels(tmp_path: Path) -> None:
    series, labels, classes = read(tmp_path, "@dimensions 2\n@classLabel false\n@data\n1,2:3,4\n")
    assert labels is None and classes == () and series.x.tolist() == [[[1.0, 3.0], [2.0, 4.0]]]


HEAD = "@univariate true\n@classLabel true a b\n@data\n"
STAMPED = "@timeStamps true\n" + HEAD


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2:a\n", r"line 1: data before the line @data"),
        ("@problemName x\n", r"has no line @data: it is no .ts file"),
        ("", r"has no line @data: it is no .ts file"),
        (HEAD, r"has no sample behind the line @data"),
        (HEAD + "1,2:a\n\n1,2:c\n", r"line 6: the sample is of class 'c', which @classLabel does not name: a, b"),
        (HEAD + "1,2\n", r"line 4: the sample is of class '1,2'"),
        (HEAD + "1,x:a\n", r"line 4: could not convert string to float: 'x'"),
        (HEAD + "1,,2:a\n", r"line 4: could not convert string to float: ''"),
        (HEAD + "1,inf:a\n", r"line 4: a value must be finite; got inf"),
        (HEAD + "1,2:3,4:a\n", r"line 4: 2 channels, where 1 are announced"),
        (HEAD + "1,2:a\n@data\n", r"line 5: the sample is of class '@data'"),
        (HEAD.replace("@univariate true", "@dimensions two") + "1:a\n", r"line 4: invalid literal for int.*'two'"),
        (HEAD.replace("@univariate true", "@missing false") + "1:a\n1:2:b\n", r"has samples of 1 and of 2 channels"),
        (STAMPED + "(0,1),(1:a\n", r"line 5: "),
        (STAMPED + "(0,1)(1,2):a\n", r"line 5: a channel must be \(time,value\),\(time,value\) and so on; got"),
        (STAMPED + "0,1:a\n", r"line 5: a channel must be \(time,value\)"),
        (STAMPED + "(0,1),(0,2):a\n", r"line 5: the times of a channel must be finite, and each of them once"),
        (STAMPED + "(inf,1):a\n", r"line 5: the times of a channel must be finite"),
        (STAMPED + "(2007-01-01 00:00:00,1):a\n", r"line 5: time stamps must be numbers, as hours since the first"),
        ("@targetlabel true\n@data\n1,2:high\n", r"line 3: could not convert string to float: 'high'"),
        ("@targetlabel true\n@data\n1,2:nan\n", r"line 3: the target must be finite; got nan"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"small.ts(, | ){message}"):
        read(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ts(tmp_path / "none.ts")
