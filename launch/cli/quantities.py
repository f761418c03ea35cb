"""Numbers with their units, as people write them: tokens, times, money, energy."""

from __future__ import annotations

_SECONDS_PER_DAY = 86_400
_KWH_PER_MWH = 1000


def in_tokens(number: int) -> str:
    """A number of tokens as papers print it."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds in the unit that a reader expects."""
    for unit, name in ((_SECONDS_PER_DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} s"


_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def seconds_of(option: str, text: str) -> float:
    """The seconds of a time such as 90m, 12h, 30d or 2w.

    Raises:
        Refusal: it is none; the sentence names the option.
    """
    try:
        seconds = float(text[:-1]) * _UNITS[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        from slipway.configs import Refusal

        raise Refusal(f"{option} {text} is not a time", "Write it as 90m, 12h, 30d or 2w.")
    return seconds


def dollars(amount: float) -> str:
    """An amount of money: ``$1,234``, ``$9.04 M``."""
    for unit, name in ((1e9, " B"), (1e6, " M")):
        if amount >= unit:
            return f"${amount / unit:,.2f}{name}"
    return f"${amount:,.{0 if amount >= 100 else 2}f}"


def energy(kwh: float) -> str:
    """An amount of energy: ``12 kWh``, ``3,400 MWh``."""
    mwh = kwh / _KWH_PER_MWH
    return f"{mwh:,.{0 if mwh >= 100 else 1}f} MWh" if mwh >= 1 else f"{kwh:,.1f} kWh"
