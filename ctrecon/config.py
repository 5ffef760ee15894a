"""Configurations of trainings and evaluations in CT, in TOML."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ctrecon.datasets import Scenarios, Source
from operators import configuration
from operators.configuration import Candidate as Candidate
from operators.configuration import Model as Model
from operators.configuration import read_config as read_config
from operators.errors import InputError
from operators.staged_training import Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(configuration.Data):
    """Images, and who of the people in them serves for what; see `operators.configuration.Data`.

    Parameters
    ----------
    kernels
        Of the images that train and validate; all by default.
    """

    sources: tuple[Source, ...]
    kernels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(configuration.Plan):
    """How it is trained: `operators.configuration.Plan`, validated by default on the mean PSNR.

    Raises
    ------
    InputError
        If the goal is not that of the metric, or a value is out of its range.
    """

    metric: Literal["psnr_db", "ssim", "rmse_hu", "loss"] = "psnr_db"
    metric_goal: Literal["min", "max"] = "max"

    def __post_init__(self) -> None:
        configuration.Plan.__post_init__(self)
        goal = "min" if self.metric in ("rmse_hu", "loss") else "max"
        if self.metric_goal != goal:
            raise InputError(f"The best {self.metric} has metric_goal = {goal!r}, not {self.metric_goal!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(configuration.TrainingConfig):
    """A training, complete but for the folder it is kept in; see also `operators.configuration.TrainingConfig`.

    Parameters
    ----------
    scenario
        The scans that are drawn from the images.
    stages
        Train stage by stage on crops; by default the whole reconstruction is trained at once on whole images.
    """

    data: Data
    scenario: Scenarios
    training: Plan
    stages: Stages | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(configuration.Condition):
    """What methods are evaluated on: people whom training has not seen, and one way to scan them.

    Parameters
    ----------
    kernels
        Which of their images; all by default.
    scenario
        How they are scanned; of several numbers of views, the slices have one after the other.
    """

    kernels: tuple[str, ...] | None = None
    scenario: Scenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(configuration.EvaluationConfig):
    """An evaluation, complete but for the folder of its results; see `operators.configuration.EvaluationConfig`.

    People of the validation, who chose the weights, may be shown too, because there are few; the summary says so.
    """

    data: Data
    conditions: tuple[Condition, ...]
    shown_splits: ClassVar[tuple[str, ...]] = ("test", "validation")
