import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from limbeck.comparing.outcomes import read_outcomes
from limbeck.comparing.page import write_page
from limbeck.comparing.ranking import predict_ranking, rank_agreement
from limbeck.comparing.statistics import compare_outcomes
from limbeck.comparing.words import answer

EVERYTHING = {"methods", "scores", "differences", "cost", "classes", "teacher", "cells", "recipe", "headline"}


class Page(HTMLParser):
    """A page's visible text by section, links and figures."""

    def __init__(self, file):
        super().__init__()
        self.words, self.links, self.figures, self.kind, self.place = {"": []}, [], [], None, ""
        self.source = file.read_text()
        self.feed(self.source)
        self.text = " ".join(" ".join(" ".join(words).split()) for words in self.words.values())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "style"):
            self.kind = attrs.get("type", tag)
        if tag == "section":
            self.place = attrs["id"]
            self.words[self.place] = []
        if tag == "a":
            self.links.append(attrs["href"])

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.kind = None

    def handle_data(self, data):
        if self.kind is None:
            self.words[self.place].append(data)
        elif self.kind == "application/json":
            self.figures.append((self.place, json.loads(data)))

    def section(self, name):
        return " ".join(" ".join(self.words[name]).split())

    @property
    def sections(self):
        return set(self.words) - {""}


@pytest.fixture
def page_of(make_comparison, tmp_path):
    def make(methods, where="cmp", recipe=None, **options):
        outcomes = read_outcomes(make_comparison(methods, where=where, **options))
        comparison = compare_outcomes(outcomes)
        return comparison, Page(write_page(comparison, tmp_path / where, recipe=recipe)), outcomes

    return make


def test_the_page_says_the_answer_and_holds_every_part(page_of):
    comparison, page, _ = page_of(
        {"none": 0.0, "kd": 0.03, "nkd": 0.05}, recipe={"teacher": "T", "method": "kd", "lr": 0.5}
    )
    said = answer(comparison)
    assert page.sections == EVERYTHING
    for words in (said.conclusion, *said.lines):
        assert words in page.section("headline")
    assert all(note in page.section("methods") for note in said.notes)
    assert "teacher T" in page.text and "lr 0.5" in page.section("recipe") and "method kd" not in page.section("recipe")
    assert "3 seeds · 8 epochs" in page.text


def test_the_page_needs_no_network(page_of):
    _, page, _ = page_of({"none": 0.0, "kd": 0.03})
    assert "default-src 'none'" in page.source
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.source.split("<script>")[0])


def test_links_lead_to_the_runs_own_reports_and_only_to_those_that_exist(page_of, tmp_path):
    _, page, outcomes = page_of({"none": 0.0, "vitkd+nkd(gamma=1.0)": {"gain": 0.02, "fails": {1: "Out of memory"}}})
    reports = [link for link in page.links if not link.startswith("#")]
    assert len(reports) == 5 and not any(link.startswith(("/", "file:")) for link in reports)
    assert all((tmp_path / "cmp" / unquote(link)).is_file() for link in reports)
    assert "failed: Out of memory" in page.section("cells")
    assert len(outcomes) == 6


def test_figures_show_the_cells_numbers(page_of):
    comparison, page, _ = page_of({"none": 0.0, "kd": 0.03})
    scores = next(figure for place, figure in page.figures if place == "scores")
    names = scores["layout"]["yaxis"]["ticktext"]
    assert names == [r.method for r in comparison.ranked]
    dots = [trace for trace in scores["data"] if len(trace["x"]) == 3]
    assert [dot["x"] for dot in dots] == [[o.score for o in r.finished] for r in comparison.ranked]
    strokes = [trace for trace in scores["data"] if len(trace["x"]) == 1]
    assert [s["error_x"]["value"] for s in strokes] == pytest.approx(
        [r.over_seeds.half_width for r in comparison.ranked]
    )
    heat = next(figure for place, figure in page.figures if place == "classes")["data"][0]
    assert heat["type"] == "heatmap" and len(heat["text"][0]) == 10


def test_detectors_one_seed_and_many_methods_and_classes_have_pages_too(page_of):
    _, page, _ = page_of({"none": 0.0, "kd": 0.03}, where="boxes", task="detection", classes=5)
    assert page.sections == EVERYTHING - {"teacher", "recipe"} and "accuracy" not in page.text
    _, page, _ = page_of({"none": 0.0, "kd": 0.03}, where="one", seeds=1)
    assert "Too few seeds" in page.section("headline") and page.sections == EVERYTHING - {"recipe"}
    many = {"none": 0.0, "kd": 0.01} | {f"method{k}": 0.001 * k for k in range(12)}
    _, page, _ = page_of(many, where="many", classes=100, images=300, seeds=2, epochs=2)
    assert "Of 100 classes the 50 that change most" in page.section("classes")


def test_a_comparison_without_any_score_has_a_page_of_its_cells(page_of):
    _, page, _ = page_of(
        {"none": {"fails": dict.fromkeys(range(3))}, "kd": {"fails": dict.fromkeys(range(3), "No memory")}}
    )
    assert page.sections == {"headline", "methods", "cells"}
    assert "Every cell failed" in page.section("headline") and "failed: No memory" in page.section("cells")


def test_names_cannot_break_out_of_the_page(page_of):
    nasty = "x(text='</script><script>alert(1)</script>')"
    reason = "<img src=x onerror=alert(1)>"
    _, page, _ = page_of({"none": 0.0, "kd": {"fails": {0: reason}}}, names=[f"<b>{nasty}{k}" for k in range(10)])
    assert "<script>alert(1)" not in page.source and "<img src=x" not in page.source
    assert reason in page.section("cells")


def test_a_predicted_ranking_and_how_it_fared_are_shown(make_comparison, tmp_path):
    outcomes = read_outcomes(make_comparison({"none": 0.0, "kd": 0.03, "nkd": 0.05}))
    ranking, agreement = predict_ranking(outcomes), rank_agreement(outcomes, outcomes)
    file = write_page(
        compare_outcomes(outcomes),
        tmp_path,
        ranking=ranking,
        agreement=agreement,
        notes=["Only 100 images were trained on."],
    )
    page = Page(file)
    assert agreement.sentence in page.section("ranking")
    assert all(sentence in page.section("ranking") for sentence in ranking.sentences[1:])
    assert "Only 100 images were trained on." in page.section("methods")


def test_reading_a_comparison_loads_no_torch():
    code = "import limbeck.comparing.page, limbeck.comparing.outcomes, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
