"""What `reward.rewards.<name>.service` says: where else than in the caller's own process a reward is scored.

    service: {url: "http://gpu7:18085", token_env: REWARD_TOKEN, timeout_s: 60, retries: 8, encoding: raw}
        a service that somebody started with `blip3o-rl rewards serve`;
    service: {replicas: 2, num_gpus: 0.25, num_cpus: 1, runtime_env: {pip: [...]}, python: /envs/mmdet/bin/python}
        a Ray Serve deployment in the run's own cluster, started and ended with the run.
`timeout_s` limits one request; a request that found nobody is sent again up to `retries` times with growing pauses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.adapters import suggestion

ENCODINGS = ("raw", "png")


@dataclass(frozen=True)
class Patience:
    """How long a client waits for a service, and how often it asks again."""

    timeout_s: float = 60.0
    retries: int = 8
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0

    def pause_s(self, attempt: int) -> float:
        """Seconds before try number `attempt` + 2 (the first pause is number 0), without the random part."""
        return min(self.longest_pause_s, self.first_pause_s * 2**attempt)

    @property
    def budget_s(self) -> float:
        """Seconds after which the last try has ended, whatever happens."""
        pauses = sum(self.pause_s(attempt) for attempt in range(self.retries))
        return (self.retries + 1) * self.timeout_s + pauses


@dataclass(frozen=True)
class UrlService:
    """A service at an address."""

    url: str
    token_env: str | None = None
    patience: Patience = Patience()
    encoding: str = "raw"

    def token(self, key: str = "service") -> str | None:
        """The bearer token.

        Raises:
            UserError: the variable is not set.
        """
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env)
        if not token:
            raise UserError(f"{key}.token_env: the environment variable {self.token_env} is not set; export it")
        return token


@dataclass(frozen=True)
class DeployedService:
    """A Ray Serve deployment; `app` is its application's name, which the launcher fills in.

    By default it reserves no CPU, as the renderer does not either: verl reserves the cores it needs, and on a small
    machine there would be none left.
    """

    replicas: int = 1
    num_gpus: float = 0.0
    num_cpus: float = 0.0
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    app: str | None = None
    patience: Patience = Patience()
    encoding: str = "raw"


Service = UrlService | DeployedService
COMMON = ("timeout_s", "retries", "encoding")
URL_KEYS = ("url", "token_env", *COMMON)
DEPLOYED_KEYS = ("replicas", "num_gpus", "num_cpus", "runtime_env", "python", "app", *COMMON)
CALLER_KEYS = ("weight", "on_error", "retries", "held_out", "only_if", "otherwise", "service")
"""Keys of an entry of `reward.rewards` that concern the run alone, and not the process that scores."""


def read_service(value: Any, key: str) -> Service:
    """Reads the mapping under `service`.

    Args:
        value: the mapping.
        key: its config key for messages.

    Raises:
        UserError: naming the key that is wrong.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: is {value!r}, not a mapping; write {{url: http://host:18085}} or {{replicas: 1}}")
    options = {str(word): entry for word, entry in value.items()}
    known = URL_KEYS if "url" in options else DEPLOYED_KEYS
    for word in options:
        if word not in known:
            kind = "a service with a url" if "url" in options else "a deployment"
            other = DEPLOYED_KEYS if "url" in options else URL_KEYS
            hint = "; url excludes it" if word in other and "url" in options else suggestion(word, list(known))
            raise UserError(f"{key}.{word}: {kind} has no such key{hint}; it takes {', '.join(known)}")
    patience = Patience(
        _at_least(options.get("timeout_s", Patience.timeout_s), f"{key}.timeout_s", 1e-3),
        int(_at_least(options.get("retries", Patience.retries), f"{key}.retries", 0, whole=True)),
    )
    encoding = options.get("encoding", "raw")
    if encoding not in ENCODINGS:
        raise UserError(f"{key}.encoding: is {encoding!r}; use one of {', '.join(ENCODINGS)}")
    if "url" in options:
        return UrlService(_url(options["url"], f"{key}.url"), _variable(options, key), patience, encoding)
    runtime_env = options.get("runtime_env") or {}
    if not isinstance(runtime_env, Mapping):
        raise UserError(f"{key}.runtime_env: is {runtime_env!r}, not a mapping; write {{pip: [package, ...]}}")
    python = options.get("python")
    if python is not None and not os.access(os.path.expanduser(str(python)), os.X_OK):
        raise UserError(f"{key}.python: there is no interpreter {python}; give the path of an environment's bin/python")
    return DeployedService(
        int(_at_least(options.get("replicas", 1), f"{key}.replicas", 1, whole=True)),
        _at_least(options.get("num_gpus", 0.0), f"{key}.num_gpus", 0),
        _at_least(options.get("num_cpus", 0.0), f"{key}.num_cpus", 0),
        dict(runtime_env),
        None if python is None else os.path.expanduser(str(python)),
        options.get("app"),
        patience,
        encoding,
    )


def name_applications(rewards: Any, run_folder: str) -> None:
    """Gives every deployed reward of a configuration its application's name, in place: the run's, so that several
    runs may share a cluster. Every process of the run finds the deployment by it."""
    for name, entry in rewards.items():
        if is_deployed(entry):
            entry["service"]["app"] = f"blip3o-reward-{Path(run_folder).name}-{name}"


def is_deployed(entry: Any) -> bool:
    """Whether an entry of `reward.rewards` asks for a deployment in the run's cluster."""
    service = (entry or {}).get("service")
    return service is not None and "url" not in service


def token_variables(rewards: Any) -> list[str]:
    """The environment variables that hold services' tokens: each process of a run needs them."""
    services = [(entry or {}).get("service") or {} for entry in rewards.values()]
    return [service["token_env"] for service in services if service.get("token_env") is not None]


def _url(value: Any, key: str) -> str:
    try:
        parts = urlsplit(str(value))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{key}: is {value!r}; write http://host:port")
    if parts.username or parts.password:
        raise UserError(f"{key}: carries a name or password; put the service's token into token_env")
    return str(value).rstrip("/")


def _variable(options: Mapping[str, Any], key: str) -> str | None:
    name = options.get("token_env")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise UserError(f"{key}.token_env: is {name!r}; give the name of an environment variable, not the token")
    return name


def _at_least(value: Any, key: str, least: float, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or value < least:
        raise UserError(f"{key}: is {value!r}; set a {'whole ' if whole else ''}number of at least {least:g}")
    return value
