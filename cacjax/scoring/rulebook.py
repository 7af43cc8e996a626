"""Scoring rules as a command line or a caller names them: those of `cacjax.kernels.rules`, of a TOML file, or records.

A file has a table for each rule, with the fields of `rules.Rule` as keys; what a table lacks is as in `Rule`:

    [mine]
    source = "our manual, section 3"
    threshold_hu = 130                                     # or "none": the mask as it is
    strict = true                                          # > 130, not >= 130
    connectivity = 8                                       # 4, 8: in the slice; 6, 18, 26: in 3D
    minimum = {value = 1.0, unit = "area_mm2", rounding = "ceil"}
    limits = [130, 200, 300, 400]
    by_kvp = [{kvp = 100, threshold_hu = 147}]
"""

import pathlib
import tomllib

from cacjax.kernels import own_rules
from cacjax.kernels.rules import RULES, Rule

UNNAMED = "custom"


def find(rule):
    """{name: `rules.Rule`} of what is asked for.

    rule: names with commas between ("default,gogin"), each of `rules.RULES` or FILE.toml:NAME; a Rule, which is called "custom"; a list of
    these; or a dict {name: Rule}. Raises ValueError for a rule that there is not, that cannot be, or that has the name of another.
    """
    if isinstance(rule, str | Rule):
        rule = rule.split(",") if isinstance(rule, str) else [rule]
    each = rule.items() if isinstance(rule, dict) else map(_named, rule)
    found = {}
    for name, one in each:
        if not isinstance(one, Rule):
            raise ValueError(f"rule {name!r}: expected a cacjax.kernels.rules.Rule, got {one!r}")
        if found.get(name, one) != one or RULES.get(name, one) != one:
            raise ValueError(f"rule {name!r} is the name of another rule; expected a name of its own")
        found[name] = own_rules.checked(one, f"rule {name!r}")
    return found


def _named(rule):
    """(name, Rule) of a Rule, a name or FILE.toml:NAME."""
    if isinstance(rule, Rule):
        return UNNAMED, rule
    if rule in RULES:
        return rule, RULES[rule]
    path, _, name = str(rule).rpartition(":")
    if not path:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, or FILE.toml:NAME for one of your own, got {rule!r}")
    return name, own_rules.from_fields(_read(path, name), f"{path}, [{name}]")


def _read(path, name):
    try:
        tables = tomllib.loads(pathlib.Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: expected a TOML file of scoring rules, got {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ValueError(f"{path}: expected TOML with a table for each rule, got {error}") from None
    if name not in tables:
        raise ValueError(f"{path}: expected the name of one of its tables ({', '.join(tables) or 'it has none'}), got {name!r}")
    return tables[name]
