"""The tables that end a run and a training."""

from __future__ import annotations

from typing import Any

from curate import storage

ROUNDS_SHOWN = 10


def table_of(summary: dict[str, Any], output: str) -> str:
    """summary.json as text."""
    lines = [f"{'source':<24}{'seen':>12}{'embedded':>12}{'rejected':>12}{'selected':>12}"]
    for set_name, rows in summary["sources"].items():
        for name, row in rows.items():
            shown = name if set_name == "open" else f"{name} (target)"
            selected = f"{row['selected']:,}" if set_name == "open" else "–"
            lines.append(
                f"{shown:<24}{row['seen']:>12,}{row['embedded']:>12,}{row['rejected']:>12,}"
                f"{selected:>12}"
            )
    if summary["rounds"]:
        stopped = summary["stopped_because"]
        if summary["stopping_objective"] is not None:
            stopped += f" (the next round's is {summary['stopping_objective']:.4f})"
        lines.append(
            f"\n{summary['rounds']:,} rounds, f(S_1) = {summary['first_objective']:.4f}, "
            f"f(S_last) = {summary['last_objective']:.4f}, stopped by: {stopped}"
        )
    else:
        lines.append(
            f"\nmethod {summary['coreset']['method']}, stopped by: {summary['stopped_because']}"
        )
    stages = ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items())
    lines.append(f"seconds: {stages}")
    if summary["images_per_s"]:
        lines.append(
            f"embedded {summary['embedded_now']:,} images at {summary['images_per_s']:,.0f} "
            "images/s, start of the workers included"
        )
    lines.append(
        f"manifest: {storage.join(output, 'coreset.parquet')} ({summary['selected']:,} images)"
    )
    if "pretrain" in summary:
        lines += ["", training_table(summary["pretrain"])]
    return "\n".join(lines)


def training_table(outcome: dict[str, Any]) -> str:
    """A training's summary.json as text."""
    sets = f"{outcome['images']:,} images"
    if outcome["open_images"]:
        sets += f", {outcome['open_images']:,} of them from the open set"
    knn = "" if outcome["knn"] is None else f", kNN accuracy {outcome['knn']:.1%}"
    return "\n".join(
        [
            f"{outcome['method']} on {outcome['backbone']} at {outcome['image_px']} px: {sets}",
            f"{outcome['epochs']:,} epochs, {outcome['steps']:,} steps, batches of "
            f"{outcome['batch_size']:,} over {outcome['workers']} workers",
            f"loss {outcome['loss']:.4f}, embedding deviation {outcome['embedding_std']:.2f}{knn}",
            f"{outcome['seconds']:,.0f} s, {outcome['images_per_s']:,.0f} images/s; "
            f"unreadable: {outcome['rejected']} when copied, {outcome['unreadable']} when decoded",
            f"encoder: {outcome['encoder']}",
        ]
    )


def evaluation_table(results: list[dict[str, Any]]) -> str:
    """Rows of evaluate/results.json as text, each figure in its unit."""
    width = max([30, *(len(row["metric"]) for row in results)]) + 2
    lines = [
        f"{'metric':<{width}}{'value':>10}{'± std':>10}{'seeds':>7}{'images':>9}{'seconds':>9}"
    ]
    for row in results:
        value, std = (_figure(row[name], row["unit"]) for name in ("value", "std"))
        lines.append(
            f"{row['metric']:<{width}}{value:>10}{std if row['seeds'] > 1 else '–':>10}"
            f"{row['seeds']:>7}{row['n']:>9,}{row['seconds']:>9.1f}"
        )
    for row in results:
        lines += _rounds(row["config"].get("by_round", []))
        lines += _classes(row["config"].get("top_classes", []))
    return "\n".join(lines)


def _figure(value: float, unit: str) -> str:
    shown = {"share": f"{value:.1%}", "ratio": f"{value:.2f} ×", "bits": f"{value:.2f} bits"}
    return shown.get(unit, f"{value:.3f}")


def _rounds(by_round: list[tuple[int, int, float]]) -> list[str]:
    """Of many rounds a few, the last one among them."""
    if len(by_round) < 2:
        return []
    step = -(-len(by_round) // ROUNDS_SHOWN)
    shown = by_round[::-step][::-1]
    return ["", f"{'round':<8}{'images so far':>14}{'oracle share':>14}"] + [
        f"{number:<8}{images:>14,}{share:>14.1%}" for number, images, share in shown
    ]


def _classes(top_classes: list[tuple[str, int, float]]) -> list[str]:
    if not top_classes:
        return []
    width = max(len("class selected most"), *(len(name) for name, _, _ in top_classes)) + 2
    return ["", f"{'class selected most':<{width}}{'images':>8}{'of its images':>15}"] + [
        f"{name:<{width}}{images:>8,}{share:>15.1%}" for name, images, share in top_classes
    ]
