"""A scoring rule of one's own: a `rules.Rule` from plain fields, as a TOML table or the record of a scored scan has them, and its check."""

import difflib
import math

from cacjax.kernels.rules import AtVoltage, Minimum, Rule


def from_fields(fields: dict, where: str) -> Rule:
    """The rule of a dict of its fields; what it lacks is as in `Rule`.

    where: what an error begins with, such as "rules.toml, [mine]". Raises ValueError that names the key, what it holds, and what is
    expected.
    """
    fields = {"source": where} | _known(fields, Rule, where)
    if fields.get("threshold_hu") == "none":  # TOML has no null
        fields["threshold_hu"] = None
    if "minimum" in fields:
        fields["minimum"] = Minimum(**_known(fields["minimum"], Minimum, f"{where}: minimum"))
    if isinstance(fields.get("by_kvp"), list | tuple):
        fields["by_kvp"] = tuple(_at_voltage(each, f"{where}: by_kvp") for each in fields["by_kvp"])
    return checked(Rule(**_tuples(fields)), where)


def _known(fields, kind, where):
    """A dict whose keys are fields of `kind`."""
    expected = f"expected keys among {', '.join(kind._fields)}"
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: {expected}, got {fields!r}")
    for key in fields:
        if key not in kind._fields:
            near = difflib.get_close_matches(key, kind._fields, 1)
            raise ValueError(f"{where}: there is no key {key!r}{f', did you mean {near[0]}' if near else ''}; {expected}")
    return fields


def _at_voltage(fields, where):
    fields = _known(fields, AtVoltage, where)
    if lacking := [key for key in ("kvp", "threshold_hu") if key not in fields]:
        raise ValueError(f"{where}: expected kvp and threshold_hu, got no {' and no '.join(lacking)} in {fields}")
    return AtVoltage(**_tuples(fields))


def _tuples(fields):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def checked(rule: Rule, where: str) -> Rule:
    """The rule itself. Raises ValueError, as `from_fields`, where a field holds what it cannot."""
    for key, value in _values(rule):
        fits, words = EXPECTED[key]
        if not fits(value):
            raise ValueError(f"{where}: {key}: expected {words}, got {value!r}")
    return rule


def _values(rule):
    """(key, value) of each field, and of each field of `minimum` and `by_kvp` after these themselves."""
    for key, value in rule._asdict().items():
        yield key, value
        for part in {"minimum": (value,), "by_kvp": value}.get(key, ()):
            yield from ((f"{key}.{name}", each) for name, each in part._asdict().items())


def _one_of(*words):
    return words.__contains__, "one of " + ", ".join(words)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_limits(value):
    return isinstance(value, tuple) and len(value) == 4 and all(map(_is_number, value)) and list(value) == sorted(value)


_HU, _LIMITS = "a number of HU", "four numbers of HU that ascend, such as [130, 200, 300, 400]"
_FLAG = (lambda value: isinstance(value, bool)), "true or false"
_KVP = (lambda value: _is_number(value) and value > 0), "a tube voltage in kV above 0"
EXPECTED = {  # of each field: whether it can hold a value, and what it can hold in words
    "source": ((lambda value: isinstance(value, str)), "a text"),
    "threshold_hu": ((lambda value: value is None or _is_number(value)), f'{_HU}, or "none" (None in Python): the mask as it is'),
    "strict": _FLAG,
    "connectivity": ((lambda value: _is_number(value) and value in (4, 8, 6, 18, 26)), "4 or 8 (in the slice), 6, 18 or 26 (in 3D)"),
    "minimum": ((lambda value: isinstance(value, Minimum)), f"a Minimum ({', '.join(Minimum._fields)})"),
    "minimum.value": ((lambda value: _is_number(value) and value >= 0), "a number of 0 or more"),
    "minimum.unit": _one_of("px", "area_mm2", "volume_mm3"),
    "minimum.rounding": _one_of("ceil", "round", "above"),
    "peak": _one_of("slice", "lesion"),
    "limits": (_are_limits, _LIMITS),
    "floor_weight": ((lambda value: not isinstance(value, bool) and value in range(5)), "a whole number from 0 to 4"),
    "thickness": _one_of("increment", "tag", "increment_rounded", "none"),
    "whole_lesions": _FLAG,
    "kvp": _KVP,
    "by_kvp": (
        (lambda value: isinstance(value, tuple) and all(isinstance(each, AtVoltage) for each in value)),
        f"a list of tables ({', '.join(AtVoltage._fields)}), in Python a tuple of AtVoltage",
    ),
    "by_kvp.kvp": _KVP,
    "by_kvp.threshold_hu": (_is_number, _HU),
    "by_kvp.limits": ((lambda value: value is None or _are_limits(value)), _LIMITS),
}
