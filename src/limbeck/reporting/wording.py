"""How the page writes numbers: shares, differences, large counts, times."""


def percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent, with a space that does not break; `n/a` for None."""
    return "n/a" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * difference:.2f} points"


def short(value: float | None) -> str:
    """A large count in three significant digits with k, M, G or T."""
    if value is None:
        return "n/a"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds in the two largest fitting units."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m} min"
    return f"{m} min {s} s" if m else f"{s} s"


def counted(number: int, what: str, plural: str = "") -> str:
    """`1 image`, `2 images`; `plural` where an s is not enough."""
    return f"{number} {what if number == 1 else plural or what + 's'}"


def capital(text: str) -> str:
    """`text` with a large first letter, the others as they are."""
    return text[:1].upper() + text[1:]
