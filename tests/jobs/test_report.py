"""The report page, read by a parser as a browser would."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_folder import write_run

from marey.errors import EnvironmentFault
from marey.jobs import charts, examples, markup
from marey.jobs.report import leave_results, write_report

VOID = {"meta", "img", "br", "link", "input"}
HOSTILE = [
    '<script>alert("1")</script>',
    "$5 & x_{1}",
    "日本語\u202e",
    "a'\" onload=x",
    "</td></table>",
    "line\nbreak",
]


class Page(HTMLParser):
    """Elements with their attributes, texts by section, tables as lists of rows of texts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.tables, self.sections = [], [], {}, {}, []
        self.section = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]
            self.sections.append(self.section)
        elif tag == "table":
            self.rows = self.tables.setdefault(self.section, [[]])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th", "caption"):
            if tag == "caption":
                self.rows.append([])
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts[self.section] = self.texts.get(self.section, "") + data
            if {"td", "th", "caption"} & set(self.open[-4:]):
                self.rows[-1][-1] += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("7"), clips=60, videos=60)


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


def assert_stands_alone(page):
    """Nothing in the page is fetched: every address is a data: URI or a place in the page."""
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name.rpartition(":")[2] in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:image/", "#")), (tag, name, value)
            assert not name.startswith("on")
            assert "url(" not in (value or "") or "url(#" in value
        if tag == "a":
            assert attributes["href"][1:] in page.sections
    assert len(page.attributes("script")) == 1


def test_the_page_stands_alone_and_can_be_read_by_everybody(page):
    assert_stands_alone(page)
    assert page.attributes("html")[0]["lang"] == "en"
    pictures = [a["alt"] for a in page.attributes("img")] + [a["aria-label"] for a in page.attributes("svg")]
    assert len(pictures) == len(page.attributes("img")) + 5
    assert all(len(text) > 10 for text in pictures)
    assert all(a["scope"] in ("row", "col") for a in page.attributes("th"))
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identities) == len(set(identities))


def test_only_the_page_s_own_script_may_run(run):
    text = write_report(run).read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_numbers_of_the_run_appear_beside_the_published_ones(run, page):
    results = json.loads((run / "results.json").read_text())
    top1 = results["metrics"]["top1"]
    assert ["Top-1", f"{100 * top1:.1f}%", "90.0%", f"{100 * (top1 - 0.9):+.1f}"] in page.tables["numbers"]
    assert ["Top-5", "98.7%", "–", "–"] in page.tables["numbers"]
    assert "60 of 62" in page.texts["numbers"]
    assert "2 of 62 listed clips are missing from these numbers" in page.texts["numbers"]
    assert "a paper, table 1" in page.texts["numbers"]
    assert ["average", "prob"] in page.tables["numbers"]
    # the last validation is the best: 1 - 0.8 exp(-200 / 60)
    assert "97.1%" in page.texts["numbers"]
    assert "at epoch 20" in page.texts["numbers"]


def test_every_class_has_its_row_and_the_confusion_its_counts(run, page):
    results = json.loads((run / "results.json").read_text())
    rows = {row[0]: row[1:] for row in page.tables["classes"] if len(row) == 4}
    for label, row in enumerate(results["per_class"]):
        assert rows[row["class"]] == [str(label), str(row["count"]), f"{100 * row['accuracy']:.1f}%"]
    matrix = [
        row for row in page.tables["confusion"] if row and len(row) == 7 and row[0] in results["classes"]
    ]
    assert [[int(cell or 0) for cell in row[1:]] for row in matrix] == results["confusion"]


def test_the_most_confused_pairs_come_in_order(run, page):
    confusion = np.array(json.loads((run / "results.json").read_text())["confusion"])
    np.fill_diagonal(confusion, 0)
    counts = [int(row[2]) for row in page.tables["confusion"] if len(row) == 4 and row[2].isdecimal()]
    assert counts == sorted((n for n in confusion.ravel().tolist() if n), reverse=True)[: len(counts)]
    assert counts


