"""The table of values in the chart's README, made of the comments in values.yaml."""

import json
import re

import chart
import yaml

README = chart.CHART / "README.md"
START, END = "<!-- values:start -->\n", "<!-- values:end -->\n"


def leaves(schema: dict, defaults: dict, place: str = "") -> list[str]:
    """The places of all values that users set as a whole, in the order of values.yaml."""
    found = []
    for key in [*defaults, *(key for key in schema["properties"] if key not in defaults)]:
        inner = schema["properties"].get(key)
        # Helm gives every chart this one.
        if inner is None or (place, key) == ("", "global"):
            continue
        here = f"{place}.{key}".lstrip(".")
        found += leaves(inner, defaults.get(key, {}), here) if is_section(inner) else [here]
    return found


def is_section(schema: dict) -> bool:
    """Whether its values are documented one by one: resources are not."""
    return "properties" in schema and "limits" not in schema["properties"]


def is_set(defaults: dict, place: str) -> bool:
    """Whether values.yaml has a value at `place`."""
    for key in place.split("."):
        if not isinstance(defaults, dict) or key not in defaults:
            return False
        defaults = defaults[key]
    return True


def unknown(schema: dict, defaults: dict, place: str = "") -> list[tuple[str, set[str]]]:
    """Keys of values.yaml that the schema does not have, by section."""
    extra = set(defaults) - set(schema["properties"])
    found = [(place or "values", extra)] if extra else []
    for key, inner in schema["properties"].items():
        if is_section(inner):
            found += unknown(inner, defaults.get(key, {}), f"{place}.{key}".lstrip("."))
    return found


def comments() -> dict[str, str]:
    """The comment above each key of values.yaml, by place."""
    found, path, said = {}, [], []
    for line in (chart.CHART / "values.yaml").read_text().splitlines():
        comment = re.fullmatch(r" *# (.*)", line)
        key = re.match(r"( *)([\w.]+):", line)
        if comment:
            said.append(comment.group(1))
            continue
        if key and not line.lstrip().startswith("-"):
            path = [*path[: len(key.group(1)) // 2], key.group(2)]
            if said:
                found[".".join(path)] = " ".join(said)
        said = []
    return found


def shown(value: object) -> str:
    """A default, short."""
    # JSON writes booleans as YAML does; a text stands by itself.
    text = value if isinstance(value, str) else json.dumps(value)
    return "see values.yaml" if len(text) > 60 else f"`{text}`" if text else ""


def table() -> str:
    """The table as it should stand in the README."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    said = comments()
    rows = ["| value | default | meaning |", "|---|---|---|"]
    places = leaves(schema, defaults)
    settings = [f"settings.{name}" for name in defaults["settings"]]
    position = places.index("settings")
    places[position + 1 : position + 1] = settings
    for place in places:
        value = defaults
        for key in place.split("."):
            value = value[key]
        default = "see below" if place == "settings" else shown(value)
        rows.append(f"| `{place}` | {default} | {said[place]} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n"


def documented() -> str:
    """The table as it stands in the README."""
    _, _, after = README.read_text().partition(START)
    return after.partition(END)[0]


def write() -> None:
    """Puts the table into the README."""
    before, _, after = README.read_text().partition(START)
    README.write_text(before + START + table() + END + after.partition(END)[2])
