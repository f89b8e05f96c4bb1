"""The `metrics` module: what it shows, and its bounds (lua-api.md 3.12)."""

from __future__ import annotations

import pytest
from lua_driver import IDENTITY, FakeHost
from prometheus_client.parser import text_string_to_metric_families

from lunaq_runtime.entries.model import Handler
from lunaq_runtime.lua.modules.metrics import MAX_NAMES, MAX_SERIES, HandlerMetrics
from lunaq_runtime.lua.modules.services import Services
from lunaq_runtime.lua.requests import Finished
from lunaq_runtime.lua.state import LuaState, MessageContext
from lunaq_runtime.metrics import Metrics


def printed(source: str, metrics: HandlerMetrics | None = None) -> list[str]:
    host = FakeHost()
    handler = Handler("app.lua", f"function handle() {source}\nend")
    state = LuaState(handler, host, identity=IDENTITY, services=Services(metrics=metrics or HandlerMetrics()))
    assert state.start(MessageContext("1"), None).step() == Finished()
    return host.printed()


def shown(metrics: HandlerMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Scrape what handlers counted, without the label that each series has."""
    text = Metrics(list, reconnects=lambda: 0, ready=lambda: True, handlers=metrics).render().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = set(sample.labels.items()) - {("consumer", IDENTITY.consumer_id)}
            if len(labels) < len(sample.labels):
                found[sample.name, frozenset(labels)] = sample.value
    return found


def test_every_kind_is_on_the_metrics_page_with_its_labels():
    metrics = HandlerMetrics()
    source = """
        metrics.counter_inc('mails.sent', {tenant = 'a', [1] = 'no', n = 5})
        metrics.counter_add('mails.sent', 2.5, {tenant = 'a'})
        metrics.counter_inc('mails.sent')
        metrics.gauge_set('open', 7) metrics.gauge_inc('open')
        metrics.gauge_dec('open') metrics.gauge_dec('open')
        metrics.histogram('mail.seconds', 0.3, {['a.b'] = 'x"y'})
        metrics.histogram('mail.seconds', 100, {['a.b'] = 'x"y'})
    """
    printed(source, metrics)
    got = shown(metrics)
    label = frozenset({("a_b", 'x"y')})
    assert got["mails_sent_total", frozenset({("tenant", "a")})] == 3.5
    assert got["mails_sent_total", frozenset()] == 1
    assert got["open", frozenset()] == 6
    assert got["mail_seconds_count", label] == 2
    assert got["mail_seconds_sum", label] == 100.3
    assert got["mail_seconds_bucket", label | {("le", "0.5")}] == 1
    assert got["mail_seconds_bucket", label | {("le", "0.25")}] == 0
    assert got["mail_seconds_bucket", label | {("le", "+Inf")}] == 2


def test_a_counter_may_carry_its_suffix_already():
    metrics = HandlerMetrics()
    printed("metrics.counter_inc('sent_total') metrics.counter_inc('sent')", metrics)
    assert shown(metrics) == {("sent_total", frozenset()): 2}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("metrics.counter_inc('')", "name required"),
        ("metrics.counter_inc('...')", "name required"),
        ("metrics.counter_inc(5)", "name required"),
        ("metrics.counter_inc(('n'):rep(200))", "more than 128"),
        ("metrics.counter_inc('lunaq.settled')", "the runtime's"),
        ("metrics.gauge_set('x.total', 1)", "must not"),
        ("metrics.histogram('x_count', 1)", "must not"),
        ("metrics.counter_add('n', -1)", "only grows"),
        ("metrics.counter_add('n', 0/0)", "finite"),
        ("metrics.gauge_set('n', 1/0)", "finite"),
        ("metrics.gauge_set('n', 'x')", "number"),
        ("metrics.counter_inc('n', {consumer = 'me'})", "the runtime's"),
        ("metrics.counter_inc('n', {a = ('v'):rep(129)})", "more than 128"),
        ("(metrics.gauge_set('n', 1) and metrics.histogram)('n', 1)", "is a gauge already"),
    ],
)
def test_what_prometheus_would_not_take_is_refused_with_the_reason(call: str, reason: str):
    value, kind, text = printed(f"local v, err = {call} print(v) print(err:kind()) print(err)")
    assert (value, kind) == ("nil", "Internal")
    assert reason in text


def test_label_sets_are_bounded_and_those_known_go_on():
    metrics = HandlerMetrics()
    source = f"""
        local full
        for n = 1, {MAX_SERIES + 5} do
          local ok, err = metrics.counter_inc('n', {{id = tostring(n)}})
          full = full or err and n .. ' ' .. err:details().reason
        end
        print(full, metrics.counter_inc('n', {{id = '1'}}), metrics.counter_inc('other'))
    """
    assert printed(source, metrics)[0].startswith(f"{MAX_SERIES + 1} full true nil {MAX_SERIES} label sets")
    assert len(shown(metrics)) == MAX_SERIES


def test_names_are_bounded():
    source = f"for n = 1, {MAX_NAMES} do assert(metrics.counter_inc('n' .. n)) end"
    assert "names are in use already" in printed(f"{source} print(metrics.counter_inc('more'))")[0]
