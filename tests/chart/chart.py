"""The Helm chart as Helm renders it. No cluster is asked, and nothing leaves this machine."""

import pathlib

import helm_python
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts/model-serving"
# The values that every check goes over: one file each.
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE = {"name": "model-serving", "namespace": "model-serving"}


def values(name: str) -> dict:
    """The values of one set."""
    return yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())


def render(given: dict, release: dict = RELEASE) -> dict[str, str]:
    """What each template becomes; empty ones are left out. Values that the schema refuses raise an error."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(given)
        rendered = chart.render(given, **release)
    prefix = "model-serving/templates/"
    return {name.removeprefix(prefix): text for name, text in rendered.items() if text.strip()}


def objects(given: dict, release: dict = RELEASE) -> list[dict]:
    """The objects that an installation makes, those of 'helm test' among them."""
    texts = [text for name, text in render(given, release).items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def find(found: list[dict], kind: str, name: str = "") -> dict | None:
    """The object of that kind, and of that name where several are; None where there is none."""
    matching = [each for each in found if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    if len(matching) > 1:
        raise LookupError(f"several objects are a {kind}")
    return matching[0] if matching else None
