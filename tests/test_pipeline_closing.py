"""What the closing report says in words: only what the figures bear out."""

import pytest

from compress.reporting.words import plain_words
from compress.steps import Measurement

FLOAT = Measurement("float", p50_ms=10.0, p90_ms=11.0, speedup=1.0)


def int8(p50, p90=None):
    return Measurement("int8", p50_ms=p50, p90_ms=p90 or 1.1 * p50, speedup=10.0 / p50)


@pytest.mark.parametrize(("p50", "said"), [(5.0, 0), (10.2, 0), (12.0, 1)])
def test_slower_is_said_where_it_is_more_than_noise(p50, said):
    assert len(plain_words((FLOAT, int8(p50)), FLOAT)) == said


@pytest.mark.parametrize(("middle", "said"), [(4.9, 0), (4.0, 1)])
def test_a_middle_row_that_is_faster_than_the_deliverable_is_said(middle, said):
    row = Measurement("pruned", p50_ms=middle, p90_ms=middle, speedup=10.0 / middle)
    words = plain_words((FLOAT, row, int8(5.0)), FLOAT)
    assert len(words) == said and all("pruned is faster than int8 here" in word for word in words)


def test_disturbed_timings_are_said():
    (words,) = plain_words((FLOAT, int8(1.0, 9.0)), FLOAT)
    assert (
        "the slowest tenth of the runs of int8 took 9.0 times the median" in words
        and "time again when it is quiet" in words
    )
    assert plain_words((Measurement("a"), Measurement("b")), FLOAT) == []


def test_an_accuracy_on_few_samples_is_said_to_be_coarse():
    few, many = (Measurement("a", top1=0.9, samples=count) for count in (22, 2000))
    assert plain_words((few,), few) == ["top-1 is of 22 test samples, 4.5 points each"]
    assert plain_words((many,), many) == []
