"""Brokers: one small interface (`base`), two implementations (`memory`, `amqp`)."""
