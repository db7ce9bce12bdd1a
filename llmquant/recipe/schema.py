"""The schema of a recipe file, version 1. Pydantic stands at the border only: unknown keys and wrong types are refused.

Values are immutable and lists become tuples, so a recipe never changes after it was read.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from llmquant.formats import DEFAULT, names
from llmquant.limits import limits
from llmquant.recipe.match import Pattern
from llmquant.recipe.qat import CALIBRATION, Qat
from llmquant.recipe.strict import Strict, at_key
from llmquant.recipe.text_name import check_text
from llmquant.spec import BITS, EXAMPLES, KEEP, Scheme
from llmquant.words import did_you_mean, listed, shortened, shown

VERSION = 1


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _words_as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


Words = Annotated[tuple[str, ...], BeforeValidator(_words_as_tuple)]


class _Method(Strict):
    """A method of `llmquant.algorithms` and its options, side by side in one mapping."""

    model_config = ConfigDict(extra="allow")
    package: ClassVar[str]

    method: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that the recipe sets; the others keep the method's defaults."""
        return dict(self.model_extra or {})

    @property
    def algorithm(self) -> Any:
        """The module of the method; what it has says the `base` of its package."""
        return import_module(f"llmquant.algorithms.{self.package}").find(self.method)

    def build_options(self) -> Any:
        """An instance of the method's `Options` dataclass."""
        return self.algorithm.Options(**self.options)

    @model_validator(mode="after")
    def _check_options(self) -> _Method:
        try:
            options = self.algorithm.Options
        except ValueError as error:  # RecipeError from `find`, with the nearest name
            raise at_key("method", str(error)) from error
        hints = get_type_hints(options)
        known = [field.name for field in dataclasses.fields(options)]
        for key, value in self.options.items():
            if key not in known:
                hint = did_you_mean(key, [*known, "method"]) or f"; its options are {listed(known) or 'none'}"
                raise at_key(key, f"{self.method} has no option {key!r}{hint}")
            try:
                TypeAdapter(hints[key], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
            except ValidationError as error:
                raise at_key(key, f"{_first_message(error)}; got {shown(value)}") from error
        try:
            options(**self.options)
        except ValueError as error:
            raise at_key("method", str(error)) from error
        return self


class Rounding(_Method):
    """How codes are chosen."""

    package = "rounding"

    method: str = "rtn"


class TransformStep(_Method):
    """How a block is rewritten before it is rounded."""

    package = "transforms"


class TuningStep(_Method):
    """How a block is improved after it was rounded."""

    package = "tuning"


class Rule(Strict):
    """One rule: the modules that `match` names become `scheme`. The last rule that matches a module decides."""

    match: Words
    scheme: str
    if_indivisible: Words = ()
    rounding: Rounding | None = None

    @property
    def parsed(self) -> Scheme:
        """The scheme as an object."""
        return Scheme.parse(self.scheme)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The entries of `match`, read."""
        return tuple(Pattern.parse(text) for text in self.match)

    @property
    def fallbacks(self) -> tuple[Scheme, ...]:
        """What `if_indivisible` allows instead of the scheme, in order of preference."""
        return tuple(_fallback(self.parsed, word) for word in self.if_indivisible)

    def __str__(self) -> str:
        return f"{shortened(self.match)} -> {self.scheme}"

    @field_validator("match")
    @classmethod
    def _check_match(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words:
            raise ValueError("empty; name a set such as 'linear', or modules")
        for word in words:
            Pattern.parse(word)
        _refuse_repeats(words)
        return words

    @field_validator("scheme")
    @classmethod
    def _check_scheme(cls, name: str) -> str:
        try:
            return Scheme.parse(name).name
        except ValueError as error:
            raise ValueError(f"{error}{did_you_mean(name.lower(), _common_schemes())}") from error

    @model_validator(mode="after")
    def _check_fallbacks(self) -> Rule:
        if not self.if_indivisible:
            return self
        if self.parsed.granularity != "group":
            raise at_key("if_indivisible", f"{self.scheme} has no groups, so there is nothing to divide; remove it")
        _refuse_repeats(self.if_indivisible, key="if_indivisible")
        for word in self.if_indivisible[:-1]:
            if word in ("keep", "channel"):
                raise at_key("if_indivisible", f"what follows {word!r} is never tried, for {word!r} always fits")
        try:
            _ = self.fallbacks
        except ValueError as error:
            raise at_key("if_indivisible", str(error)) from error
        return self


class Calibration(Strict):
    """The text that calibrated methods see.

    Attributes:
        dataset: "builtin:mixed" (a shipped mixture of prose, languages, code, mathematics and tables), "builtin:python"
            (the sources of the running Python), a .txt, .jsonl, .json, .json.gz or .parquet file, or
            "hub:NAME:CONFIG:SPLIT:COLUMN".
        split: of a hub data set; None means its training split.
        column: of a hub data set or a JSON file.
        length: tokens in a window.
    """

    dataset: str = Field(default="builtin:mixed", min_length=1)
    split: str | None = None
    column: str = "text"
    samples: int = Field(default=128, ge=1, le=1_000_000)
    length: int = Field(default=512, ge=2, le=10_000_000)
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, name: str) -> str:
        return check_text(name)


class Budget(Strict):
    """What the result may cost, by the names that metrics declare (see `llmquant.limits`)."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Annotated[float, Field(gt=0)]] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def bits_per_weight(self) -> float | None:
        """Largest size of the whole checkpoint, in bits per parameter of the model; the plan checks it."""
        return (self.model_extra or {}).get("bits_per_weight")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: object) -> object:
        for key in data if isinstance(data, dict) else ():
            if key not in limits():
                hint = did_you_mean(str(key), list(limits())) or f"; the keys here are {listed(list(limits()))}"
                raise at_key(str(key), f"unknown key{hint}")
        return data


