"""How ways of making images are asked for, shared out and built."""

import pytest

from limbeck.errors import UserError
from limbeck.synthesis.build import build_synthesis, import_synthesis, shares_of
from limbeck.synthesis.names import SYNTHESES, check_moments, parse_synthesis


def test_ways_joined_with_their_shares() -> None:
    first, second = parse_synthesis("invert(iterations=5, share=0.25) + one_image(image='a+b.jpg')")
    assert (first.name, first.options, first.share) == ("invert", {"iterations": 5}, 0.25)
    assert (second.name, second.options, second.share) == ("one_image", {"image": "a+b.jpg"}, 1.0)
    assert [spec.moment for spec in (first, second)] == ["between", "before"]


def test_the_text_of_a_spec_means_the_same() -> None:
    (spec,) = parse_synthesis("fast(g_steps=3, share=2)")
    assert parse_synthesis(str(spec)) == [spec]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("invrt", "Did you mean 'invert'"),
        ("invert+", "empty part"),
        ("scenes", "no images for --task classification"),
        ("invert(share=0)", "share is 0"),
        ("invert(share=True)", "share is True"),
        ("a:b:c", "package.module:Class"),
        ("invert)", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        parse_synthesis(text)


def test_images_of_another_task_are_refused() -> None:
    with pytest.raises(UserError, match="no images for --task detection"):
        parse_synthesis("invert", "detection")


@pytest.mark.parametrize(("shares", "count"), [((1, 1, 1), 100), ((0.7, 0.3), 10), ((5, 1, 1), 7), ((1e-3, 1), 5000)])
def test_shares_add_up_and_are_off_by_less_than_one(shares: tuple[float, ...], count: int) -> None:
    specs = parse_synthesis("+".join(f"noise(share={share})" for share in shares))
    counts = shares_of(count, specs)
    assert sum(counts) == count
    assert all(abs(own - count * share / sum(shares)) < 1 for own, share in zip(counts, shares, strict=True))


def test_a_share_of_no_picture_is_refused() -> None:
    with pytest.raises(UserError, match="comes to none"):
        shares_of(2, parse_synthesis("noise(share=100)+fractals"))


def test_only_one_way_learns_with_the_student_at_every_step() -> None:
    with pytest.raises(UserError, match="dafl and zskt"):
        check_moments(parse_synthesis("dafl+zskt"))
    check_moments(parse_synthesis("dafl+invert"))


@pytest.mark.parametrize("name", SYNTHESES)
def test_every_name_stands_for_a_class_with_documented_options(name: str) -> None:
    import inspect

    found = import_synthesis(parse_synthesis(name, SYNTHESES[name].task)[0])
    options = list(inspect.signature(found).parameters.values())[1:]
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    described = inspect.getdoc(found) or ""
    assert not [option.name for option in options if option.name not in described]


def test_options_are_checked_before_anything_is_made(resnet_setting) -> None:
    with pytest.raises(UserError, match="no option 'steps'"):
        build_synthesis(parse_synthesis("noise(steps=3)")[0], resnet_setting)
    with pytest.raises(UserError, match="not a way to make images"):
        build_synthesis(parse_synthesis("limbeck.run:Run")[0], resnet_setting)
