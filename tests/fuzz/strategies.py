"""Values that nobody thought of: texts, JSON, TOML."""

import json
from datetime import UTC, date, datetime
from typing import Any

from hypothesis import strategies as st

any_text = st.text()
storable_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
"""What a database in UTF-8 can store."""

odd_numbers = (
    st.integers()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, -0.0, 1e308, 5e-324])
)
json_values = st.recursive(
    st.none() | st.booleans() | odd_numbers | any_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(any_text, inner, max_size=5),
    max_leaves=12,
)

toml_scalars = (
    st.booleans()
    | odd_numbers
    | storable_text
    | st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year >= 1000)
    | st.dates(min_value=date(1000, 1, 1))
    | st.sampled_from([float("nan"), float("inf"), -1, 0, 1, 0.5, "", "on", "auto", "debug"])
)
toml_values = st.recursive(
    toml_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(storable_text, inner, max_size=4),
    max_leaves=8,
)


def as_toml(value: Any) -> str:
    """A value as TOML has it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which it does not escape, and surrogate pairs.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(as_toml, value))}]"
        case dict():
            pairs = (f"{as_toml(key)} = {as_toml(each)}" for key, each in value.items())
            return f"{{{', '.join(pairs)}}}"
    assert isinstance(value, (date, datetime))
    return str(value.isoformat())
