"""The API's resources as typed, frozen data; reconcilers, compiler and local mode work on these.

The schema in `crds/` is the API; a test walks both so that neither has what the other lacks.
"""

from lunaq_operator.resources.broker import (
    PER_CONSUMER,
    SHARED,
    AllowedNamespaces,
    Broker,
    CaSecretRef,
    Management,
    Tls,
    effective_access,
    parse_broker,
)
from lunaq_operator.resources.consumer import (
    Consumer,
    Env,
    EnvFrom,
    Handler,
    HttpClient,
    KeyRef,
    Library,
    Scaling,
    SourceFrom,
    Template,
    parse_consumer,
)
from lunaq_operator.resources.fields import SpecError
from lunaq_operator.resources.meta import LocalRef, Meta, Ref, Resource
from lunaq_operator.resources.queue import DeadLetter, Queue, Retry, parse_queue

__all__ = [
    "PER_CONSUMER",
    "SHARED",
    "AllowedNamespaces",
    "Broker",
    "CaSecretRef",
    "Consumer",
    "DeadLetter",
    "Env",
    "EnvFrom",
    "Handler",
    "HttpClient",
    "KeyRef",
    "Library",
    "LocalRef",
    "Management",
    "Meta",
    "Queue",
    "Ref",
    "Resource",
    "Retry",
    "Scaling",
    "SourceFrom",
    "SpecError",
    "Template",
    "Tls",
    "effective_access",
    "parse_broker",
    "parse_consumer",
    "parse_queue",
]
