"""Token moments: exact in any cut into batches, whole on disk, refused for another network; and the terms made of them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models import VisionModel, load_model
from limbeck.outputs import Outputs
from limbeck.synthesis.moments import Moment, Moments, RunningMoments, check, collect, load, request_for, save, values
from limbeck.synthesis.priors.base import Seen
from limbeck.synthesis.priors.token_moments import ClassMeans, TokenMoments, class_distance, moment_distance

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 1, -1, 0, 1, 1])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images() -> Tensor:
    return torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batches(*sizes: int) -> list[dict[str, Tensor]]:
    pairs = zip(images().split(sizes), LABELS.split(sizes), strict=True)
    return [{"image": image, "label": label, "index": label} for image, label in pairs]


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    return load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32)).eval()


@pytest.fixture(scope="module")
def moments(model: VisionModel) -> Moments:
    return collect(model, batches(3, 4), CPU)


def test_a_stream_has_the_moments_of_the_whole_exactly() -> None:
    whole = 1e4 + noise(11, 3, 4, 2)
    for sizes in ([11], [1] * 11, [5, 2, 4]):
        running = RunningMoments()
        for part in whole.split(sizes):
            running.add(part)
        torch.testing.assert_close(running.mean, whole.mean((0, 2, 3)), rtol=1e-12, atol=0)
        variance = ((whole - whole.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))
        torch.testing.assert_close(running.squares / running.count, variance, rtol=1e-9, atol=0)


def test_collected_moments_are_those_of_all_images_at_once_whatever_the_batches(
    model: VisionModel, moments: Moments
) -> None:
    with torch.no_grad():
        found = values(model(images(), request_for(model)))
    assert list(moments.levels) == [*(level.name for level in model.facts.levels), "final", "pooled"]
    for given in (moments, collect(model, batches(7), CPU), collect(model, batches(1, 1, 5), CPU)):
        for name, moment in given.levels.items():
            axes = [axis for axis in range(found[name].ndim) if axis != 1]
            variance, mean = torch.var_mean(found[name].double(), axes, correction=0)
            torch.testing.assert_close(moment.mean, mean.float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(moment.variance, variance.float(), rtol=1e-4, atol=1e-6)
        assert given.images == 7
        assert given.view_size == (32, 32)
        assert given.class_counts.tolist() == [2, 4, 0]
        for label in (0, 1):
            torch.testing.assert_close(given.class_means[label], found["pooled"][label == LABELS].mean(0))
        assert given.class_means[2].abs().max() == 0


def test_without_labels_there_are_no_class_means_and_without_images_nothing(model: VisionModel) -> None:
    unlabelled = collect(model, [{"image": images(), "label": torch.full((7,), -1)}], CPU)
    assert unlabelled.class_means is None
    assert collect(model, [{"image": images()}], CPU).class_counts is None
    with pytest.raises(UserError, match="no class means"):
        ClassMeans(model, unlabelled)
    with pytest.raises(UserError, match="no images"):
        collect(model, [], CPU)


def test_broken_weights_are_named() -> None:
    broken = load_model("limbeck:resnet8", pretrained=False, num_classes=3).eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        collect(broken, batches(7), CPU)


def test_a_file_gives_back_what_was_saved(moments: Moments, tmp_path: Path) -> None:
    file = tmp_path / "statistics.safetensors"
    save(file, moments)
    back = load(file)
    assert list(back.levels) == list(moments.levels)
    for name, moment in moments.levels.items():
        assert torch.equal(back.levels[name].mean, moment.mean)
        assert torch.equal(back.levels[name].variance, moment.variance)
    assert torch.equal(back.class_means, moments.class_means)
    assert torch.equal(back.class_counts, moments.class_counts)
    for name in ("model", "weights_sha256", "images", "view_size"):
        assert getattr(back, name) == getattr(moments, name)
    assert file.stat().st_size < 20_000


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="limbeck statistics"):
        load(tmp_path / "none")
    text = tmp_path / "text"
    text.write_text("hello")
    with pytest.raises(UserError, match="no readable safetensors"):
        load(text)
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(UserError, match="no token moments"):
        load(tmp_path / "weights")
    save_file({"weight": torch.zeros(1)}, tmp_path / "half", metadata={"limbeck_token_moments": '{"levels": ["a"]}'})
    with pytest.raises(UserError, match="incomplete"):
        load(tmp_path / "half")


def test_moments_of_another_network_are_refused(model: VisionModel, moments: Moments) -> None:
    check(moments, model)
    other = load_model("limbeck:resnet8", pretrained=False, num_classes=3)
    with pytest.raises(UserError, match=r"another network .*limbeck statistics limbeck:resnet8$"):
        check(moments, other)
    torch.manual_seed(1)
    retrained = load_model("test_vit", pretrained=False, num_classes=3, input_size=(32, 32))
    with pytest.raises(UserError, match="other weights"):
        TokenMoments(retrained, moments)


def test_distance_equals_a_slow_one_and_ignores_the_levels_scale() -> None:
    value = noise(3, 2, 2, 2)
    stored = Moment(noise(2, seed=1), noise(2, seed=2).square())
    means, variances = [], []
    for channel in range(2):
        flat = value[:, channel].flatten().tolist()
        means.append(sum(flat) / 12)
        variances.append(sum((x - means[-1]) ** 2 for x in flat) / 12)
    off = sum((a - b) ** 2 for a, b in zip(means, stored.mean.tolist(), strict=True)) ** 0.5
    strange = sum((a - b) ** 2 for a, b in zip(variances, stored.variance.tolist(), strict=True)) ** 0.5
    spread = stored.variance.tolist()
    expected = off / sum(spread) ** 0.5 + strange / sum(x * x for x in spread) ** 0.5
    assert moment_distance(value, stored).item() == pytest.approx(expected, rel=1e-12)
    scaled = Moment(10 * stored.mean, 100 * stored.variance)
    torch.testing.assert_close(moment_distance(10 * value, scaled), moment_distance(value, stored))
    exact = Moment(value.mean((0, 2, 3)), value.var((0, 2, 3), correction=0))
    assert moment_distance(value, exact).item() == pytest.approx(0, abs=1e-12)


def seen(model: VisionModel, shown: Tensor, prior: TokenMoments | ClassMeans, asked: Tensor | None = None) -> Seen:
    return Seen(shown, shown, model.read(shown, prior.needs.request), asked)


def test_the_term_is_nothing_on_the_training_images_and_grows_away_from_them(
    model: VisionModel, moments: Moments
) -> None:
    prior = TokenMoments(model, moments)
    real = model.prepare(images())
    value = prior(seen(model, real, prior))
    assert value.item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(prior(seen(model, torch.cat([real] * 2), prior)), value, atol=1e-4, rtol=0)
    strange = (3 * real).requires_grad_()
    far = prior(seen(model, strange, prior))
    assert far > 0.1
    (gradient,) = torch.autograd.grad(far, strange)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_moments_of_pictures_of_another_size_are_used_and_spoken_of(model: VisionModel, moments: Moments) -> None:
    assert TokenMoments(model, moments).notes == ClassMeans(model, moments).notes == ()
    elsewhere = dataclasses.replace(moments, view_size=(48, 40))
    for prior in (TokenMoments(model, elsewhere), ClassMeans(model, elsewhere)):
        (note,) = prior.notes
        assert "collected at 48 x 40 pixels, and test_vit now reads 32 pixels" in note


def test_some_levels_only(model: VisionModel, moments: Moments) -> None:
    prior = TokenMoments(model, moments, levels="final")
    assert prior.needs.request.final
    assert not prior.needs.request.levels
    assert not prior.needs.request.pooled
    outputs = Outputs(torch.zeros(1), final=noise(2, len(moments.levels["final"].mean), 2, 2))
    given = Seen(torch.zeros(1), torch.zeros(1), outputs)
    torch.testing.assert_close(prior(given), moment_distance(outputs.final, moments.levels["final"]))
    with pytest.raises(UserError, match="There are: "):
        TokenMoments(model, moments, levels=["nowhere"])


def test_class_means_pull_towards_the_class_asked_for(model: VisionModel, moments: Moments) -> None:
    prior = ClassMeans(model, moments)
    real = model.prepare(images())
    asked = torch.tensor([0, 1, 1, 1, 0, 1, 1])
    given = seen(model, real, prior, asked)
    expected = sum(
        ((one - moments.class_means[label]) ** 2).sum().item()
        for one, label in zip(given.outputs.pooled, asked.tolist(), strict=True)
    )
    spread = moments.levels["pooled"].variance.sum().item()
    assert prior(given).item() == pytest.approx(expected / 7 / spread, rel=1e-5)
    assert class_distance(moments.class_means, moments.class_means, moments.levels["pooled"].variance) == 0
    # Nobody knows the mean of class 2.
    mixed = prior(seen(model, real, prior, torch.tensor([0, 1, 1, 2, 0, 1, 1])))
    known = prior(seen(model, real[LABELS >= 0], prior, LABELS[LABELS >= 0]))
    torch.testing.assert_close(mixed, known, rtol=1e-4, atol=1e-5)
    assert prior(seen(model, real, prior, torch.full((7,), 2))) == 0
