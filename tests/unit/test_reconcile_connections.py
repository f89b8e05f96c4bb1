"""What a Broker's connection is made from."""

import pytest

from lunaq_operator.connections import make_broker, tls_context
from lunaq_operator.reconcile.pool import Pool, Target
from lunaq_operator.store import Key
from lunaq_runtime.brokers.base import BrokerError

KEY = Key("app", "main")


def target(uri="amqp://rabbit", uid="one", password="pw", **more):  # noqa: S107 - of no broker
    return Target(uid=uid, uri=uri, username="u", password=password, **more)


def test_a_certificate_that_cannot_be_read_is_a_brokers_error_and_names_the_field():
    with pytest.raises(BrokerError, match=r"spec\.tls"):
        make_broker(target("amqps://rabbit", ca=b"no certificate"))


def test_the_server_is_verified_by_default():
    context = tls_context(target("amqps://rabbit"))
    assert context.check_hostname


def test_no_secret_is_told_by_a_targets_text():
    shown = repr(target(private_key=b"key"))
    assert "pw" not in shown
    assert "key" not in shown


class Fake:
    connected = True

    def __init__(self, made_from, refuses) -> None:
        self.made_from = made_from
        self.refuses = refuses
        self.closed = False

    async def connect(self):
        if self.made_from.password in self.refuses:
            raise BrokerError("access_refused", "no")

    async def close(self):
        self.closed = True


@pytest.fixture
def made():
    return []


@pytest.fixture
def pool(made):
    def make(wanted):
        made.append(Fake(wanted, {"wrong"}))
        return made[-1]

    return Pool(make)


async def test_an_equal_target_needs_no_new_connection(pool, made):
    assert await pool.connect(KEY, target())
    assert not await pool.connect(KEY, target())
    assert len(made) == 1


async def test_after_a_rotation_the_new_connection_is_up_before_the_old_is_closed(pool, made):
    await pool.connect(KEY, target())
    assert await pool.connect(KEY, target(password="new"))
    assert [one.closed for one in made] == [True, False]
    assert pool.get(KEY).broker is made[1]


async def test_an_unlucky_rotation_keeps_the_old_connection(pool, made):
    await pool.connect(KEY, target())
    with pytest.raises(BrokerError):
        await pool.connect(KEY, target(password="wrong"))
    assert pool.get(KEY).broker is made[0]
    assert [one.closed for one in made] == [False, True]


async def test_a_broker_that_moved_does_not_keep_the_connection_to_the_old_place(pool, made):
    await pool.connect(KEY, target())
    with pytest.raises(BrokerError):
        await pool.connect(KEY, target("amqp://elsewhere", password="wrong"))
    assert pool.get(KEY) is None
    assert made[0].closed


async def test_dropping_closes(pool, made):
    await pool.connect(KEY, target())
    await pool.drop(KEY)
    assert made[0].closed
    assert pool.get(KEY) is None
