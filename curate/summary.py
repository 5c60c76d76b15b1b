"""The tables that end a run and a training."""

from __future__ import annotations

from typing import Any

from curate import storage


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
    """Rows of evaluate/results.json as text."""
    lines = [f"{'metric':<32}{'value':>8}{'± std':>9}{'seeds':>7}{'images':>9}{'seconds':>9}"]
    for row in results:
        lines.append(
            f"{row['metric']:<32}{row['value']:>8.1%}{row['std']:>9.1%}{row['seeds']:>7}"
            f"{row['n']:>9,}{row['seconds']:>9.1f}"
        )
    return "\n".join(lines)
