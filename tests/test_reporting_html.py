"""The HTML report: one file, nothing fetched, nothing unescaped, the picture right."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_report import FLOAT, INT8, sample

from compress.reporting.charts import Bubble, histogram, pareto, scatter, ticks
from compress.reporting.html import deliverable
from compress.reporting.report import Report
from compress.steps import Change, Measurement, Step


@pytest.fixture
def hostile():
    """Names that would be markup if they were not escaped."""
    step = Step("quantize", None, (Change("a<i>", "quantized"), Change("b<i>", "quantized", "no <i>", skipped=True)))
    return sample(rows=(replace(FLOAT, name="float <b>"), INT8), steps=(step,), title="A <script> title")


class Reader(HTMLParser):
    VOID = ("meta", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_stands_alone_and_is_well_formed(report):
    page = report.html()
    reader = read(page)
    assert reader.links == ["data:,"]  # the icon that browsers would otherwise ask the server for
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(page) < 100_000
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_names_are_text_never_markup(hostile):
    page = hostile.html()
    assert "<b>float" not in page and "float &lt;b&gt;" in page
    assert "A &lt;script&gt; title" in page and page.count("<script>") == 1
    assert "<i>" not in page


def test_every_section_is_there(report):
    text = " ".join(read(report.html()).text)
    for shown in [
        *("4.00× smaller", "2.50× faster", "91.70 %", "99.00 %", "1 failed"),  # cards
        *("Figures", "top-1 against latency", "Classes that lost most", "Layers", "Worst layers"),
        *(
            "Time by layer",
            "12 µs",
            "Error of int8 at each layer's output",
            "1.23 %",
            "Sensitivity by layer",
            "0.00456",
        ),
        *("Rounding error of the weights", "1.10 %", "64 → 32", "25.0 %"),
        *("cat & dog", "9 of 10", "7 of 10", "−2", "fish"),  # class 0 lost two, both to class 1
        *("2 × quantized", "mean", ": written as GlobalAveragePool, it is one"),
        *("no int8 GRU", "quantize: 3 done, 1 left alone", report.environment.command, report.environment.cpu),
    ]:
        assert shown in text, shown


def test_few_zeros_are_no_bars(report):
    rows = [{"name": "conv.weight", "sparsity": 0.008}]
    assert "Zeros by layer" in report.html()
    assert "Layers" not in sample(details={"layers": rows}).html()


def test_a_report_without_accuracy_or_rows_still_renders():
    assert "top-1 against latency" not in Report(rows=(Measurement("a", size_bytes=1, p50_ms=1.0),)).html()
    assert "<h1>" in Report().html()


def test_the_deliverable_is_the_file_that_ships(report):
    assert deliverable(report) is INT8
    extra = Measurement("later", path="x.onnx")
    assert deliverable(Report(rows=(FLOAT, INT8, extra), files={"model": "out/model.onnx"})) is INT8
    assert deliverable(Report(rows=(FLOAT, INT8, extra))) is extra
    assert deliverable(Report(rows=(FLOAT,))) is None


def test_a_notebook_shows_the_report(report):
    shown = report._repr_html_()
    read(shown)
    assert "4.00× smaller" in shown and "<body" not in shown and "body {" not in shown


POINTS = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 100)), min_size=1, max_size=12, unique=True)


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_the_front_is_exactly_what_nothing_beats(values):
    points = [Bubble(str(index), x, y) for index, (x, y) in enumerate(values)]
    front = pareto(points)

    def beaten(p):
        return any(q.x <= p.x and q.y >= p.y and (q.x, q.y) != (p.x, p.y) for q in points)

    assert {p.name for p in front} == {p.name for p in points if not beaten(p)}


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_evenly_spaced_inside(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 <= value <= low + width + 1e-6 for value in found)


def test_larger_files_have_larger_bubbles_by_area():
    drawn = scatter([Bubble("a", 1, 1, 4e6), Bubble("b", 2, 2, 1e6)], "x", "y")
    radii = [float(value) for value in re.findall(r'r="([0-9.]+)"', drawn)]
    assert (radii[0] - 5) / (radii[1] - 5) == pytest.approx(2.0, rel=0.01)


def test_histogram_has_a_bar_for_each_filled_bin():
    assert histogram([0, 1, 4, 0], -1, 1, "w").count("<rect") == 2