def test_clips_are_shown_with_frames_and_what_was_said_of_them(page):
    pictures = page.attributes("img")
    assert len(pictures) >= 12
    for picture in pictures:
        kind, _, data = picture["src"].partition("base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;"
        assert image.size == (4 * 130 - 2, 96)  # four frames of 64x48 at height 96, two pixels between
        assert np.asarray(image).std() > 10
    assert "clip <" in page.texts["clips"]


def test_unreadable_files_are_named_with_their_codes(page):
    rows = page.tables["files"]
    assert ["clips/gone.mp4", "NOT_FOUND", "'clips/gone.mp4' does not exist", "evaluation"] in rows
    assert ['clips/a <b> & "c"\\n\\udcff.mp4', "NOT_DECODABLE", "index missing", "evaluation"] in rows
    assert ["clips/cut & short.mp4", "MEDIA_TRUNCATED", "58 of 100 frames: or so", "training"] in rows


def test_recipe_environment_and_log_are_there(page):
    assert ["name", "tsm_r18"] in page.tables["recipe"]
    assert ["flip_labels", "[[1, 2]]"] in page.tables["recipe"]
    assert '"epochs": 24' in page.texts["recipe"]
    assert ["torchcodec", "–"] in page.tables["environment"]
    assert ["model", "Some <Processor>"] in page.tables["environment"]
    assert "<6> classes" in page.texts["log"]


def test_curves_say_in_words_what_they_show(run, page):
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    loss = [float(row[rows[0].index("loss")]) for row in rows[1:] if row[rows[0].index("loss")]]
    alt = next(a["aria-label"] for a in page.attributes("svg") if a["aria-label"].startswith("Loss"))
    assert f"training from {loss[0]:.4g} to {loss[-1]:.4g}" in alt
    assert [a["aria-label"].split(",")[0] for a in page.attributes("svg")] == [
        *("Loss", "Validation", "Learning rate", "Waiting for data", "Throughput"),
    ]


def test_the_same_run_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert not list(run.glob("*.part"))


# Other kinds of run


def test_hostile_names_stay_text(tmp_path):
    page = page_of(write_run(tmp_path, HOSTILE, clips=30, videos=2))
    assert_stands_alone(page)
    shown = [markup.plain(name) for name in HOSTILE]
    assert {row[0] for row in page.tables["classes"][2:]} >= set(shown)
    assert shown[0] in page.texts["confusion"]
    assert shown[5] == "line\\nbreak"
    assert "\u202e" not in "".join(page.texts.values())


@pytest.mark.parametrize("count", [2, 40, 400])
def test_few_and_many_classes(tmp_path, count):
    classes = [f"class {i} & <co>" for i in range(count)]
    page = page_of(write_run(tmp_path, classes, clips=count * 3, videos=0))
    assert_stands_alone(page)
    assert (
        sum(row[0].startswith("class ") and len(row) == 4 for row in page.tables["classes"] if row) == count
    )
    maps = [a for a in page.attributes("svg") if a["aria-label"].startswith("Confusion")]
    assert len(maps) == (count > 24)
    assert "NOT_FOUND" in page.texts["clips"]
    assert len([row for row in page.tables["confusion"] if len(row) == 4]) <= 21


def test_several_labels_a_clip(tmp_path):
    page = page_of(write_run(tmp_path, [f"c{i}" for i in range(30)], clips=40, videos=40, multi_label=True))
    assert_stands_alone(page)
    assert "confusion" not in page.sections
    assert "average precision" in page.tables["classes"][2]
    assert any(row[:1] == ["mAP"] and row[2] == "50.0%" for row in page.tables["numbers"])
    assert page.texts["clips"].count("Label: ") >= 12
    assert [a["aria-label"] for a in page.attributes("svg")][1].startswith("Validation")


@pytest.mark.parametrize(
    "name", ["recipe.json", "metrics.csv", "environment.json", "results.json", "scores.parquet", "log.txt"]
)
def test_each_file_may_be_missing_or_broken_and_the_page_says_so(tmp_path, name):
    folder = write_run(tmp_path, clips=12, videos=1)
    (folder / name).unlink()
    page = page_of(folder)
    assert f"Not here: {name}" in page.texts[""]
    assert_stands_alone(page)
    if name not in ("metrics.csv", "log.txt"):  # these have no form that cannot be read
        (folder / name).write_text("{ not")
        assert f"{name}, which cannot be read: " in page_of(folder).texts[""]


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    page = page_of(tmp_path)
    assert page.texts[""].count("Not here: ") == 6
    assert page.sections == []


@pytest.mark.parametrize(
    "results", ["{}", '{"metrics": {"top1": "high"}, "evaluated": 1, "listed": 1}', '{"per_class": [3]}']
)
def test_results_of_another_form_do_not_stop_the_rest(tmp_path, results):
    folder = write_run(tmp_path, clips=12, videos=0)
    (folder / "results.json").write_text(results)
    page = page_of(folder)
    assert {"recipe", "environment", "curves", "log"} <= set(page.sections)
    assert results == "{}" or "another form than expected" in "".join(page.texts.values())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(EnvironmentFault, match=r"report\.html"):
        write_report(tmp_path)


# Parts


def test_views_of_a_clip_are_averaged_before_it_is_judged(tmp_path):
    table = {
        "path": ["a", "a", "b"],
        "label": [[1], [1], [0]],
        "view": [0, 1, 0],
        "scores": [[0.0, 1], [0.5, 0.5], [1, 0]],
    }
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    scores = examples.read_scores(tmp_path / "s.parquet")
    assert (scores.paths, scores.labels) == (["a", "b"], [[1], [0]])
    assert scores.values.tolist() == [[0.25, 0.75], [1, 0]]


def test_clips_worth_a_look_are_chosen_by_how_sure_the_network_was():
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    scores = examples.Scores(list("abcde"), [[0], [0], [0], [1], [0, 1]], values)
    assert examples.worth_a_look(scores, values, 2) == {
        "Surest and right": [0, 3],
        "Surest and wrong": [2],
        "Least sure, yet right": [4, 1],
    }


def test_logits_become_probabilities():
    logits = np.array([[0.0, np.log(3)], [1000, 0]])
    assert examples.probabilities(logits, multi_label=False) == pytest.approx(
        np.array([[0.25, 0.75], [1, 0]])
    )
    assert examples.probabilities(logits, multi_label=True) == pytest.approx(
        np.array([[0.5, 0.75], [1, 0.5]])
    )


def test_long_curves_are_thinned_to_means_of_equal_parts():
    x, y = charts._thinned(np.arange(1201.0), np.arange(1201.0) * 2)
    assert len(x) == len(y) <= charts.POINTS
    assert x[:2].tolist() == [1, 4]
    assert y == pytest.approx(2 * x)


def test_a_chart_takes_its_ink_from_the_page_and_reads_names_as_they_are():
    chart = charts.heat_map(np.eye(30, dtype=np.int64), ["$x^2$ <b>"] * 30)
    assert "currentColor" in chart.svg
    assert charts.INK not in chart.svg
    assert chart.svg.count("$x^2$ &lt;b&gt;") == 60


@given(st.text())
def test_any_text_comes_back_as_it_was_shown(text):
    class Text(HTMLParser):
        seen = ""

        def handle_data(self, data):
            self.seen += data

    parser = Text(convert_charrefs=True)
    parser.feed(f"<p>{markup.escaped(text)}</p>")
    parser.close()
    assert parser.seen == markup.plain(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", parser.seen)


def test_results_of_a_test_go_where_they_are_wanted(tmp_path):
    run = write_run(tmp_path / "run")
    before, beside = {path: path.read_bytes() for path in run.rglob("*.*")}, []
    assert "report.html" not in {path.name for path in before}
    leave_results({"metrics": {"map": 0.25}}, tmp_path / "mine.json", run, beside.append)
    assert json.loads((tmp_path / "mine.json").read_text()) == {"metrics": {"map": 0.25}}
    assert before == {path: path.read_bytes() for path in run.rglob("*.*")}, "a run keeps its own results"
    leave_results({"metrics": {"map": 0.75}}, None, run, beside.append)
    assert json.loads((run / "results.json").read_text()) == {"metrics": {"map": 0.75}}
    assert "Written by marey" in (run / "report.html").read_text()
    assert beside == [tmp_path / "mine.json", run / "results.json"]
    leave_results({}, None, None, beside.append)
    assert len(beside) == 2
