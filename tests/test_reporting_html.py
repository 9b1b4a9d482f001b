"""The HTML report: one file, nothing fetched, nothing unescaped, the picture right."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_report import FLOAT, INT8, sample

from compress.reporting.charts import LETTER, NARROW, WIDE, Bubble, histogram, pareto, scatter, ticks
from compress.reporting.page import CSS
from compress.reporting.report import Report
from compress.steps import Change, Measure, Measurement, Step


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
        *("4.00× smaller", "2.50× faster", "91.70 %", "99.00 %", "1 failed", "of 2 limits"),  # cards
        *("Figures", "top-1 against latency", "Classes that lost most: int8 beside float"),
        *(
            "Time by layer",
            "12 µs",
            "Error of int8 at each layer's output",
            "1.23 %",
            "Sensitivity by layer",
            "0.456 %",
        ),
        *(
            "Rounding error of the weights",
            "1.10 %",
            "64 → 32 channels",
            "25.0 %",
            "Layers of int8",
            "Worst layers of int8",
        ),
        *("cat & dog", "9 of 10", "7 of 10", "−2", "fish"),  # class 0 lost two, both to class 1
        *("2 × quantized", "mean", ": written as GlobalAveragePool, it is one"),
        *(
            "no int8 GRU",
            "quantize: 3 done, 1 considered and not done",
            report.environment.command,
            report.environment.cpu,
        ),
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
    assert report.deliverable is INT8
    extra = Measurement("later", path="x.onnx")
    assert Report(rows=(FLOAT, INT8, extra), files={"model": "out/model.onnx"}).deliverable is INT8
    assert Report(rows=(FLOAT, INT8, extra)).deliverable is extra
    assert Report(rows=(FLOAT,)).deliverable is None


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


def cells_of(page, name):
    """The attributes and texts of the table's cells in the row of that model."""
    line = re.search(rf"<tr[^>]*><td[^>]*>(?:✗ )?{re.escape(name)}</td>.*?</tr>", page)[0]
    return re.findall(r"<td([^>]*)>(.*?)</td>", line)


def test_the_table_has_the_terminals_columns_with_a_unit_in_each_cell(report):
    page = report.html()
    head = re.search(r"<thead>.*?</thead>", page)[0]
    titles = re.findall(r'<button type="button">(.*?)</button>', head)
    assert titles == ["model", "size", "ratio", "p50", "speed-up", "top-1", "change", "agreement"]
    texts = [text for _, text in cells_of(page, "int8")]
    assert texts == ["✗ int8", "1 MB", "0.25×", "4 ms", "2.50×", "91.70 %", "−0.25 points", "99.00 %"]


def test_only_the_figure_that_failed_is_red(report):
    page = report.html()
    red = [text for attributes, text in cells_of(page, "int8") if "bad" in attributes]
    assert red == ["2.50×"]  # --require-speedup 3 failed, --max-drop passed
    assert not [text for attributes, text in cells_of(page, "float") if "bad" in attributes]
    assert cells_of(page, "float")[0][1] == "float"


def test_other_figures_stand_below_with_their_meaning(report):
    more = re.search(r'<details class="more">.*?</details>', report.html())[0]
    text = " ".join(read(more).text)
    assert "More figures (2)" in text and "MACs multiply-accumulates for one sample 1 M –" in text
    assert "top-1, 95 % interval – 90.40 to 92.90 %" in text


def test_size_and_latency_are_bars_before_and_after(report):
    page = report.html()
    assert page.index("size on disk") < page.index("<h2>Figures</h2>")
    widths = re.findall(r'class="fill(?: pale)?" style="width:([\d.]+)%"', page.split("<h2>Figures</h2>")[0])
    assert widths == ["100.0", "25.0", "100.0", "40.0"]  # 4 MB → 1 MB, 10 ms → 4 ms


@pytest.mark.parametrize(
    ("size", "speedup", "words"),
    [
        (3_990_000, 1.01, ("same size", "as fast")),
        (5_000_000, 0.5, ("1.25× larger", "2.00× slower")),
        (2_000_000, 2.0, ("2.00× smaller", "2.00× faster")),
    ],
)
def test_what_is_no_difference_is_not_praised(size, speedup, words):
    page = sample(rows=(FLOAT, replace(INT8, size_bytes=size, speedup=speedup))).html()
    assert all(f">{word}</b>" in page for word in words)


def test_one_model_alone_is_set_beside_nothing():
    page = Report(rows=(replace(INT8, speedup=1.0),)).html()
    assert "beside" not in page.split("Machine, versions")[0].split("<main>")[1].split("<h2>Figures")[0]
    assert ">1 MB</b>" in page and ">4 ms</b>" in page and 'class="fill' not in page