class Recipe(Strict):
    """A recipe.

    Attributes:
        rules: ordered; the last that matches a module decides.
        transforms: what rewrites each block before it is rounded, in this order.
        tuning: what improves each block after it was rounded, in this order.
        calibration: needed by methods that look at what a block is called with.
        qat: how the result is trained further; None leaves it as it is.
        format: how the result is stored, a module of `llmquant.formats`.
        portable: whether other readers must be able to load the result; False allows layers that only llmquant reads.
    """

    version: Literal[1]
    name: str = Field(default="custom", min_length=1)
    description: str = ""
    rules: Annotated[tuple[Rule, ...], BeforeValidator(_as_tuple)]
    transforms: Annotated[tuple[TransformStep, ...], BeforeValidator(_as_tuple)] = ()
    rounding: Rounding = Field(default_factory=Rounding)
    tuning: Annotated[tuple[TuningStep, ...], BeforeValidator(_as_tuple)] = ()
    calibration: Calibration | None = None
    qat: Qat | None = None
    budget: Budget | None = None
    portable: bool = True
    format: str = DEFAULT

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """Every rounding in use: of each rule that quantizes."""
        return tuple(rule.rounding or self.rounding for rule in self.rules if rule.parsed != KEEP)

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The methods that need calibration text, sorted; none for a data-free recipe."""
        looking = [rounding.method for rounding in self.roundings if rounding.algorithm.NEEDS]
        return tuple(sorted({*looking, *self.calibrated_blocks}))

    @property
    def calibrated_blocks(self) -> tuple[str, ...]:
        """Those of them that work on whole blocks: every tuning, and transforms that look at statistics."""
        looking = [step.method for step in self.transforms if step.algorithm.NEEDS]
        return (*looking, *(step.method for step in self.tuning))

    @property
    def training_text(self) -> str | None:
        """What `qat` trains on where nothing else is said; None if the recipe does not say."""
        named = self.qat.text if self.qat else None
        return self.calibration.dataset if named == CALIBRATION and self.calibration else named

    @field_validator("rules")
    @classmethod
    def _check_rules(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if not rules:
            raise ValueError("empty; a recipe has at least one rule, such as {match: linear, scheme: int8}")
        return rules

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name not in names():
            hint = did_you_mean(name, names()) or "."
            raise ValueError(f"unknown format {name!r}{hint} There are: {listed(names())}")
        return name

    @model_validator(mode="after")
    def _check_calibration(self) -> Recipe:
        if self.calibration is None and self.calibrated:
            raise at_key(
                "calibration",
                f"{listed(self.calibrated)} needs calibration text; add `calibration: {{dataset: builtin:mixed}}`",
            )
        if self.qat is not None and self.qat.text == CALIBRATION and self.calibration is None:
            raise at_key("qat", "text is that of the calibration, and there is none; add `calibration:` or name one")
        return self


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, defaults written out; `load_recipe` of it gives an equal recipe."""
    data = _without_none(recipe.model_dump(mode="json"))
    for key in ("calibration", "budget", "qat"):
        if key in data:
            data[key] = _without_none(data[key])
    if "qat" in data:
        data["qat"]["loss"] = _without_none(data["qat"]["loss"])
    for key, absent in (("format", DEFAULT), ("transforms", []), ("tuning", [])):
        if data[key] == absent:  # as before there was another
            del data[key]
    data["rules"] = [_without_none(rule) for rule in data["rules"]]
    for rule in data["rules"]:
        if len(rule["match"]) == 1:
            rule["match"] = rule["match"][0]
        if not rule["if_indivisible"]:
            del rule["if_indivisible"]
    return data


def canonical_json(recipe: Recipe) -> str:
    """One line of JSON, the same for equal recipes."""
    return json.dumps(recipe_to_dict(recipe), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _first_message(error: ValidationError) -> str:
    return error.errors()[0]["msg"].replace("Input should be", "should be")


def _refuse_repeats(words: tuple[str, ...], key: str | None = None) -> None:
    repeated = sorted(word for word, count in Counter(words).items() if count > 1)
    if repeated:
        message = f"named twice: {shortened(repeated)}"
        raise at_key(key, message) if key else ValueError(message)


def _fallback(scheme: Scheme, word: str) -> Scheme:
    if word == "keep":
        return KEEP
    if word == "channel":
        return Scheme(scheme.bits, "channel", None, scheme.symmetric)
    digits = word[1:]
    if not (word.startswith("g") and digits.isascii() and digits.isdigit() and int(digits)):
        hint = did_you_mean(word, ("keep", "channel", "g32", "g64"))
        raise ValueError(f"{word!r} is not one of keep, channel or a group size such as g32{hint}")
    if scheme.group_size is not None and int(digits) >= scheme.group_size:
        raise ValueError(f"{word!r} is not smaller than the groups of {scheme.name}")
    return Scheme(scheme.bits, "group", int(digits), scheme.symmetric)


def _common_schemes() -> list[str]:
    sizes = ("", "-tensor", "-g32", "-g64", "-g128")
    return [
        *EXAMPLES,
        "w8a8-static",
        *(f"int{bits}{size}{asym}" for bits in BITS for size in sizes for asym in ("", "-asym")),
    ]
