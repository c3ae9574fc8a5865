"""The `reward` group: which rewards score an image, how they are combined, and where each of them is computed.

    reward:
      aggregation: weighted_sum
      rewards:
        geneval:    {weight: 1.0}
        aesthetic:  {weight: 0.2, only_if: {geneval: 0.5}}
        ocr:        {only_for: [text]}
        mine:       {path: my_reward.py:brightness, target: 0.4}
        hpsv2:      {held_out: true, service: {url: "http://gpu7:18085"}}
        detector:   {service: {replicas: 2, num_gpus: 0.25, python: /envs/mmdet/bin/python}}

A key of an entry is a field of `RewardEntry`; every other key is a keyword argument of the reward itself. Without
`service` a reward is computed in the process that asks for it. `service.url` is a service started with
`blip3o-rl rewards serve`; a `service` without url is a Ray Serve deployment that starts and ends with the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from blip3o_rl.config.base import Strict, address, refuse, validate
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.io import user_path

TIMEOUT_S = 120.0
KEY = "reward.rewards"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class RemoteService(Strict):
    """How a reward in another process is asked."""

    timeout_s: float = Field(60.0, ge=1e-3, description="limit of one request, seconds")
    retries: int = Field(8, ge=0, description="requests after the first, when nobody answered or the service was busy")
    backoff_s: float = Field(0.5, ge=0, description="pause before the first retry, seconds; it doubles each time")
    max_backoff_s: float = Field(30.0, ge=0, description="longest pause, seconds")

    def pause_s(self, retry: int) -> float:
        """Seconds before retry number `retry` (the first is 0), without the random part."""
        return min(self.max_backoff_s, self.backoff_s * 2 ** min(retry, 60))


class UrlService(RemoteService):
    """A service at an address."""

    url: Annotated[str, address("http://host:port", "token_env")] = Field(
        description="of a service that was started with `blip3o-rl rewards serve`"
    )
    token_env: Annotated[
        str | None,
        refuse(
            lambda name: not (name is None or name.isidentifier()),
            "is {!r}; give the name of an environment variable, not the token",
        ),
    ] = Field(None, description="environment variable that holds the bearer token")

    @model_validator(mode="before")
    @classmethod
    def _not_deployed(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key in DeployedService.model_fields and key not in cls.model_fields:
                raise ValueError(f"{key} is a key of a deployed service, and url excludes it; remove one of them")
        return values

    def token(self, key: str = "service") -> str | None:
        """The bearer token; raises `UserError` where its variable is not set."""
        token = self.token_env and os.environ.get(self.token_env)
        if self.token_env and not token:
            raise UserError(f"{key}.token_env: the environment variable {self.token_env} is not set; export it")
        return token


class DeployedService(RemoteService):
    """A Ray Serve deployment in the run's own cluster.

    By default it reserves no CPU, like the renderer: verl reserves the cores it needs, and a small machine has no
    others.
    """

    replicas: int = Field(1, ge=1, description="of the reward, each in a process of its own")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per replica")
    num_cpus: float = Field(0.0, ge=0, description="CPUs per replica that Ray reserves")
    runtime_env: dict[str, Any] = Field({}, description="Ray's runtime_env: pip, env_vars, working_dir ...")
    python: Annotated[
        str | None,
        AfterValidator(lambda python: python and str(user_path(python))),
        refuse(
            lambda python: python is not None and not os.access(python, os.X_OK),
            "there is no interpreter {}; give the path of an environment's bin/python",
        ),
    ] = Field(None, description="interpreter of an environment that exists on every node")
    app: str | None = Field(None, description="name of the Serve application; set by the launcher")


def _kind(service: Any) -> str:
    has_url = "url" in service if isinstance(service, Mapping) else isinstance(service, UrlService)
    return "(url)" if has_url else "(deployed)"


Service = Annotated[
    Annotated[UrlService, Tag("(url)")] | Annotated[DeployedService, Tag("(deployed)")], Discriminator(_kind)
]


class RewardEntry(Strict):
    """One reward of a run. Keys that are no field are the reward's own keyword arguments (`keywords`)."""

    model_config = ConfigDict(extra="allow")

    path: str | None = Field(
        None, description="`my_reward.py:brightness`, a function or class in a file, relative to the working directory"
    )
    name: str | None = Field(
        None, description="a built-in reward, an entry point, or `package.module:thing`; null: the entry's key"
    )
    held_out: bool = Field(False, description="logged and never trained on; its failure does not fail the sample")
    weight: float = Field(1.0, description="in the sum; 0 logs the reward without training on it")
    only_if: Annotated[
        dict[str, float] | None,
        refuse(
            lambda gates: gates == {},
            "is empty; write {{other_reward: 0.5}}, the min value from which this reward counts",
        ),
    ] = Field(
        None,
        description="other reward -> min value; the reward counts, and is asked, only where all of them are reached",
    )
    otherwise: float = Field(0.0, description="the value where `only_if` is not met")
    only_for: Annotated[
        list[str] | None,
        refuse(lambda tags: tags == [], "is empty; write [tag], or null for all prompts"),
    ] = Field(
        None,
        description="tags of the prompts whose images the reward scores; to others it adds nothing; null: all prompts",
    )
    on_error: Literal["retry", "skip_sample", "stop"] = Field(
        "retry",
        description="what a failure means. retry: more calls, then as skip_sample; skip_sample: the sample leaves its "
        "group; stop: the run ends",
    )
    retries: int | None = Field(None, ge=0, description="calls after the first that failed; null: 2 with retry, else 0")
    service: Service | None = Field(None, description="where else than in this process it is computed")
    timeout_s: float | None = Field(
        default_factory=lambda data: None if data.get("service") else TIMEOUT_S,
        ge=1e-3,
        description="limit of one call, seconds; by default 120, and null with a service, which has one per request",
    )
    concurrency: int | None = Field(
        None, ge=1, description="calls at a time; null: 1 for a synchronous reward, 64 for an asynchronous one"
    )

    @field_validator("name", "weight", "otherwise")
    @classmethod
    def _fits_the_fields_above(cls, value: Any, info: Any) -> Any:
        field, given = info.field_name, info.data
        if field == "name" and value is not None and given.get("path") is not None:
            raise ValueError("path and name both say where the reward is; remove one")
        if field == "weight" and given.get("held_out"):
            raise ValueError("a held-out reward is never trained on; remove weight or held_out")
        if field == "otherwise" and not given.get("only_if"):
            raise ValueError("is the value where only_if is not met, and there is no only_if; remove it")
        return value

    @property
    def keywords(self) -> dict[str, Any]:
        """The reward's own keyword arguments."""
        return dict(self.model_extra or {})

    @property
    def gates(self) -> dict[str, float]:
        return self.only_if or {}

    @property
    def trained(self) -> bool:
        """Whether its value enters the number that is optimized."""
        return not self.held_out and self.weight != 0


