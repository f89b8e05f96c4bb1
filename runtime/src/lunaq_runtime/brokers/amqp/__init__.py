"""AMQP 0-9-1 brokers, RabbitMQ first, on aiormq.

aiormq does frames, TLS, channels and declares; reconnecting, publishing and consuming are ours, because a
"robust" connection can come back without its consumers (features.md, trap T9).
"""

from lunaq_runtime.brokers.amqp.broker import AmqpBroker

__all__ = ["AmqpBroker"]
