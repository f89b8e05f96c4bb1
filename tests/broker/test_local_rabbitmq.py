"""`lunaq run --broker`: the same files on a real broker, declared as the operator declares them."""

from pathlib import Path

from harness.broker import Broker
from harness.waiting import eventually
from lunaq_operator.local import LocalRun, plan_resources
from lunaq_operator.local.files import read
from lunaq_runtime.ids import Id

EMAILS, SENT = Id("app", "emails"), Id("app", "sent")


async def test_the_example_runs_on_a_real_broker(rabbitmq: Broker, vhost: str) -> None:
    plan = plan_resources(read([Path(__file__).parents[2] / "examples" / "emails"]), "app", {})
    local = LocalRun(plan, rabbitmq.uri(vhost))
    await local.start()
    try:
        await local.until_ready()
        await local.publish(EMAILS, {"to": "ada@example.com", "subject": "one"})
        await local.publish(EMAILS, {"to": "bob@example.com", "subject": "two", "fail_times": 1})
        await local.publish(EMAILS, {"to": "eve@example.com", "subject": "three", "poison": True})

        async def all_through() -> bool:
            return await local.depth(SENT) == 2 and await local.depth(EMAILS, dead=True) == 1

        await eventually(all_through, "two mails to be sent and one to be dead")
        assert await local.depth(EMAILS) == 0
    finally:
        await local.stop()
    exchange = rabbitmq.api("GET", f"/exchanges/{vhost}/app%3Aemails.x")
    assert exchange["arguments"]["x-lunaq-owner"] == "local/app/emails"
