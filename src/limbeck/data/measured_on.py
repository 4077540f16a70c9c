"""Images to measure on that were named apart from those to learn from: do the classes agree, is none in both?"""

import os
from collections.abc import Sequence
from pathlib import Path

from limbeck.data.base import ImageSource
from limbeck.data.folder import VAL_NAMES, FolderSource
from limbeck.data.split import SubsetSource
from limbeck.errors import UserError


def lone_val_folder(path: Path) -> Path | None:
    """The val/ (or valid, validation, test) of a folder that holds such folders only, which gives no images to learn from.

    Where there are several, the first in that order.
    """
    if not path.is_dir():
        return None
    with os.scandir(path) as entries:
        by_name = {e.name.lower(): e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    if not by_name or set(by_name) - set(VAL_NAMES):
        return None
    return path / next(by_name[name] for name in VAL_NAMES if name in by_name)


def require_same_classes(ours: Sequence[str], theirs: Sequence[str], our_name: str, their_name: str) -> None:
    """Refuse images to measure on whose classes are others, or in another order, than those that are learned.

    Names that are only numbers from 0 on stand for unknown ones and agree with any. Capitals, spaces and punctuation do
    not count, since a folder cannot be called `maple/tree`.

    Args:
        ours: class names of what is learned from.
        theirs: of what is measured on.
        our_name, their_name: of the data, for the message.

    Raises:
        UserError: the number or the names of the classes differ.
    """
    if len(ours) != len(theirs):
        raise UserError(
            f"The images to measure on, {their_name}, have {len(theirs)} classes, but {our_name} has {len(ours)}. Give images "
            "of the same classes with --val_data."
        )
    if are_numbers(ours) or are_numbers(theirs):
        return
    plain_ours, plain_theirs = [[_plain(name) for name in names] for names in (ours, theirs)]
    number = next((i for i, (a, b) in enumerate(zip(plain_ours, plain_theirs, strict=True)) if a != b), None)
    if number is None:
        return
    differs = f"class {number} is {theirs[number]!r} in {their_name} and {ours[number]!r} in {our_name}"
    if sorted(plain_ours) == sorted(plain_theirs):
        raise UserError(
            f"The images to measure on have the same classes in another order: {differs}. Bring them into the same order; "
            "class folders are numbered in the sorted order of their names."
        )
    only_theirs = [name for name, plain in zip(theirs, plain_theirs, strict=True) if plain not in plain_ours]
    only_ours = [name for name, plain in zip(ours, plain_ours, strict=True) if plain not in plain_theirs]
    raise UserError(
        f"The images to measure on have other classes: {differs}. Only in {their_name}: {_some(only_theirs)}; only in "
        f"{our_name}: {_some(only_ours)}. Give images of the same classes, or rename the classes."
    )


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the classes have no names, only their numbers in order."""
    return list(names) == [str(number) for number in range(len(names))]


def require_unseen(train: ImageSource, val: ImageSource, name: str) -> None:
    """Refuse to measure on files that are learned from; only files can be told to be the same.

    Raises:
        UserError: with their number and the first of them.
    """
    if not all(isinstance(_whole(source), FolderSource) for source in (train, val)):
        return
    roots = [Path(os.path.abspath(_whole(source).root)) for source in (train, val)]  # type: ignore[attr-defined]
    if not (roots[0].is_relative_to(roots[1]) or roots[1].is_relative_to(roots[0])):
        return
    learned = {os.path.abspath(train.describe(index)) for index in range(len(train))}
    both = [index for index in range(len(val)) if os.path.abspath(val.describe(index)) in learned]
    if both:
        raise UserError(
            f"{len(both)} of {len(val)} images to measure on, {name}, are also learned from; the first is "
            f"{val.describe(both[0])}. Name images that are not in the data; or leave --val_data out, so that images of the "
            "data are held out."
        )


def _whole(source: ImageSource) -> ImageSource:
    return source.source if isinstance(source, SubsetSource) else source


def _plain(name: str) -> str:
    """What is compared of a name; one without any letter or digit is compared as it is."""
    return "".join(character for character in name.casefold() if character.isalnum()) or name


def _some(names: Sequence[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
