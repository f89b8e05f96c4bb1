"""The examples do what their texts say, on the memory broker and with the permissions in the files."""

from contextlib import asynccontextmanager
from pathlib import Path

from harness.waiting import eventually
from lunaq_operator.local import files, plan
from lunaq_operator.local.run import LocalRun
from lunaq_runtime.ids import Id

EXAMPLES = Path(__file__).parents[2] / "examples"


async def until(condition, what):
    async def asked():
        return condition()

    await eventually(asked, what, timeout=60)


@asynccontextmanager
async def running(a_plan):
    run = LocalRun(a_plan)
    await run.start()
    try:
        await until(lambda: run.ready, "the consumers to consume")
        yield run
    finally:
        await run.stop()


def bodies(run, name, *, dead=False):
    return [body for body, _ in run.messages(Id("app", name), dead=dead)]


async def test_the_mail_example_retries_buries_and_reports_a_denial():
    async with running(plan.plan_resources(files.read([EXAMPLES / "emails"]), "app", {})) as run:
        ids = {}
        for subject, more in {
            "plain": {},
            "twice": {"fail_times": 2},
            "never": {"poison": True},
            "audited": {"audit": True},
        }.items():
            mail = {"to": "ann@example.org", "subject": subject, **more}
            ids[subject] = await run.publish(Id("app", "emails"), mail)
        await until(
            lambda: len(bodies(run, "sent")) >= 3 and bodies(run, "emails", dead=True),
            "three mails to be sent and one to be dead",
        )
        sent = {record["subject"]: record for record in bodies(run, "sent")}
        assert len(bodies(run, "sent")) == 3
        assert {subject: record["message_id"] for subject, record in sent.items()} == {
            subject: ids[subject] for subject in ("plain", "twice", "audited")
        }
        assert {subject: record["attempts"] for subject, record in sent.items()} == {
            "plain": 0,
            "twice": 2,
            "audited": 0,
        }
        assert sent["audited"]["audit"] == "PermissionDenied"
        assert "audit" not in sent["plain"]
        assert bodies(run, "audit") == []
        ((dead, properties),) = run.messages(Id("app", "emails"), dead=True)
        assert (dead["subject"], properties.headers["attempts"]) == ("never", 3)


async def test_the_entries_example_writes_a_receipt():
    (document,) = files.read([EXAMPLES / "entries" / "entries.yaml"])
    async with running(plan.plan_entries(document, {})) as run:
        order = {"id": 7, "items": [{"price": 3, "quantity": 2}, {"price": 1.5, "quantity": 1}]}
        await run.publish(Id("app", "orders"), order)
        await until(lambda: bodies(run, "receipts"), "a receipt")
        assert bodies(run, "receipts") == [{"order": 7, "total": 7.5}]
