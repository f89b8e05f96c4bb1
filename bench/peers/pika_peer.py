"""pika's blocking adapter, single acks."""

from __future__ import annotations

import pika

import common


def main() -> None:
    """Consume until killed."""
    options = common.options()
    connection = pika.BlockingConnection(pika.URLParameters(common.uri()))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=options.prefetch)
    publishing = connection.channel()
    publishing.confirm_delivery()
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)

    def arrived(_channel: object, method: pika.spec.Basic.Deliver, _properties: object, body: bytes) -> None:
        common.handle(body)
        if options.out:
            publishing.basic_publish(options.out, "", body, properties, mandatory=True)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(options.queue, arrived)
    channel.start_consuming()


main()
