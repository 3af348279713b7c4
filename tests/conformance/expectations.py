"""The committed table of what is expected of each case: `same` in every form, except where it says otherwise.

Invariant: whatever differs from the table is a fault, in either direction; a line that nothing needs is one too.
"""

import dataclasses
import tomllib

# What can come of a form of a case. The first ones are right where the table names them; the last ones never are.
EXPECTABLE = ["same", "random", "not-finite", "no-json", "refused-start", "refused-request", "not-runnable"]
KINDS = [*EXPECTABLE, "wrong", "crash", "error"]
FORMS = ["start", "json", "json-raw", "raw", "raw-raw"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one form, and what was said or seen."""

    kind: str
    detail: str = ""

    @property
    def is_right(self):
        return self.kind in EXPECTABLE


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The classes of which one is expected, and a text that a refusal has to hold."""

    kinds: tuple
    says: str = ""

    def admits(self, outcome):
        return outcome.kind in self.kinds and (outcome.kind == "same" or self.says in outcome.detail)

    def __str__(self):
        return " or ".join(self.kinds) + (f" saying '{self.says}'" if self.says else "")


class Table:
    """The exceptions, by case and form."""

    def __init__(self, exceptions):
        self._exceptions = exceptions

    def unknown_names(self, known):
        """A fault for each case that the suite does not have."""
        names = sorted({name for name, _ in self._exceptions} - known)
        return [f"{name}: in expected.toml, but not in the suite" for name in names]

    def deviations(self, name, outcomes):
        """A fault for each form of the case that is not as expected."""
        faults = []
        for form in FORMS:
            expected = self._exceptions.get((name, form))
            got = outcomes.get(form)
            if got is None and expected is not None:
                faults.append(f"{name}, {form}: expected {expected}, got no outcome; see 'start'")
            elif got is not None and not (expected or _SAME).admits(got):
                faults.append(f"{name}, {form}: expected {expected or _SAME}, got {got.kind}: {got.detail}")
        return faults


_SAME = Expectation(("same",))


def read(path, variant=None):
    """The table in the file at `path`; groups for the variant come before those for all."""
    exceptions, on_top = {}, {}
    for group in tomllib.loads(path.read_text())["expected"]:
        kinds = tuple(group["class"].split(" or "))
        if not set(kinds) <= set(EXPECTABLE) or not group["reason"]:
            raise SystemExit(f"{path.name}: no class and reason that can be expected: {group}")
        if group.get("variant", variant) != variant:
            continue
        table = on_top if "variant" in group else exceptions
        for name in group["cases"]:
            for form in group["forms"]:
                if form not in FORMS or (name, form) in table:
                    raise SystemExit(f"{path.name}: {name}, {form}: unknown form, or listed twice")
                table[name, form] = Expectation(kinds, group.get("says", ""))
    return Table(exceptions | on_top)
