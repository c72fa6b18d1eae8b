"""The config of a study, as dataclasses that check themselves (docs/studies.md)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from ml_collections import ConfigDict

from actfer_jax.config import ConfigError, Domain, FieldError, Seed, check_fields, nearest, read_config

Name = Annotated[str, Domain("letters, digits and _", lambda value: re.fullmatch(r"\w+", value) is not None)]
"""Names of methods and evaluations, which are names of directories too."""


@dataclass(frozen=True)
class SearchConfig:
    """A key whose value is chosen for a method on validation samples, before its own runs.

    Attributes:
      key: of the training config, such as "optimizer.learning_rate"; "" for no search.
      values: what is tried.
    """

    key: str = ""
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.key) != bool(self.values):
            raise FieldError("values", f"is {self.values}; a search has a key and at least one value")


@dataclass(frozen=True)
class MethodConfig:
    """One row of the study.

    Attributes:
      name: of its directory.
      title: what tables call it; "" for the name.
      train: the config of its training, as `actfer_jax.train --config` takes it; "" for a policy that is not trained.
      settings: overrides of that config, as KEY=VALUE.
      start: the method whose policy of the same seed this one begins with; "" for what `train` says.
      policy: without `train`, the checkpoint that is evaluated.
      endpoint: without `train`, the server whose model `policy` is evaluated.
      evaluate: overrides of each evaluation's config, as KEY=VALUE.
      seeds: None for those of the study. One that is not trained and decodes greedily needs a single one.
      search: a key to choose first.
    """

    name: Name
    title: str = ""
    train: str = ""
    settings: tuple[str, ...] = ()
    start: str = ""
    policy: str = ""
    endpoint: str = ""
    evaluate: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] | None = None
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_settings("settings", self.settings)
        _check_settings("evaluate", self.evaluate)
        if bool(self.train) == bool(self.policy):
            raise FieldError("policy", f"is {self.policy!r}; a method has either train, or the policy that it is")
        if self.policy and (self.settings or self.start or self.search.key):
            raise FieldError("policy", f"is {self.policy!r}; one that is not trained has no settings, start or search")
        if self.train and self.endpoint:
            raise FieldError("endpoint", f"is {self.endpoint!r}; a method that is trained here is evaluated here")

    @property
    def shown(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class StudyEvaluation:
    """An evaluation that every policy of the study gets.

    Attributes:
      name: of its directory, and in paths of figures.
      config: as `actfer_jax.evaluate --config` takes it.
      settings: overrides of that config, as KEY=VALUE.
    """

    name: Name
    config: str
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        _check_settings("settings", self.settings)


@dataclass(frozen=True)
class Selection:
    """How searched values are chosen: by the primary figure, on seeds and samples that nothing else uses.

    Attributes:
      seeds: of the training runs of a search.
      settings: what these runs' evaluation, the one of the primary figure, has other than the study's: its split.
    """

    seeds: tuple[Seed, ...] = (100,)
    settings: tuple[str, ...] = ("data.split=validation",)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_settings("settings", self.settings)


@dataclass(frozen=True)
class StudyConfig:
    """A study: methods x seeds.

    Attributes:
      question: what it asks, in a sentence or two.
      seeds: of the trainings, at least one.
      methods: the rows, in their order.
      evaluations: what every policy is measured by; the first has the plots of zooms.
      figures: (title, path) of each column; a path is EVALUATION/CONTROL and keys of `results.json`, such as
        "greedy/normal/strata/subtle/accuracy".
      primary: the title of the figure by which methods are compared and values chosen.
      contrasts: pairs of methods, (first, second), named before the study runs: first minus second is tested.
      curves: metrics of training that are drawn over steps.
      utility: "EVALUATION/CONTROL" with a control that takes away what a look shows: how much worse it makes the faces
        that were looked at is what a look brings, against which estimates are drawn. "" for no such plot.
      settings: overrides of every training config, as KEY=VALUE.
      selection: how searched values are chosen.
    """

    question: str
    seeds: tuple[Seed, ...]
    methods: tuple[MethodConfig, ...]
    evaluations: tuple[StudyEvaluation, ...]
    figures: tuple[tuple[str, str], ...]
    primary: str
    contrasts: tuple[tuple[str, str], ...] = ()
    curves: tuple[str, ...] = ()
    utility: str = ""
    settings: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_settings("settings", self.settings)
        for key in ("seeds", "methods", "evaluations"):
            if not getattr(self, key):
                raise FieldError(key, "is empty; it must have at least one entry")
        _check_unique("seeds", self.seeds)
        methods = _check_unique("methods", [one.name for one in self.methods])
        evaluations = _check_unique("evaluations", [one.name for one in self.evaluations])
        titles = _check_unique("figures", [title for title, _ in self.figures])
        _check_known("primary", self.primary, titles)
        for index, (title, path) in enumerate(self.figures):
            if path.count("/") < 2:
                raise FieldError(f"figures[{index}]", f"{title!r} is {path!r}; it must be EVALUATION/CONTROL/KEY...")
            _check_known(f"figures[{index}]", path.partition("/")[0], evaluations)
        for index, pair in enumerate(self.contrasts):
            for name in pair:
                _check_known(f"contrasts[{index}]", name, methods)
        if self.utility:
            _check_known("utility", self.utility.partition("/")[0], evaluations)
        for index, method in enumerate(self.methods):
            if method.start:
                _check_known(f"methods[{index}].start", method.start, methods[:index])
        if shared := set(self.selection.seeds) & {seed for one in self.methods for seed in self.seeds_of(one)}:
            raise FieldError("selection.seeds", f"has {min(shared)}, which is a seed of the study: give others")

    def seeds_of(self, method: MethodConfig) -> tuple[int, ...]:
        return self.seeds if method.seeds is None else method.seeds

    def method(self, name: str) -> MethodConfig:
        return next(one for one in self.methods if one.name == name)

    @property
    def primary_path(self) -> str:
        return dict(self.figures)[self.primary]

    @property
    def primary_evaluation(self) -> StudyEvaluation:
        return next(one for one in self.evaluations if one.name == self.primary_path.partition("/")[0])


def read_study_config(raw: ConfigDict) -> StudyConfig:
    """
    Raises:
      ConfigError: something in it is wrong, or it is one of another command.
    """
    if "methods" not in raw:
        raise ConfigError("this is no config of a study, which has methods; one is configs/studies/ablation.py")
    return read_config(raw, StudyConfig, "config")


def _check_settings(key: str, settings: Iterable[str]) -> None:
    for index, setting in enumerate(settings):
        if not re.match(r"[\w.\[\]]+=", setting):
            raise FieldError(f"{key}[{index}]", f"is {setting!r}; it must be KEY=VALUE, such as optimizer.b1=0.9")


def _check_unique(key: str, values: Iterable[str | int]) -> list[str]:
    names = [str(value) for value in values]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FieldError(key, f"has {twice[0]} twice")
    return names


def _check_known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
        raise FieldError(key, f"names {name!r}; {hint}")
