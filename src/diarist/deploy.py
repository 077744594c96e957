"""Inference Endpoints: created, watched, changed and removed through the platform's API.

`huggingface_hub` speaks the API. What is added here: options that are checked before anything is sent, secrets that are
never shown and never plain variables, a rehearsal that gives the very request instead of sending it, and errors of one
line each.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from diarist.errors import DeployError, OptionError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, InferenceEndpoint

EndpointType = Literal["authenticated", "public", "private"]
PORT = 7860
HEALTH_ROUTE = "/health"
"""Where the image of this project listens, and where it says whether it is ready."""
MASK = "***"
ANSWER_S = 60.0
"""Longest that the API may take to answer, in seconds."""
PATIENCE = 3
"""Failed questions in a row after which waiting ends: among the hundreds of a long start, one may go astray."""
_TOKEN_NAMES = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HF_HUB_TOKEN", "HF_API_TOKEN"})
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADVICE = {
    400: "the API refuses the request",
    401: "the token is missing or not valid: log in with `hf auth login`, or set HF_TOKEN",
    402: "the account has no means of payment",
    403: "the token may not do this: it needs write access to the endpoints of the account",
    409: "the name is taken, or the endpoint is being changed: choose another name, or try again later",
    422: "the API refuses the request",
    429: "too many requests: try again later",
}
_QUOTA = "the quota of the account is used up: pause or delete another endpoint, or choose smaller hardware"


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint is to be. None: the default when one is created, as it is when one is changed."""

    repository: str | None = None
    """Model repository that the platform mounts at `/repository`: `account/name`."""
    revision: str | None = None
    """Commit, branch or tag of the repository; the platform takes the newest commit."""
    image: str | None = None
    """Container image that serves, such as `registry/diarist:0.1.0-cuda`; by default the platform's own container runs
    the repository's `handler.py`."""
    vendor: str | None = None
    region: str | None = None
    accelerator: str | None = None
    instance_type: str | None = None
    instance_size: str | None = None
    min_replica: int | None = None
    max_replica: int | None = None
    scale_to_zero_minutes: int | None = None
    """Minutes without a request after which the last replica is stopped; needs `min_replica` 0."""
    type: EndpointType | None = None
    """Who may call: holders of a token of the platform, anyone, or a private network."""
    env: Mapping[str, str] | None = None
    """Plain variables, which anyone who may see the endpoint can read. As a whole: a change replaces all of them."""
    secrets: Mapping[str, str] | None = None
    """Variables that nobody can read back. As a whole, as well."""

    def __post_init__(self) -> None:
        for name, least in (("min_replica", 0), ("max_replica", 1), ("scale_to_zero_minutes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(name, f"{value} is less than {least}")
        if self.min_replica is not None and self.max_replica is not None and self.min_replica > self.max_replica:
            raise OptionError("min_replica", f"{self.min_replica} is more than max_replica, {self.max_replica}")
        if self.min_replica and self.scale_to_zero_minutes is not None:
            raise OptionError("scale_to_zero_minutes", f"needs min_replica 0, not {self.min_replica}")
        for name in (*(self.env or ()), *(self.secrets or ())):
            if not _NAME.fullmatch(name):
                raise OptionError("env", f"{name!r} is not the name of a variable")
        for name, value in (self.env or {}).items():
            if name.upper() in _TOKEN_NAMES or _TOKEN.search(value):
                raise OptionError("env", f"{name} holds a token, and plain variables can be read: make it a secret")
            if name in (self.secrets or ()):
                raise OptionError("env", f"{name} is both a plain variable and a secret")


DEFAULTS = EndpointOptions(
    vendor="aws",
    region="us-east-1",
    accelerator="gpu",
    instance_type="nvidia-t4",
    instance_size="x1",
    min_replica=0,
    max_replica=1,
    scale_to_zero_minutes=60,
    type="authenticated",
)
"""Of a new endpoint: the smallest GPU, and none at all once nobody has called for an hour."""
_FRAMEWORK, _TASK = "pytorch", "custom"  # what the original's endpoints had; the handler and the image need no other


@dataclass(frozen=True, slots=True)
class Request:
    """What would have been sent."""

    method: str
    url: str
    body: Any
    """Decoded JSON; secrets are masked."""

    def __str__(self) -> str:
        return json.dumps(self.body, indent=2, ensure_ascii=False)


def variables(assignments: Iterable[str]) -> dict[str, str]:
    """Variables from `NAME=VALUE` texts.

    Raises:
        OptionError: There is no `=`.

    >>> variables(["ASR_MODEL=base", "X=a=b"])
    {'ASR_MODEL': 'base', 'X': 'a=b'}
    """
    found: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise OptionError("--env", f"{name!r} has no value: write NAME=VALUE")
        found[name] = value
    return found


def secrets(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Secrets by name, with their values from the environment: a command line can be read by others.

    Raises:
        OptionError: A variable is not set, or a value was written out.
    """
    found: dict[str, str] = {}
    for name in names:
        if "=" in name:
            shown = name.partition("=")[0]
            raise OptionError("--secret", f"give the name only; the value of {shown} is taken from this environment")
        if not environment.get(name):
            raise OptionError("--secret", f"{name} is not set in this environment")
        found[name] = environment[name]
    return found


def connect(token: str | None = None) -> "HfApi":
    """The platform's API.

    Args:
        token: Of the account that owns the endpoints; None takes the stored login.
    """
    from huggingface_hub import HfApi, constants, get_session  # noqa: PLC0415 (slow to import)

    constants.HF_HUB_DISABLE_TELEMETRY = True
    get_session().timeout = ANSWER_S  # by default it waits for ever
    return HfApi(token=token, library_name="diarist")


def create(api: "HfApi", name: str, namespace: str | None, options: EndpointOptions) -> "InferenceEndpoint":
    """Create an endpoint.

    Args:
        api: From `connect`.
        name: Of the endpoint, unique within its account.
        namespace: The account; None takes that of the token.
        options: `DEFAULTS` stand in for what is None.

    Raises:
        OptionError: There is no repository, or the options contradict each other.
        DeployError: The API refused.
    """
    filled = _filled(options)
    if filled.repository is None:
        raise OptionError("repository", "is missing: the model repository that the endpoint serves")
    arguments = {
        **_arguments(filled),
        "framework": _FRAMEWORK,
        "task": _TASK,
        "type": filled.type,
        "vendor": filled.vendor,
        "region": filled.region,
    }
    with _explained("create", name, namespace):
        return api.create_inference_endpoint(name, namespace=namespace, **arguments)


def _filled(options: EndpointOptions) -> EndpointOptions:
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    defaults = replace(DEFAULTS, scale_to_zero_minutes=None) if options.min_replica else DEFAULTS
    return replace(defaults, **{option: value for option, value in given.items() if value is not None})


def update(api: "HfApi", name: str, namespace: str | None, options: EndpointOptions) -> "InferenceEndpoint":
    """Change what is not None of an endpoint. Vendor, region and type cannot be changed.

    Raises:
        OptionError: Nothing is to be changed, or something that cannot be.
        DeployError: The API refused.
    """
    fixed = [option for option in ("vendor", "region", "type") if getattr(options, option) is not None]
    if fixed:
        raise OptionError(fixed[0], "cannot be changed: create another endpoint")
    arguments = {option: value for option, value in _arguments(options).items() if value is not None}
    if not arguments:
        raise OptionError("update", "nothing to change was given")
    with _explained("update", name, namespace):
        return api.update_inference_endpoint(name, namespace=namespace, **arguments)


def status(api: "HfApi", name: str, namespace: str | None) -> "InferenceEndpoint":
    """What the platform says of an endpoint."""
    with _explained("status", name, namespace):
        return api.get_inference_endpoint(name, namespace=namespace)


def pause(api: "HfApi", name: str, namespace: str | None) -> "InferenceEndpoint":
    """Stop an endpoint until it is resumed: it costs nothing and answers nothing."""
    with _explained("pause", name, namespace):
        return api.pause_inference_endpoint(name, namespace=namespace)


def resume(api: "HfApi", name: str, namespace: str | None) -> "InferenceEndpoint":
    """Start a paused endpoint; one that runs stays as it is."""
    with _explained("resume", name, namespace):
        return api.resume_inference_endpoint(name, namespace=namespace)


def delete(api: "HfApi", name: str, namespace: str | None) -> None:
    """Remove an endpoint, for good."""
    with _explained("delete", name, namespace):
        api.delete_inference_endpoint(name, namespace=namespace)


def wait(
    endpoint: "InferenceEndpoint",
    report: Callable[[str, float], None],
    *,
    timeout_s: float = 1800.0,
    every_s: float = 5.0,
) -> "InferenceEndpoint":
    """Wait until an endpoint runs and answers that it is healthy, or is scaled to zero, which starts when called.

    Args:
        endpoint: As it was created or resumed; brought up to date in place.
        report: Told the status and the seconds since the beginning, each time that it was asked for.
        timeout_s: When to give up.
        every_s: Time between two questions.

    Raises:
        DeployError: It failed to start, or not in time.
    """
    begun = time.monotonic()
    failures = 0
    while True:
        waited_s = time.monotonic() - begun
        report(_state(endpoint), waited_s)
        with _explained("wait", endpoint.name, endpoint.namespace):
            if _state(endpoint) == "scaledToZero" or _is_up(endpoint):
                return endpoint
        if waited_s >= timeout_s:
            raise DeployError(f"{endpoint.name} is still {_state(endpoint)} after {timeout_s:.0f} s")
        time.sleep(every_s)
        try:
            with _explained("wait", endpoint.name, endpoint.namespace):
                endpoint.fetch()
            failures = 0
        except DeployError:
            failures += 1
            if failures == PATIENCE:
                raise


def _is_up(endpoint: "InferenceEndpoint") -> bool:
    """Whether it runs and its health route answers 200; raises if the platform has given it up."""
    from huggingface_hub import InferenceEndpointTimeoutError, errors  # noqa: PLC0415 (slow to import)

    if _state(endpoint) not in ("running", "failed", "updateFailed"):
        return False
    try:
        endpoint.wait(timeout=0)
    except (InferenceEndpointTimeoutError, errors.HTTPError):  # type: ignore[attr-defined]  # its name may not be known yet
        return False
    return True


def describe(endpoint: "InferenceEndpoint") -> str:
    """An endpoint on one line: name, status, address, and what the platform has to say."""
    message = " ".join(str(endpoint.raw.get("status", {}).get("message") or "").split())
    parts = (f"{endpoint.namespace}/{endpoint.name}", _state(endpoint), endpoint.url or "-", message)
    return " ".join(part for part in parts if part)


def rehearse(call: Callable[[], object]) -> Request:
    """The request that a call would send first, which is not sent; secrets are masked.

    Args:
        call: Uses the API once. Name its namespace: the API is asked for it otherwise.
    """
    from huggingface_hub import get_session  # noqa: PLC0415 (slow to import)

    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [_stop]}
    try:
        call()
    except _Stopped as stopped:
        request = stopped.args[0]
        return Request(request.method, str(request.url), _masked(json.loads(request.content)))
    finally:
        session.event_hooks = hooks
    raise DeployError("nothing would be sent")


class _Stopped(Exception):  # noqa: N818 (no error: the way out of the client's call)
    pass


def _stop(request: object) -> None:
    raise _Stopped(request)


def _masked(body: dict[str, Any]) -> dict[str, Any]:
    model = body.get("model", {})
    if "secrets" not in model:
        return body
    return {**body, "model": {**model, "secrets": dict.fromkeys(model["secrets"], MASK)}}


def _arguments(options: EndpointOptions) -> dict[str, Any]:
    """Options as the client names them, for creating and for changing alike."""
    image = {"url": options.image, "port": PORT, "healthRoute": HEALTH_ROUTE} if options.image else None
    return {
        "repository": options.repository,
        "revision": options.revision,
        "custom_image": image,
        "accelerator": options.accelerator,
        "instance_type": options.instance_type,
        "instance_size": options.instance_size,
        "min_replica": options.min_replica,
        "max_replica": options.max_replica,
        "scale_to_zero_timeout": options.scale_to_zero_minutes,
        "env": dict(options.env) if options.env is not None else None,
        "secrets": dict(options.secrets) if options.secrets is not None else None,
    }


def _state(endpoint: "InferenceEndpoint") -> str:
    return str(getattr(endpoint.status, "value", endpoint.status))


@contextmanager
def _explained(verb: str, name: str, namespace: str | None) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    from huggingface_hub import InferenceEndpointError, errors  # noqa: PLC0415 (slow to import)

    about = f"{verb} {f'{namespace}/' if namespace else ''}{name}"
    try:
        yield
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise DeployError(f"{about}: {_advice(verb, code, error.server_message or '')}") from error
    except (errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled, InferenceEndpointError) as error:
        raise DeployError(f"{about}: {_one_line(error)}") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of httpx or httpx2, whichever the client uses
        raise DeployError(f"{about}: the API cannot be reached: {_one_line(error) or type(error).__name__}") from error
    except ValueError as error:  # the client's own checks, and an answer that is not JSON
        raise DeployError(f"{about}: {_one_line(error)}") from error


def _advice(verb: str, code: int, said: str) -> str:
    advice = _ADVICE.get(code, "the API failed: try again later" if code >= 500 else "the API refuses")
    if code == 404:
        advice = "there is no such account or repository" if verb == "create" else "there is no such endpoint"
    if "quota" in said.lower():
        advice = _QUOTA
    return f"{advice} ({code}{f': {_one_line(said)}' if said else ''})"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500]
