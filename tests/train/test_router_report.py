from train.metrics.streaming import METRICS
from train.router_report import COLUMNS, render, summary


def measured(named: float, said: list[str]) -> dict:
    return {
        "session": {"named": named, "narrated": 0.9, "false_per_event": 0.1},
        "metrics": dict.fromkeys(METRICS, 1.0),
        "training_processor_seconds": 600.0,
        "naming_steps": 30,
        "clip_steps": 50,
        "step_mib": 2048.0,
        "told": [{"kind": "scene", "happened": ["1.0 cup appears"], "said": said}],
    }


def test_seeds_become_mean_and_spread_in_the_order_of_the_routers():
    rows = {"top_k-0": measured(0.5, []), "top_k-1": measured(0.7, []), "full-0": measured(0.8, [])}
    found = [dict(zip(COLUMNS, row, strict=True)) for row in summary(rows, ("full", "top_k", "random"))]
    assert [row["router"] for row in found] == ["full", "top_k"]
    assert [row["named"] for row in found] == ["0.800", "0.600 ± 0.141"]
    assert found[1]["training, min of a core"] == "10.0 ± 0.0"
    elsewhere = {"machine": {"cpu": "slow"}, "training_processor_seconds": 6000.0}
    rows |= {"top_k-2": measured(0.6, []) | elsewhere, "random-0": measured(0.4, []) | elsewhere}
    found = [dict(zip(COLUMNS, row, strict=True)) for row in summary(rows, ("top_k", "random"))]
    assert found[0]["seeds"] == "3" and found[0]["training, min of a core"] == "10.0 ± 0.0"
    assert found[1]["named"] == "0.400" and found[1]["step, MiB"] == ""


def test_the_page_sets_what_each_says_of_a_clip_side_by_side():
    rows = {"full-0": measured(0.8, ["1.0 A cup."]), "top_k-0": measured(0.5, [])}
    facts = {"machine": {"date": "2026-11-25", "cpu": "two cores"}, "settings": {"clips": 60}}
    page = render(rows, facts, ("full", "top_k"))
    assert "| happened | 1.0 cup appears |\n| full | 1.0 A cup. |\n| top_k | (nothing) |" in page
    assert "60 composed clips" in page
