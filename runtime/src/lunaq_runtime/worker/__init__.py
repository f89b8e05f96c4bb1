"""Consumers at work: subscribe, run the handler on what arrives, settle; `app` starts one per consumer."""

from lunaq_runtime.worker.counters import Counters
from lunaq_runtime.worker.stepper import Stepper
from lunaq_runtime.worker.worker import HandlerStuckError, Worker

__all__ = ["Counters", "HandlerStuckError", "Stepper", "Worker"]
