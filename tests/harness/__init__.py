"""Starts the real things that the tests run against: RabbitMQ, a Kubernetes API server, a whole node.

Used by the conftest files beside it and by nothing else: neither the operator nor the runtime may import it.
"""
