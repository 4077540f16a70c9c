"""The text of a call, `name(option=value, ...)`, by which methods and models are asked for; nothing in it ever runs.

A value is a number, a text, True, False or None, or a list, tuple or {name: value} of these. A text that is one word
may stand without quotes, since quotes inside a shell's quotes are a nuisance: `pooling=gap` is `pooling='gap'`.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from limbeck.errors import UserError

_HOW = (
    "Options are written name=value; a value is a number, a text (quoted unless it is one word, and none of Python's own "
    "such as 'global' or 'none'), True, False, None or a list of these."
)


def split_joined(text: str, separator: str, kind: str) -> list[str]:
    """The parts between those separators that stand outside brackets and quotes.

    Args:
        text: what the user wrote.
        separator: one character or more, none of them a bracket or a quote.
        kind: what the text names, for the message: "method" or "model".

    Raises:
        UserError: a bracket or quote is not closed.
    """
    parts, start = [], 0
    for position, character, depth in _unquoted(text, kind):
        if character == separator[0] and depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position])
            start = position + len(separator)
    return [*parts, text[start:]]


def split_call(text: str, kind: str) -> tuple[str, str, str]:
    """A call taken apart: the name, its options with their parentheses, and whatever follows them.

    Args:
        text: `name(option=value, ...)` and perhaps more; without any parenthesis it is all name.
        kind: as for `split_joined`.

    Raises:
        UserError: the parenthesis is not closed.
    """
    name, opening, rest = text.partition("(")
    if not opening:
        return name, "", ""
    call = opening + rest
    end = next(position for position, _, depth in _unquoted(call, kind, text) if depth == 0) + 1
    return name.rstrip(), call[:end], call[end:]


def parse_call(part: str, text: str, *, kind: str, plural: str, example: str) -> tuple[str, dict[str, Any]]:
    """One of several joined calls: its name, which may be `package.module:Class`, and its options.

    Args:
        part: the call, stripped; nothing where a part is empty.
        text: the whole that it is a part of, for messages.
        kind, plural: what the text names and what its parts are called, for messages: "method", "methods".
        example: of several joined.

    Raises:
        UserError: the part is empty or cannot be read, or its name is neither a word nor a class.
    """
    if not part:
        raise UserError(f"The {kind} {text!r} has an empty part. Write {plural} joined by '+', such as {example!r}.")
    match = re.fullmatch(r"([^\s()]+)\s*(\(.*\))?", part, flags=re.DOTALL)
    if match is None:
        raise UserError(f"The {kind} {part!r} cannot be read. Write name or name(option=value, ...), joined by '+'.")
    name, options = match[1], parse_options(match[2] or "", part)
    if ":" in name and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise UserError(f"The {kind} {name!r} looks like a class, which is written package.module:Class.")
    return name, options


def parse_options(arguments: str, text: str) -> dict[str, Any]:
    """The options of a call, in the order in which they are written.

    Args:
        arguments: `(option=value, ...)`, or nothing.
        text: the whole call, for messages.

    Raises:
        UserError: they cannot be read, one is repeated, or a value is no plain one.
    """
    if not arguments:
        return {}
    source = f"f{arguments}"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"The options of {text!r} cannot be read ({error}). {_HOW}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise UserError(f"The options of {text!r} cannot be read. {_HOW}")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise UserError(f"The options of {text!r} cannot be read. {_HOW}")
        if keyword.arg in options:
            raise UserError(f"In {text!r}, {keyword.arg} is repeated; give it once.")
        written = ast.get_source_segment(source, keyword.value)
        try:
            options[keyword.arg] = _plain(ast.literal_eval(_BareWords().visit(keyword.value)))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise UserError(f"In {text!r}, {keyword.arg}={written} is not a plain value. {_HOW}") from None
    return options


def write_call(name: str, options: dict[str, Any]) -> str:
    """A call as text; the name alone where there are no options."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


class _BareWords(ast.NodeTransformer):
    """Words become texts."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        # As texts these would be true where false is meant.
        if node.id.lower() in ("true", "false", "none", "null"):
            raise ValueError(node.id)
        return ast.copy_location(ast.Constant(node.id), node)


def _plain(value: Any) -> Any:
    """The value itself; bytes, sets and complex numbers are literals too, but no file of a run could hold them."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(value)
        _plain(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            _plain(item)
    elif value is not None and not isinstance(value, int | float | str):
        raise ValueError(value)
    return value


def _unquoted(part: str, kind: str, text: str | None = None) -> Iterator[tuple[int, str, int]]:
    """(position, character, brackets open after it) of every character outside quotes.

    Raises:
        UserError: at the end, where a bracket or quote is left open; `text` is what the message shows.
    """
    depth, quote, escaped = 0, "", False
    for position, character in enumerate(part):
        if quote:
            if not escaped and character == quote:
                quote = ""
            escaped = character == "\\" and not escaped
            continue
        if character in "'\"":
            quote = character
            continue
        depth += (character in "([{") - (character in ")]}")
        yield position, character, depth
    if quote or depth != 0:
        what = f"a {quote} is" if quote else "a bracket is"
        raise UserError(f"The {kind} {text or part!r} cannot be read: {what} not closed, or one too many is.")