CALLER_KEYS = ("weight", "on_error", "retries", "held_out", "only_if", "otherwise", "only_for", "service")
"""Keys of an entry that concern the run alone, and not the process that computes the reward."""


class RewardSettings(Strict):
    """Our keys of the `reward` group; verl has others there."""

    model_config = ConfigDict(extra="ignore")

    rewards: dict[str, RewardEntry] = Field(description="name -> entry")
    aggregation: Literal["weighted_sum", "gdpo"] = Field(
        "weighted_sum", description="gdpo: each reward is normalized within its group before the weighted sum"
    )

    @field_validator("rewards", mode="before")
    @classmethod
    def _no_nulls(cls, rewards: Any) -> Any:
        for name, entry in rewards.items() if isinstance(rewards, Mapping) else ():
            if entry is None:
                raise ValueError(
                    f"{name} is null; switch a reward off with ~{KEY}.{name}, log it without training on it with "
                    f"{KEY}.{name}.weight=0, or write {{}} for its defaults"
                )
        return rewards


def read_rewards(rewards: Any) -> dict[str, RewardEntry]:
    """The checked entries of the mapping under `reward.rewards`; there has to be one."""
    if not rewards:
        raise UserError(f"{KEY}: no reward is configured; add one, for example {KEY}.geneval.weight=1.0")
    return validate(RewardSettings, {"rewards": rewards}, "reward").rewards


def unknown_keyword(keyword: str, takes: list[str]) -> str:
    """The end of a message about a keyword argument that a reward does not take."""
    return f"{did_you_mean(keyword, [*takes, *RewardEntry.model_fields])}; it takes {', '.join(takes) or 'none'}"


def name_applications(rewards: Any, run_id: str) -> None:
    """Gives every deployed reward of a raw configuration the name of its Serve application, in place.

    It holds the run's id, since several runs may share a cluster; the run's processes find the deployment by it.
    """
    for name, entry in rewards.items():
        if is_deployed(entry):
            entry["service"]["app"] = f"blip3o-reward-{run_id}-{name}"


def deployed(rewards: Any) -> dict[str, DeployedService]:
    """Name -> service of the rewards under `reward.rewards` that are deployed in the run's cluster."""
    services = {name: entry.service for name, entry in read_rewards(rewards).items()}
    return {name: service for name, service in services.items() if isinstance(service, DeployedService)}


def is_deployed(entry: Any) -> bool:
    """Whether a raw entry, right or wrong, asks for a deployment in the run's cluster."""
    service = _service(entry)
    return service is not None and "url" not in service


def refuse_deployed(rewards: Mapping[str, Any], key: str = KEY) -> None:
    """Raises `UserError` for the first raw entry that asks for a deployment, where no run makes one."""
    for name, entry in rewards.items():
        if is_deployed(entry):
            raise UserError(f"{key}.{name}.service: is deployed by a run only; give the url of a service")


def _service(entry: Any) -> Mapping[str, Any] | None:
    service = entry.get("service") if isinstance(entry, Mapping) else None
    return service if isinstance(service, Mapping) else None


def key_variables(rewards: Any) -> list[str]:
    """The environment variables that hold services' tokens and judges' keys, of raw entries."""
    entries = [entry for entry in rewards.values() if isinstance(entry, Mapping)]
    named = [(_service(entry) or {}).get("token_env") for entry in entries]
    return [name for name in (*named, *(entry.get("api_key_env") for entry in entries)) if name]


def process_environment(rewards: Any) -> dict[str, str]:
    """What each process that scores needs of this process's environment: keys, and the proxies to the outside."""
    names = [*key_variables(rewards), "OPENAI_API_KEY", *PROXIES, *map(str.lower, PROXIES)]
    return {name: os.environ[name] for name in names if name in os.environ}
