"""Which plan for which tensor: rules by name and dtype, first match wins, the planner for the rest. TOML in and out."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from modelcodec import planner
from modelcodec.errors import BadRecipe
from modelcodec.kernels.frame_encoder import Choices
from modelcodec.limits import LIMITS
from modelcodec.planner import DEFAULT_LEVEL, LEVELS
from modelcodec.stage import Plan, Stage
from modelcodec.stages import STAGES, stage_of
from modelcodec.types import DTYPE_BY_NAME, Array, TensorSpec

__all__ = ["DEFAULT_LEVEL", "LEVELS", "Recipe", "Rule", "parse_plan"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose name matches the glob `tensors`, and whose dtype is in `dtypes` (all when empty), take `plan`, or the planner's choice at `level`.

    `fit`, as text (`modelcodec.fit.text`), makes them lossy; without one they stay exact where the rest is fitted.
    """

    tensors: str = "*"
    dtypes: tuple[str, ...] = ()
    plan: Plan | None = None
    level: int | None = None
    fit: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.dtypes if name not in DTYPE_BY_NAME]
        if unknown:
            raise BadRecipe(f"rule {self.tensors!r}: there is no dtype {unknown[0]!r}")
        if self.level is not None and self.level not in LEVELS:
            raise BadRecipe(f"rule {self.tensors!r}: level {self.level} does not exist; the levels are {', '.join(map(str, LEVELS))}")

    def matches(self, spec: TensorSpec) -> bool:
        return fnmatchcase(spec.name, self.tensors) and (not self.dtypes or spec.dtype.name in self.dtypes)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rules in order. Pure: the plan depends on the tensor, its words and the level alone."""

    rules: tuple[Rule, ...] = ()

    def _ruled(self, spec: TensorSpec, level: int) -> tuple[Plan | None, int]:
        """The plan that the first rule for a tensor gives it, and the level that holds without one."""
        rule = next((rule for rule in self.rules if rule.matches(spec)), None) if self.rules else None
        return (None, level) if rule is None else (rule.plan, rule.level or level)

    def plan(self, spec: TensorSpec, x: Array, level: int) -> Plan:
        """The plan for the words x of one frame of a tensor."""
        plan, level = self._ruled(spec, level)
        return planner.plan(spec, x, level) if plan is None else plan

    def choices(self, spec: TensorSpec, n: int, level: int) -> Choices | None:
        """What the planner knows of frames of n words before it looks at them, where these may be of the usual kind."""
        plan, level = self._ruled(spec, level)
        return planner.choices(spec, n, level) if plan is None else None

    def leaves(self, spec: TensorSpec, n_bytes: int, level: int) -> bool:
        """Whether a tensor is so short that nothing is tried on it: what could be saved is less than what reading it costs."""
        plan, level = self._ruled(spec, level)
        return plan is None and n_bytes < planner.LEAST_BYTES[level]

    def plan_group(self, spec: TensorSpec, x: Array, frame_words: int, level: int, at: int) -> planner.PlannedGroup:
        """The plans for the words x of a group of frames, which starts at word `at` of its tensor, and what the frames share."""
        plan, level = self._ruled(spec, level)
        plans = tuple(self.plan(spec, x[first : first + frame_words], level) for first in range(0, x.size, frame_words))
        if plan is not None:
            return planner.PlannedGroup(plans, plan.stage.prepare(spec, x, at))
        return planner.share(spec, x, frame_words, plans, level)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Parse `[[rule]]` tables with the keys tensors, dtypes, plan, level, fit. Raises BadRecipe with the place."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadRecipe(f"recipe: {error}") from None
        rules = table.pop("rule", [])
        if table or not isinstance(rules, list):
            raise BadRecipe(f"recipe: only [[rule]] tables are known, not {', '.join(table) or 'rule'}")
        return cls(tuple(_rule(row, number) for number, row in enumerate(rules, 1)))

    def to_toml(self) -> str:
        return "\n".join(_toml(rule) for rule in self.rules)


def _rule(row: Any, number: int) -> Rule:
    expected = {"tensors": str, "dtypes": list, "plan": str, "level": int, "fit": str}
    if not isinstance(row, dict):
        raise BadRecipe(f"recipe, rule {number}: {row!r} is no table")
    for key, value in row.items():
        if key not in expected or type(value) is not expected[key]:
            raise BadRecipe(f"recipe, rule {number}: {key} = {value!r} is not known; the keys are {', '.join(expected)}")
    if not all(isinstance(name, str) for name in row.get("dtypes", ())):
        raise BadRecipe(f"recipe, rule {number}: dtypes = {row['dtypes']!r} are no names")
    plan = parse_plan(row["plan"]) if "plan" in row else None
    return Rule(row.get("tensors", "*"), tuple(row.get("dtypes", ())), plan, row.get("level"), row.get("fit"))


def _toml(rule: Rule) -> str:
    lines = ["[[rule]]", f"tensors = {_quoted(rule.tensors)}"]
    if rule.dtypes:
        lines.append(f"dtypes = [{', '.join(map(_quoted, rule.dtypes))}]")
    if rule.plan is not None:
        lines.append(f"plan = {_quoted(str(rule.plan))}")
    if rule.level is not None:
        lines.append(f"level = {rule.level}")
    if rule.fit is not None:
        lines.append(f"fit = {_quoted(rule.fit)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


# ---- plans as text: stage{option=value, ...}(part:plan, part:plan) -----------------------------------------------------------------


def parse_plan(text: str) -> Plan:
    """Read a plan as `str(plan)` writes it, e.g. `split_float{low_bits=5}(symbols:rans, rest:raw)`. Raises BadRecipe with the place."""
    parser = _PlanParser(text)
    plan = parser.plan()
    parser.end()
    return plan


class _PlanParser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def wrong(self, fact: str) -> BadRecipe:
        return BadRecipe(f"plan {self.text[:200]!r}, character {self.at + 1}: {fact}")

    def skip(self, token: str) -> bool:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def until(self, stops: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in stops:
            self.at += 1
        word = self.text[start : self.at].strip()
        if not word:
            raise self.wrong("a name or a value is missing")
        return word

    def plan(self, depth: int = 1) -> Plan:
        if depth > LIMITS.depth:
            raise self.wrong(f"stages stand more than {LIMITS.depth} deep")
        self.skip("")
        kind = self.stage(self.until("{(,) "))
        options = self.options(kind) if self.skip("{") else {}
        then: dict[str, Plan] = {}
        if self.skip("("):
            while not self.skip(")"):
                part = self.until(":(){},")
                if part not in kind.parts or part in then:
                    raise self.wrong(f"{kind.name} has no part {part!r} left; its parts are {', '.join(kind.parts) or 'none'}")
                if not self.skip(":"):
                    raise self.wrong("':' is missing")
                then[part] = self.plan(depth + 1)
                self.skip(",")
        return Plan(kind(**options), then)

    def stage(self, name: str) -> type[Stage]:
        by_name = {kind.name: kind for kind in map(stage_of, STAGES) if not kind.fitted}
        if name not in by_name:
            raise self.wrong(f"there is no stage {name!r}; the stages are {', '.join(by_name)}")
        return by_name[name]

    def options(self, kind: type[Stage]) -> dict[str, Any]:
        known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        options: dict[str, Any] = {}
        while not self.skip("}"):
            name = self.until("=},")
            if name not in known or name in options:
                raise self.wrong(f"{kind.name} has no option {name!r} left; its options are {', '.join(sorted(known)) or 'none'}")
            if not self.skip("="):
                raise self.wrong("'=' is missing")
            value = self.until(",}")
            options[name] = kind.option(name, value)
            self.skip(",")
        return options

    def end(self) -> None:
        if self.text[self.at :].strip():
            raise self.wrong("something follows the plan")