def measured(name, value, better, p50, interval=None):
    measures = (Measure("MAE", "mm", better, value, interval),)
    return Measurement(name, size_bytes=10, p50_ms=p50, measures=measures)


@pytest.mark.parametrize(("better", "words"), [("lower", "Down and to the left"), ("higher", "Up and to the left")])
def test_better_points_the_way_of_the_measure(better, words):
    page = Report(rows=(measured("a", 2.0, better, 2.0), measured("b", 1.0, better, 1.0))).html()
    assert f"{words} is better" in page and "MAE, mm" in page


def test_no_way_is_claimed_for_a_measure_without_one():
    page = Report(rows=(measured("a", 2.0, "", 2.0), measured("b", 1.0, "", 1.0))).html()
    assert "is better" not in page and "Pareto" not in page


def test_the_axis_holds_every_interval_and_ends_at_a_hundred():
    points = [Bubble("a", 1, 99.0, 1, 98.0, 99.9), Bubble("b", 2, 99.1, 1, 98.2, 99.95)]
    for frame in (WIDE, NARROW):
        drawn = scatter(points, "ms", "top-1, %", percent=True, frame=frame)
        ends = [
            float(y)
            for path in re.findall(r'class="interval" d="([^"]*)"', drawn)
            for y in re.findall(r",([\d.]+)", path)
        ]
        assert len(ends) == 6 and min(ends) >= frame.top and max(ends) <= frame.height - frame.bottom
        assert "100.5" not in drawn and ">101<" not in drawn


def test_without_intervals_a_tenth_of_a_point_does_not_fill_the_picture():
    drawn = scatter([Bubble("a", 1, 97.9), Bubble("b", 2, 97.8)], "ms", "top-1, %", percent=True)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert abs(heights[0] - heights[1]) < (WIDE.height - WIDE.top - WIDE.bottom) / 10


@pytest.mark.parametrize("screen", [320, 360, 390, 414, 600, 800, 801, 1280])
def test_letters_of_the_picture_are_at_least_11_pixels(screen):
    css = re.search(r"@media \(max-width: (\d+)px\) { .cr svg.wide { display:none; }", CSS)
    frame, most = (NARROW, 480) if screen <= int(css[1]) else (WIDE, 1080)
    inside = min(screen, 1080) - 2 * 16 - 2 * 12 - 2  # the page's and the figure's padding, the border
    assert frame.font * min(inside, most) / frame.width >= 11


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 9), st.floats(90, 99)), min_size=2, max_size=4, unique=True))
def test_labels_stay_inside_and_apart(values):
    points = [Bubble(f"model {index}.onnx", x, y, 1e6) for index, (x, y) in enumerate(values)]
    for frame in (WIDE, NARROW):
        drawn = scatter(points, "ms", "%", frame=frame)
        found = re.findall(r'class="label" x="([-\d.]+)" y="([-\d.]+)">(.*?)<', drawn)
        boxes = [(float(x), float(y), float(x) + LETTER * frame.font * len(text)) for x, y, text in found]
        assert len(boxes) == len(points)
        assert all(left >= 0 and right <= frame.width for left, _, right in boxes)
        for index, (left, y, right) in enumerate(boxes):
            for other_left, other_y, other_right in boxes[:index]:
                assert abs(y - other_y) >= frame.font or right <= other_left + 0.2 or other_right <= left + 0.2


def test_tries_that_were_not_kept_are_not_left_as_they_were():
    changes = (
        Change("first 3 layers", "left in float", "4 ms against 3 ms", True, {"ms": 4.0, "before_ms": 3.0}),
        Change("gelu", "left in float", "no int8 kernel", True, {"node": "gelu", "op_type": "Gelu"}),
        Change("conv", "channels padded", "they may be mixed", True),
        Change("fc", "Gemm stays float", "excluded by name", True),
        Change("bn", "not fused", "two readers", True),
        Change("c2", "64 channels kept", "rounding leaves it whole", True),
        Change("graph", "biases corrected", "9 → 8 dB", True, {"before_db": 9.0, "after_db": 8.0}),
    )
    step = Step("quantize", None, changes)
    assert [change.layer for change in step.skipped if change.stays] == ["gelu", "fc", "bn", "c2"]
    page = sample(steps=(step,)).html()
    assert "quantize: 0 done, 4 left as they were, 3 considered and not done" in page
    left = page.split("Left as they were (4)")[1].split("Considered and not done (3)")
    assert "first 3 layers" not in left[0] and "first 3 layers" in left[1]
