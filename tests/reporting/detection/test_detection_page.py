"""The page of a detection run: its numbers are those of the run, its galleries show what was planted."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.reporting.detection.mistakes import FALSE_KINDS
from limbeck.reporting.page import write_report
from limbeck.tasks.detection_scores import Detections


def cells(row):
    return [f"{100 * value:.2f} %" if value is not None else "n/a" for value in row]


def test_the_page_holds_the_runs_numbers(make_detection_run, read_page, scenes, detectors):
    student, teacher = detectors.noisy(scenes, 1), detectors.noisy(scenes, 2, lost=0)
    run = make_detection_run(student=student, teacher=teacher)
    file = write_report(run)
    page = read_page(file)
    assert file == run / "report.html"
    mine, other = detectors.scores_of(scenes, student), detectors.scores_of(scenes, teacher)
    columns = [mine["bbox"], other["bbox"], mine["segm"], other["segm"]]
    for title, name in (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AR, 100 detections", "ar100")):
        row = [title, *cells([found.summary()[name] for found in columns])]
        assert " ".join(row) in page.section("scores")
    text = page.text
    for words in (
        f"The student reaches {100 * mine['bbox'].ap:.2f} % box AP", "no control was given", "best 99.00 % at epoch 1",
        "5.00 M", "teacher 20.0 M: 4.0 times as many", "at 96 × 128 pixels; teacher 4.50 G: 4.5 times as many",
        "1 h 2 min", "training 1 h 0 min", "3.2 images per second", "two images were skipped", "fpn.p3",
    ):  # fmt: skip
        assert words in text
    objects = sum(len(scenes.objects(index)) for index in range(6))
    assert f"6 images with {objects} objects" in text


def test_every_section_is_there_and_none_about_a_teacher_without_one(make_detection_run, read_page):
    page = read_page(write_report(make_detection_run()))
    whole = page.sections
    assert whole >= {
        "learning", "terms", "scores", "classes", "curves", "mistakes", "false-positives", "misses", "pictures",
        "speed", "pairs", "notes", "recipe",
    }  # fmt: skip
    assert "warnings" not in whole
    assert "Teacher:" in page.section("pictures")
    alone = read_page(write_report(make_detection_run("alone", verb="train")))
    assert alone.sections == whole - {"pairs"}
    assert "teacher" not in alone.text.replace("Trained without a teacher", "")
    assert "Model:" in alone.section("pictures")
    assert not any("student" in alone.section(name) for name in ("mistakes", "false-positives", "misses", "pictures"))


def test_curves_are_those_of_the_evaluation(make_detection_run, read_page, scenes, detectors):
    student = detectors.noisy(scenes, 1)
    page = read_page(write_report(make_detection_run(student=student)))
    official = detectors.scores_of(scenes, student)["bbox"]
    figure = next(f for f in page.figures if f["layout"]["yaxis"].get("title", {}).get("text") == "precision")
    drawn = np.frombuffer(base64.b64decode(figure["data"][0]["y"]["bdata"]))
    assert drawn == pytest.approx(official.precision[official.objects > 0].mean(axis=0), abs=1e-6)
    assert drawn.mean() == pytest.approx(official.ap50, abs=1e-6)
    own = next(
        f for f in page.figures if f["layout"]["yaxis"].get("title", {}).get("text") == "part of the supervised loss"
    )
    assert [trace["name"] for trace in own["data"]] == ["boxes", "classes"]
    # The parts are no terms beside the whole: supervised 1.0 of 1.0 + 0.5 * 3.0 at the start.
    share = next(
        f for f in page.figures if f["layout"]["yaxis"].get("title", {}).get("text") == "share of the total loss"
    )
    shares = {t["name"]: np.frombuffer(base64.b64decode(t["y"]["bdata"])) for t in share["data"]}
    assert set(shares) == {"supervised", "pkd"}
    assert shares["supervised"][0] == pytest.approx(0.4)


def test_a_planted_false_positive_is_shown_under_its_kind(make_detection_run, read_page, scenes, detectors):
    found = detectors.perfect(scenes)
    objects, free = scenes.objects(0), np.zeros((96, 96), dtype=bool)
    for x1, y1, x2, y2 in objects.boxes.astype(int):
        free[y1:y2, x1:x2] = True
    y, x = next((y, x) for y in range(0, 88, 4) for x in range(0, 88, 4) if not free[y : y + 8, x : x + 8].any())
    first, label = objects.boxes[0], int(objects.labels[0])
    planted = [((x, y, x + 8, y + 8), 0, 0.97), (first, (label + 1) % 5, 0.96), (first, label, 0.95)]
    boxes, labels, sure = zip(*planted, strict=True)
    found[0] = Detections(
        np.concatenate([found[0].boxes, np.array(boxes)]),
        np.append(found[0].scores, sure),
        np.append(found[0].labels, labels),
    )
    page = read_page(write_report(make_detection_run(student=found, verb="train", masks=False)))
    text = page.section("false-positives")
    names = scenes.class_names
    other = names[(label + 1) % 5]
    assert f"Background (1 of 1) {names[0]} 0.97 touches no object image 0" in text
    assert f"Wrong class (1 of 1) {other} 0.96 {names[label]} is annotated here IoU 1.00 image 0" in text
    assert f"Duplicate (1 of 1) {names[label]} 0.90 this {names[label]} is found by a surer box IoU 1.00" in text
    assert "misses" not in page.sections
    bars = next(f for f in page.figures if f["layout"]["xaxis"].get("title", {}).get("text") == "detections")
    counts = dict(zip(bars["data"][0]["y"], bars["data"][0]["text"], strict=True))
    assert counts == {kind: str(int(kind in ("background", "wrong class", "duplicate"))) for kind in FALSE_KINDS}


def test_a_planted_miss_is_shown_with_what_the_teacher_says(make_detection_run, read_page, scenes, detectors):
    student, teacher = detectors.perfect(scenes), detectors.perfect(scenes, 0.83)
    lost = student[2]
    student[2] = Detections(lost.boxes[1:], lost.scores[1:], lost.labels[1:], lost.masks[1:])
    text = read_page(write_report(make_detection_run(student=student, teacher=teacher))).text
    name = scenes.class_names[int(lost.labels[0])]
    x1, y1, x2, y2 = lost.boxes[0]
    assert f"Not seen (1 of 1) {name} teacher: finds it, 0.83 {x2 - x1:.0f} × {y2 - y1:.0f} pixels, image 2" in text
    assert "Image 2: the teacher finds what the student misses" in text


def test_several_controls_give_mean_and_spread(make_detection_run, read_page):
    run = make_detection_run(ap=0.40)
    controls = [make_detection_run(f"control{ap}", method="none", ap=ap / 100) for ap in (29, 30, 31)]
    page = read_page(write_report(run, controls=controls))
    text = page.text
    assert (
        "Distillation helped: the student reaches 40.00 % box AP, 10.00 points above the control (30.00 ± 1.00 %)"
        in text
    )
    # Student's t with two degrees of freedom: 4.303 * 1.00 * sqrt(4 / 3).
    assert "± 4.97 points" in text
    assert "Boxes: control" in page.section("scores")
    alone = read_page(write_report(run, controls=controls[:1])).text
    assert "One control cannot show how much the seed matters" in alone
    assert "helped" not in alone


def test_the_summary_of_other_weights_is_pointed_out(make_detection_run, read_page):
    assert "the headline 77.00 %: the two are not of the same weights" in read_page(
        write_report(make_detection_run(ap=0.77))
    ).section("warnings")


def test_distilled_controls_and_those_of_another_task_are_refused(make_detection_run, make_run):
    run = make_detection_run()
    with pytest.raises(UserError, match=r"method 'pkd'.*--method none"):
        write_report(run, controls=[make_detection_run("distilled")])
    with pytest.raises(UserError, match=r"a run of classification.*one of detection"):
        write_report(run, controls=[make_run("classifier", method="none")])


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("recipe.yaml", {"recipe"}),
        ("summary.json", {"notes", "pairs"}),
        ("metrics.jsonl", {"learning", "terms"}),
        ("detections.npz", {"mistakes", "false-positives", "misses", "pictures"}),
        ("detection_scores.json", {"classes", "curves"}),
        ("samples/samples.json", {"false-positives", "misses", "pictures"}),
    ],
)
def test_a_missing_or_broken_file_is_named_and_the_rest_is_shown(make_detection_run, read_page, name, lost):
    run = make_detection_run()
    whole = read_page(write_report(run)).sections
    (run / name).write_bytes(b"\x00\xff{[")
    if name != "metrics.jsonl":
        broken = read_page(write_report(run))
        assert f"{name} cannot be read" in broken.text
        assert broken.sections == (whole | {"warnings"}) - lost
    (run / name).unlink()
    page = read_page(write_report(run))
    assert f"{name} is not in the run's folder" in page.text
    assert page.sections == (whole | {"warnings"}) - lost


def test_a_lost_picture_is_named_and_the_others_are_shown(make_detection_run, read_page):
    run = make_detection_run()
    whole = read_page(write_report(run)).section("pictures")
    (run / "samples" / "000003.png").unlink()
    page = read_page(write_report(run))
    assert "1 file of samples/ is missing or damaged: 000003.png" in page.section("warnings")
    assert "Image 3:" in whole and "Image 3:" not in page.section("pictures")
    assert "Image 2:" in page.section("pictures")


def test_a_stopped_run_says_so_and_shows_what_it_measured(make_detection_run, read_page):
    run = make_detection_run()
    for name in ("summary.json", "recipe.yaml", "detections.npz", "detection_scores.json"):
        (run / name).unlink()
    page = read_page(write_report(run))
    assert "30.00 % box AP" in page.text
    assert "detections.npz is not in the run's folder; the run has not ended" in page.text


def test_nothing_is_loaded_from_elsewhere_and_names_cannot_inject(make_detection_run, read_page, scenes):
    run = make_detection_run()
    clean = read_page(write_report(run))
    bad = "</script><img src=x onerror=alert(1)>"
    for name in ("summary.json", "detection_scores.json"):
        (run / name).write_text((run / name).read_text().replace('"circle"', json.dumps(bad)))
    arrays = dict(np.load(run / "detections.npz"))
    arrays["class_names"] = np.array([bad, *scenes.class_names[1:]])
    np.savez(run / "detections.npz", **arrays)
    page = read_page(write_report(run))
    assert bad in page.text
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action", "data")]
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert sum(link.startswith("data:") for link in links) > 20
    assert "default-src 'none'" in page.source
    assert "url(" not in re.search(r"<style>(.*?)</style>", page.source, re.S).group(1)
    assert len(page.source) < 8e6


def test_no_model_library_is_needed(make_detection_run):
    code = (
        "import sys; from limbeck.reporting.page import write_report; write_report(sys.argv[1]); "
        "assert not {'torch', 'timm', 'lightning', 'faster_coco_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(make_detection_run())], check=True, timeout=60)
