"""Checks of options that several attacks share."""

import math
import numbers

from refine_jax.errors import SettingError


def check_number(field: str, value: object, low: float, high: float = float("inf"), *, above: bool = False) -> float:
    """Returns an option as a float.

    Args:
        field: Its dotted name, for the error.
        value: What was given.
        low: The smallest that is allowed, or, with `above`, what it must be above.
        high: The largest that is allowed.
        above: See `low`.

    Raises:
        SettingError: It is no number, or not in the range.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not (low < number if above else low <= number) or not number <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise SettingError(field, value, f"a number {'above' if above else 'of at least'} {low:g}{upper}")
    return number


def check_integer(field: str, value: object, low: int) -> int:
    """Returns an option as an int of at least `low`.

    Raises:
        SettingError: It is no integer, or too small.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < low:
        raise SettingError(field, value, f"an integer of at least {low}")
    return int(value)
