"""Dashboards, given as files, against the models that Grafana publishes (grafana-foundation-sdk).

The models read what they know and keep the rest to themselves, so each value is compared with the type that its model
declares, and each field with what the model gives back. Panels' options and queries are checked by the models of their plugins.
Prints each place that is not of the schema, and ends with `N dashboards, N faults`.
"""

import enum
import json
import sys
import types
import typing

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.models import dashboard


def is_model(kind):
    return isinstance(kind, type) and hasattr(kind, "from_json") and not issubclass(kind, enum.Enum)


def faults(value, kind, path):
    """The places where a value is not of this type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # null is a choice for null only; what a model has read already is of that model.
        parts = [part for part in parts if (part is type(None)) == (value is None)]
        parts = [part for part in parts if isinstance(part, type) and type(value) is part] or parts
        return min((faults(value, part, path) for part in parts), key=len, default=[f"{path}: {value!r}"])
    if is_model(kind) or hasattr(value, "to_json"):
        return model_faults(value, kind, path)
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [fault for at, item in enumerate(value) for fault in faults(item, parts[0], f"{path}[{at}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no object"]
        return [fault for key, item in value.items() for fault in faults(item, parts[1], f"{path}.{key}")]
    if origin is typing.Literal:
        return [] if value in parts else [f"{path}: {value!r} is none of {parts}"]
    if kind in (object, typing.Any):
        return []
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = [member.value for member in kind]
        return [] if value in known else [f"{path}: {value!r} is none of {known}"]
    if kind is type(None):
        return [] if value is None else [f"{path}: {value!r} is not null"]
    if kind is float:
        kind = (int, float)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return [] if fits else [f"{path}: {value!r} is no {kind}"]


def model_faults(value, kind, path):
    """The same for an object, read by its model already or still as JSON."""
    found = []
    if isinstance(value, dict):
        try:
            model = kind.from_json(value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            return [f"{path}: not read as {kind.__name__}: {error!r}"]
        found = unknown(value, json.loads(json.dumps(model.to_json(), default=lambda part: part.to_json())), path)
        value = model
    elif not hasattr(value, "to_json"):
        return [f"{path}: {value!r} is no {kind.__name__}"]
    hints = typing.get_type_hints(type(value))
    for name, item in vars(value).items():
        if item is not None:
            found += faults(item, hints[name], f"{path}.{name}")
    return found


def unknown(given, kept, path):
    """Fields of the JSON that its model did not keep."""
    if isinstance(given, dict) and isinstance(kept, dict):
        lost = [f"{path}.{key}: unknown" for key in given if key not in kept and given[key] is not None]
        both = (key for key in given if key in kept)
        return lost + [fault for key in both for fault in unknown(given[key], kept[key], f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list):
        pairs = enumerate(zip(given, kept))
        return [fault for at, (one, other) in pairs for fault in unknown(one, other, f"{path}[{at}]")]
    return []


def main():
    plugins.register_default_plugins()
    count = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            found = faults(json.load(file), dashboard.Dashboard, path)
        count += len(found)
        for fault in found:
            print(fault)
    print(f"{len(sys.argv) - 1} dashboards, {count} faults")
    sys.exit(count > 0)


main()
