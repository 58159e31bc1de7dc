"""Values that a JSON Schema of ours accepts, written in the many ways in which JSON can be written.

What a schema cannot say is kept to by hand: an id's bytes, and times that are no later than the record.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

Tree = dict[str, Any]
TEXT = st.text(max_size=20) | st.text('\ud83d\ude00\ufffdé\x00\t"\\', max_size=6)  # halves of pairs too
CONTROLS = frozenset(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values(schema: Tree, defs: Tree) -> st.SearchStrategy[Any]:
    """Values of a schema; numbers and strings may come as :class:`Literal`."""
    if "$ref" in schema:
        return values(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return st.one_of([values(one, defs) for one in schema["anyOf"]])
    return MAKERS[schema["type"]](schema, defs)


def _object(schema: Tree, defs: Tree) -> st.SearchStrategy[Any]:
    known = {name: values(of, defs) for name, of in schema["properties"].items()}
    required = {name: of for name, of in known.items() if name in schema.get("required", ())}
    optional = {name: of for name, of in known.items() if name not in required}
    extra = st.dictionaries(TEXT.filter(lambda name: name not in known), ANYTHING, max_size=2)
    return st.builds(
        lambda own, more: {**more, **own}, st.fixed_dictionaries(required, optional=optional), extra
    )


def _array(schema: Tree, defs: Tree) -> st.SearchStrategy[Any]:
    most = min(schema.get("maxItems", 5), 5)
    return st.lists(values(schema["items"], defs), min_size=schema.get("minItems", 0), max_size=most)


def _string(schema: Tree, _defs: Tree) -> st.SearchStrategy[Any]:
    if schema.get("format") == "date-time":
        return _moments(schema["pattern"])
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is None:
        return TEXT
    ids = st.text(
        st.characters(codec="utf-8").filter(lambda c: c not in CONTROLS), min_size=least, max_size=most
    )
    return ids.filter(lambda text: len(text.encode()) <= most)


def _moments(pattern: str) -> st.SearchStrategy[Any]:
    first = datetime(2001, 1, 1) if pattern.startswith("^2(") else datetime(1972, 1, 1)
    zones = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
    moments = st.datetimes(first, datetime(2199, 12, 30), timezones=st.just(UTC) | zones)
    shapes = (
        lambda t: t.isoformat(),
        lambda t: t.isoformat().replace("+00:00", "Z"),
        lambda t: t.isoformat().replace("+00:00", "z").replace("T", "t"),
        lambda t: (
            t.replace(second=59, microsecond=0).isoformat().replace(":59", ":60", 1)
            if t.minute != 59
            else t.isoformat()
        ),
    )
    return st.builds(lambda moment, shape: shape(moment), moments, st.sampled_from(shapes))


class Literal(str):
    """A number as it is written."""

    __slots__ = ()


def _integer(schema: Tree, _defs: Tree) -> st.SearchStrategy[Any]:
    shapes = (
        str,
        lambda n: f"{n}.0",
        lambda n: f"{n}.000E0",
        lambda n: f"{n}00e-2",
        lambda n: f"{n / 10**3:.3f}e+3" if n < 10**15 else str(n),
    )
    numbers = st.integers(schema.get("minimum", -(2**40)), schema.get("maximum", 2**40))
    return st.builds(lambda n, shape: Literal(shape(n)), numbers, st.sampled_from(shapes))


MAKERS = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "boolean": lambda _schema, _defs: st.booleans(),
    "null": lambda _schema, _defs: st.none(),
}


def written(tree: Any, *, ascii_only: bool) -> bytes:
    """The tree as JSON. Halves of surrogate pairs have no UTF-8: they stand as escapes either way."""
    if isinstance(tree, Literal):
        return tree.encode()
    if isinstance(tree, dict):
        pairs = (
            written(str(k), ascii_only=ascii_only) + b":" + written(v, ascii_only=ascii_only)
            for k, v in tree.items()
        )
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(tree, list):
        return b"[" + b",".join(written(one, ascii_only=ascii_only) for one in tree) + b"]"
    text = json.dumps(tree, ensure_ascii=ascii_only)
    if isinstance(tree, str) and any("\ud800" <= c <= "\udfff" for c in tree):
        text = json.dumps(tree)
    return text.encode()
