import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.reporting.calibration import expected_calibration_error, softmax
from limbeck.reporting.page import flatten, write_report


class Page(HTMLParser):
    """A page's tags, visible text, and figures."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.words, self.figures, self.kind = [], [], [], None
        self.source = file.read_text()
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.kind = dict(attrs).get("type", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.kind = None

    def handle_data(self, data):
        if self.kind is None:
            self.words.append(data)
        elif self.kind == "application/json":
            self.figures.append(json.loads(data))

    @property
    def sections(self):
        return {attrs["id"] for tag, attrs in self.tags if tag == "section"}

    def figure(self, axis_title):
        return next(f for f in self.figures if f["layout"]["yaxis"].get("title", {}).get("text") == axis_title)


def test_the_page_holds_the_runs_numbers(make_run):
    run = make_run("mine", right=80)
    file = write_report(run)
    page = Page(file)
    assert file == run / "report.html"
    for words in (
        "80.00 %", "90.00 %", "last epoch; best 85.00 % at epoch 1", "5.00 M", "teacher 20.0 M: 4.0 times as many",
        "teacher 4.50 G: 4.5 times as many", "77.00 %", "no control was given", "--method none", "10.00 points below",
        "1 h 2 min", "50 images per second", "Waiting for data takes 50 %", "nested.inner.depth",
        "two images were skipped",
    ):  # fmt: skip
        assert words in page.text
    probabilities = softmax(np.load(run / "predictions.npz")["student_logits"])
    error = expected_calibration_error(probabilities, np.arange(100) % 4)
    assert f"Student: ECE {100 * error:.2f} %" in page.text
    # Twenty mistakes, five in each class of 25; the teacher makes ten of them too.
    assert "Most frequent mistakes of the student Truth Answer Images Of the class cat dog 5 20.0 %" in page.text
    assert "both right on 80.0 %, only the student right on 0.0 %, only the teacher right on 10.0 %" in page.text
    assert "the same mistake on 10.0 %, different mistakes on 0.0 % of 100 images" in page.text


def test_every_section_is_there_for_a_whole_run_and_none_about_a_teacher_without_one(make_run):
    whole = Page(write_report(make_run("mine"))).sections
    about_teacher = {"agreement", "similarity", "pairs", "terms"}
    assert about_teacher < whole
    assert "warnings" not in whole
    alone = make_run("alone", verb="train")
    (alone / "metrics.jsonl").write_text(
        "\n".join(line for line in (alone / "metrics.jsonl").read_text().splitlines() if '"gradients"' not in line)
    )
    page = Page(write_report(alone))
    assert page.sections == whole - about_teacher
    assert "teacher" not in page.text.replace("Trained without a teacher", "")


def test_the_confusion_matrix_is_drawn_from_the_predictions(make_run):
    page = Page(write_report(make_run("mine", right=80)))
    heat = page.figure("truth")["data"][0]
    assert heat["text"] == [["20", "5", "", ""], ["", "20", "5", ""], ["", "", "20", "5"], ["5", "", "", "20"]]


def test_weighted_shares_add_up_to_the_whole(make_run):
    traces = {t["name"]: t for t in Page(write_report(make_run("mine"))).figure("share of the total loss")["data"]}
    shares = {name: np.frombuffer(base64.b64decode(t["y"]["bdata"])) for name, t in traces.items()}
    # 1.0 * 1 supervised, 3.0 * 0.5 kd, 1.5 * 1 reviewkd.
    assert shares["supervised"] == pytest.approx([0.25] * 3)
    assert shares["kd"] == pytest.approx([0.375] * 3)
    assert sum(shares.values()) == pytest.approx([1.0] * 3)


def test_several_controls_give_mean_and_spread(make_run):
    run = make_run("mine", right=80)
    controls = [make_run(f"control{right}", right, method="none") for right in (69, 70, 71)]
    page = Page(write_report(run, controls=controls))
    assert "70.00 ± 1.00 %" in page.text
    # Student's t with two degrees of freedom: 4.303 * 1.00 * sqrt(4 / 3).
    assert "± 4.97 points" in page.text
    assert "Distillation helped: the student is right on 80.00 % of the images, 10.00 points above" in page.text
    assert "50 % of the way from the control to the teacher" in page.text


def test_a_gain_within_the_spread_is_not_called_one(make_run):
    controls = [make_run(f"control{right}", right, method="none") for right in (74, 78, 82)]
    assert "No clear effect" in Page(write_report(make_run("mine", right=80), controls=controls)).text


def test_one_control_is_compared_image_by_image(make_run):
    run = make_run("mine", right=80)
    page = Page(write_report(run, controls=[make_run("control", right=60, method="none")]))
    # The control errs on the run's 20 mistakes and 20 more: the paired difference is 1 on 20 of 100 images, else 0.
    assert f"± {100 * 1.96 * (0.2 * 0.8) ** 0.5 / 10:.2f} points" in page.text
    assert "Better than the one control" in page.text


def test_unlike_controls_are_called_so_and_distilled_ones_refused(make_run):
    run, control = make_run("mine"), make_run("control", right=70, method="none")
    recipe = control / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 3", "epochs: 1"))
    assert (
        "Control control was trained differently: epochs 1 instead of 3."
        in Page(write_report(run, controls=[control])).text
    )
    with pytest.raises(UserError, match=r"method 'kd'.*--method none"):
        write_report(run, controls=[make_run("distilled", method="kd")])


def test_names_cannot_inject(make_run):
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    page = Page(write_report(make_run("mine", class_names=("<b>cat</b>", bad, "cow & calf", "hen"))))
    clean = Page(write_report(make_run("clean")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert bad in page.text
    # plotly understands some HTML in labels; there too the name has to stay text.
    assert page.figure("truth")["layout"]["yaxis"]["ticktext"][0] == "&lt;b&gt;cat&lt;/b&gt;"
    assert not any("<b>" in text for row in page.figure("truth")["data"][0]["hovertext"] for text in row)


def test_nothing_is_loaded_from_elsewhere(make_run):
    page = Page(write_report(make_run("mine")))
    links = [
        v for tag, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action", "data")
    ]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in page.source
    style = re.search(r"<style>(.*?)</style>", page.source, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert page.source.count("plotly.js v") == 1


def test_the_page_stays_below_8_mb_with_large_samples_and_many_classes(make_run):
    run = make_run("mine")
    rng = np.random.default_rng(0)
    np.savez(
        run / "predictions.npz",
        labels=rng.integers(0, 300, 2000),
        student_logits=rng.normal(size=(2000, 300)).astype(np.float32),
        teacher_logits=rng.normal(size=(2000, 300)).astype(np.float32),
    )
    np.savez(run / "samples.npz", images=rng.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8), index=np.arange(40))
    file = write_report(run, out=run / "elsewhere" / "page.html")
    assert file.stat().st_size < 8e6
    assert sum(tag == "img" for tag, _ in Page(file).tags) == 24


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("recipe.yaml", "recipe"),
        ("summary.json", "notes"),
        ("metrics.jsonl", "learning"),
        ("predictions.npz", "calibration"),
        ("cka.npz", "similarity"),
        ("samples.npz", "samples"),
    ],
)
def test_a_missing_or_broken_file_is_named_and_the_rest_is_shown(make_run, name, section):
    run = make_run("mine")
    whole = Page(write_report(run)).sections
    (run / name).write_bytes(b"\x00\xff{[")
    if name != "metrics.jsonl":
        broken = Page(write_report(run))
        assert f"{name} cannot be read" in broken.text
        assert section not in broken.sections
    (run / name).unlink()
    page = Page(write_report(run))
    assert f"{name} is not in the run's folder" in page.text
    assert section not in page.sections
    assert len(page.sections) >= len(whole) - 4


def test_a_stopped_run_says_so_and_shows_what_it_measured(make_run):
    run, control = make_run("mine"), make_run("control", right=10, method="none")
    for name in ("summary.json", "predictions.npz", "cka.npz", "samples.npz"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"loss/total": 1.5', '"loss/total": NaN')
    lines[-2] = lines[-2].replace("0.2", "NaN")
    (run / "metrics.jsonl").write_text("\n".join(lines)[:-9])
    page = Page(write_report(run, controls=[control]))
    assert "The run has not ended" in page.text
    assert "The student is right on 10.00 % of the images" in page.text
    assert "not a finite number in 1 of 3 records, first at step 20" in page.text
    assert "1 line of metrics.jsonl cannot be read" in page.text


def test_records_repeated_after_a_resume_count_once(make_run):
    run = make_run("mine")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "val", "epoch": 2, "step": 30, "accuracy": 0.5, "loss": 1}\n')
    trace = Page(write_report(run)).figure("validation accuracy")["data"][0]
    assert np.frombuffer(base64.b64decode(trace["y"]["bdata"])) == pytest.approx([0.0, 0.1, 0.5])


def test_unlabelled_images_are_left_out_of_the_counts(make_run):
    run = make_run("mine", right=80)
    arrays = dict(np.load(run / "predictions.npz"))
    arrays["labels"][:20] = -1  # exactly the student's mistakes
    np.savez(run / "predictions.npz", **arrays)
    summary = json.loads((run / "summary.json").read_text())
    summary["accuracy"]["last"] = 1.0
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run))
    assert "There is no mistake on these images." in page.text
    # Samples 0, 3, ..., 18 are unlabelled, so 23 of 30 are left.
    assert sum(tag == "img" for tag, _ in page.tags) == 23


def test_a_headline_of_other_weights_than_the_predictions_is_pointed_out(make_run):
    run = make_run("mine", right=80)
    summary = json.loads((run / "summary.json").read_text())
    summary["accuracy"]["last"] = 0.83
    (run / "summary.json").write_text(json.dumps(summary))
    assert "predictions.npz gives the student 80.00 %, the headline 83.00 %" in Page(write_report(run)).text


def test_mistakes_come_before_what_both_get_right(make_run):
    page = Page(write_report(make_run("mine", right=80)))
    marks = re.findall(r"student ([✓✗])", page.text)
    # Of the stored images 0, 3, ..., 87, those below 20 are the student's mistakes.
    assert marks == ["✗"] * 7 + ["✓"] * 17


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither metrics.jsonl nor summary.json"):
        write_report(tmp_path)


def test_nested_values_become_dotted_names():
    assert flatten({"a": {"b": {"c": None}, "d": [1, True]}, "e": {}}) == [
        ("a.b.c", "none"),
        ("a.d", "1, yes"),
        ("e", "none"),
    ]


def test_no_model_library_is_needed(make_run):
    code = (
        "import sys; from limbeck.reporting.page import write_report; write_report(sys.argv[1]); "
        "assert not {'torch', 'timm', 'lightning'} & set(sys.modules)"
    )
    run = make_run("mine")
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, timeout=60)
    assert (run / "report.html").is_file()


def test_versions_and_hashes_are_shown_and_long_lists_cut(make_run):
    run = make_run("mine")
    (run / "provenance.yaml").write_text("environment: {torch: 2.14.1}\ndata: {val_files: [" + "x, " * 40 + "last]}\n")
    text = Page(write_report(run)).text
    assert "provenance.environment.torch 2.14.1" in text
    assert "x, ... (41 in all)" in text
    assert "x, last" not in text


def test_the_report_says_first_whether_the_run_worked(make_run):
    run = make_run("mine")
    assert "working" not in Page(write_report(run)).sections, "a run that was not watched is not said to be well"
    watched = {"kind": "watch", "epoch": 2, "step": 30, "parameters": 1.0, "cka/stages.0|layer1": 0.456}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(watched) + "\n")
    healthy = Page(write_report(run))
    assert "✓ Nothing suspicious was seen. Watched: that parameters and losses move" in healthy.text
    assert "Student level Teacher level After epoch 2 stages.0 layer1 0.46" in healthy.text
    found = {"epoch": 1, "name": "term_vanishes", "severity": "warning", "subject": "kd", "words": "<b>kd</b> is weak."}
    note = {"epoch": 2, "name": "features_part", "severity": "note", "words": "They part.", "remedy": "Nothing."}
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"findings": [note, found | {"remedy": "Raise it."}]}))
    ill = Page(write_report(run))
    assert (
        "A term does nothing first seen in epoch 1 <b>kd</b> is weak. Raise it. Features become less alike" in ill.text
    )
    assert "Nothing suspicious" not in ill.text
    assert ill.source.index('id="working"') < ill.source.index('id="learning"')


def test_gradient_plots_show_terms_and_angles_apart(make_run):
    run = make_run("mine")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "gradients":
            row |= {"ratio/kd": 0.1, "weight/kd": 0.9, "cosine/task|kd": -0.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(run))
    assert {trace["name"] for trace in page.figure("gradient norm")["data"]} == {"supervised", "kd"}
    (angle,) = page.figure("cosine of two gradients")["data"]
    assert angle["name"] == "supervised, kd"
    assert "pulls on the student's parameters. Logarithmic axis." in page.text
    for row in rows:
        if row["kind"] == "gradients":
            row["kd"] = 0.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    linear = Page(write_report(run))
    assert linear.figure("gradient norm")["layout"]["yaxis"].get("type") != "log"
    assert "pulls on the student's parameters. Logarithmic axis." not in linear.text
