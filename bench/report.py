"""Writes what `make bench` measured: JSON and tables for run.py; as a program, the plot.

`.venv-bench/bin/python bench/report.py bench/results` draws bench.png anew from figures.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from pathlib import Path

Figures = dict[tuple[str, str], list[dict[str, float]]]

REFERENCE = "Go, `multiple` acks by 50"
TITLES = {
    "drain-classic": "Drain a durable classic queue",
    "drain-quorum": "Drain a quorum queue",
    "relay": "Consume, publish with confirm, ack",
    "latency": "Latency at 500 messages a second, from publish to answer (consume, publish with confirm)",
    "memory": "Embedded memory broker, published to acknowledged, in process",
}


def write(folder: Path, figures: Figures, version: str) -> None:
    """Write figures.json and README.md of the results; `version` is RabbitMQ's."""
    nested: dict[str, dict[str, dict[str, float]]] = {}
    peers = {peer for _, peer in figures}
    for (job, peer), values in figures.items():
        nested.setdefault(job, {})[peer] = _summary(values, figures.get((job, _reference(peer, peers)), []))
    rounds = max(map(len, figures.values()), default=0)
    (folder / "figures.json").write_text(json.dumps(nested, indent=2, ensure_ascii=False) + "\n")
    setting = (
        f"Medians of {rounds} shuffled rounds on one RabbitMQ {version}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}. Prefetch 200 where none is named; CPU is of all of a peer's"
        " processes, the broker's not included. Ratios are to Go with `multiple` acks, where a prefetch is"
        " named to Go with its best one: medians of the rounds' ratios, for a machine is not always as fast."
        " They hold between machines, absolute figures do not."
    )
    lines = ["# Results of `make bench`", "", setting, ""]
    for job, title in TITLES.items():
        if job in nested:
            lines += [f"## {title}", "", *_table(nested[job]), ""]
    lines += ["![rate and CPU against Go](bench.png)", ""] if "drain-classic" in nested else []
    (folder / "README.md").write_text("\n".join(lines))


def _reference(peer: str, peers: set[str]) -> str:
    """Name whom a peer is compared with: at its best prefetch with Go at its own."""
    named = ", prefetch "
    best = (other for other in peers if other.startswith(REFERENCE + named))
    return next(best, "") if named in peer else REFERENCE


def _summary(rounds: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, float]:
    """Take the medians of a peer's rounds and, as `... ratio`, of what they are to the reference's."""
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name in ("rate", "cpu"):
        if name in found and reference:
            ratios = [one[name] / other[name] for one, other in zip(rounds, reference, strict=True)]
            found[f"{name} ratio"] = statistics.median(ratios)
    return found


def _table(peers: dict[str, dict[str, float]]) -> list[str]:
    if any("p99" in values for values in peers.values()):
        rows = ["| Peer | p50 ms | p95 ms | p99 ms | max ms |", "| --- | ---: | ---: | ---: | ---: |"]
        ordered = sorted(peers.items(), key=lambda one: one[1]["p99"])
        return rows + [
            f"| {peer} | " + " | ".join(f"{values[name]:.2f}" for name in ("p50", "p95", "p99", "max")) + " |"
            for peer, values in ordered
        ]
    rows = [
        "| Peer | messages/s | against Go | CPU, µs a message | against Go |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for peer, values in sorted(peers.items(), key=lambda one: -one[1]["rate"]):
        rate, cpu = (f"{values[one]:.2f}" if one in values else "" for one in ("rate ratio", "cpu ratio"))
        rows.append(f"| {peer} | {values['rate']:,.0f} | {rate} | {values['cpu']:.1f} | {cpu} |")
    return rows


def plot(folder: Path) -> None:
    """Draw bench.png from figures.json."""
    import matplotlib as mpl  # noqa: PLC0415 - only the peers' environment has it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    figures = json.loads((folder / "figures.json").read_text())
    jobs = [job for job in ("drain-classic", "drain-quorum", "relay") if job in figures]
    if not jobs:
        return
    canvas, axes = plt.subplots(len(jobs), 2, figsize=(12, 3 * len(jobs)), squeeze=False)
    for row, job in zip(axes, jobs, strict=True):
        peers = sorted(figures[job].items(), key=lambda one: one[1]["rate"])
        names = [peer.replace("`", "") for peer, _ in peers]
        colors = ["tab:orange" if name.startswith("lunaq") else "tab:blue" for name in names]
        for ax, name, text in zip(row, ("rate", "cpu"), ("messages/s", "CPU, µs a message"), strict=True):
            bars = ax.barh(names, [values[name] for _, values in peers], color=colors)
            ax.bar_label(bars, fmt="{:,.0f}" if name == "rate" else "{:.1f}", padding=3)
            ax.set_title(f"{TITLES[job]}: {text}", fontsize=9)
            ax.margins(x=0.15)
    canvas.tight_layout()
    canvas.savefig(folder / "bench.png", dpi=90)


if __name__ == "__main__":
    plot(Path(sys.argv[1]))
