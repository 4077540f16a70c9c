"""What the documents say can be done is done: examples run, options and methods exist, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.cli import VERBS
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import parse_methods
from limbeck.synthesis.names import SYNTHESES, parse_synthesis

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (document.name, language, block)
    for document in DOCUMENTS
    for language, block in re.findall(r"```(\w*)\n(.*?)```", document.read_text(), re.DOTALL)
]
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for _, _, block in BLOCKS
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.startswith("limbeck ")
    }
)


def test_the_example_in_plain_pytorch_runs_and_its_heart_is_in_the_document() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py", "--epochs", "4"], capture_output=True, text=True, check=True
    )
    accuracies = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(accuracies) == 3
    assert accuracies[0] > 0.8, done.stdout
    program = (ROOT / "examples" / "own_loop.py").read_text()
    assert "distiller.set_epoch(epoch)" in program
    assert 'terms["total"].backward()' in (ROOT / "docs" / "own_loop.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_use_verbs_and_options_that_exist(command: str) -> None:
    words = shlex.split(command)
    assert words[1] in VERBS or words[1] == "COMMAND"
    known = subprocess.run(
        [sys.executable, "-m", "limbeck.cli", words[1], "--help"], capture_output=True, text=True
    ).stdout
    for word in words[2:]:
        if word.startswith("--"):
            assert re.search(rf"{word.partition('=')[0]}\b", known), word
        before = words[words.index(word) - 1]
        if before == "--synthesis" or (before == "--method" and words[1] == "synthesize"):
            parse_synthesis(word)
        elif before == "--method" and word != "M":
            parse_methods(word)


def test_every_method_is_documented() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"| `{name}` |" in text for name in METHODS)


def test_every_way_to_make_images_is_documented() -> None:
    text = (ROOT / "docs" / "data_free.md").read_text()
    assert [name for name in SYNTHESES if not re.search(rf"`{name}\b", text)] == ["scenes"]
    assert "`limbeck methods` lists all of them" in text


def test_the_loss_in_the_document_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.distiller import Distiller
    from limbeck.models.cifar import create

    (source,) = [block for name, language, block in BLOCKS if name == "methods.md" and language == "python"]
    (tmp_path / "my_losses.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import torch

    student, teacher = create("resnet8", 4, input_size=(8, 8)), create("resnet14", 4, input_size=(8, 8))
    distiller = Distiller(teacher, student, "my_losses:LogitMSE(scale=0.5)+kd").eval()
    images = torch.rand(2, 3, 8, 8)
    expected = 0.5 * (student(images).logits - teacher(images).logits).square().mean()
    torch.testing.assert_close(distiller(images, torch.tensor([0, 1]))["LogitMSE"], expected)


def test_the_model_in_the_guide_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import limbeck

    (source,) = [block for name, language, block in BLOCKS if name == "guide.md" and language == "python"]
    (tmp_path / "my_models.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    model = limbeck.load_model("my_models:small", num_classes=7)
    assert model(torch.rand(2, 3, 32, 32)).logits.shape == (2, 7)


def test_the_loop_in_detections_document_runs() -> None:
    (source,) = [block for name, language, block in BLOCKS if name == "detection.md" and language == "python"]
    names: dict[str, object] = {}
    exec(source, names)
    losses = names["losses"]
    assert isinstance(losses, dict) and {"task", "pkd", "total"} < set(losses)
