"""Tiers: which machine is which, what a run takes, what a use case becomes on a tier."""

import json
import re
from pathlib import Path

import pytest
from kontextkit.engine.tiers.detect import Machine, detect
from kontextkit.engine.tiers.files import FILES, MODELS
from kontextkit.engine.tiers.forecast import forecast
from kontextkit.engine.tiers.presets import PRESETS
from kontextkit.engine.tiers.tiers import PRECISIONS, STANDARD, TIERS, USE_CASES, Settings, settings_for

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    row["name"]: row
    for path in (ROOT / "benchmarks" / "results").glob("*.json")
    for row in json.loads(path.read_text())["rows"]
}
MIB = 1 << 20
CARDS = {  # memory as the drivers of such cards report it, in MiB
    "NVIDIA H200": (143771, (9, 0), "80 GB"),
    "NVIDIA H100 80GB HBM3": (81559, (9, 0), "80 GB"),
    "NVIDIA RTX A6000": (48676, (8, 6), "24 GB standard"),
    "NVIDIA GeForce RTX 5090": (32607, (12, 0), "24 GB standard"),
    "NVIDIA GeForce RTX 4090": (24564, (8, 9), "24 GB optimized"),
    "NVIDIA GeForce RTX 4080": (16376, (8, 9), "16 GB"),
    "Tesla T4": (15360, (7, 5), "16 GB"),
    "NVIDIA GeForce RTX 3060": (12288, (8, 6), "12 GB"),
    "NVIDIA GeForce RTX 4060": (8188, (8, 9), "8 GB quality"),
    "NVIDIA GeForce RTX 2060": (6144, (7, 5), "8 GB low memory"),
}


def card(name, mib, capability=None, host=64e9):
    return Machine("cuda", name, mib * MIB, int(host), capability)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_of_the_tier_of_its_memory_and_the_reasons_name_it(name):
    mib, capability, tier = CARDS[name]
    found = detect(card(name, mib, capability))
    assert found.tier.name == tier
    assert name in found.reasons[0]
    assert any("float16" in reason for reason in found.reasons) == (capability < (8, 0))


def test_without_a_card_the_processor_computes():
    assert detect(Machine("cpu", "the processor", 0, int(32e9))).tier.name == "CPU"


def test_of_shared_memory_the_system_keeps_its_part():
    found = detect(Machine("mps", "Apple M3", int(16e9), int(16e9)))
    assert found.tier.name == "12 GB"
    assert "shares 16 GB" in found.reasons[0]


def test_every_tier_and_use_case_names_what_there_is():
    rows = [tier.settings for tier in TIERS.values()] + [case.settings for case in USE_CASES.values()]
    for row in rows:
        assert row.preset in PRESETS
        assert row.precision in PRECISIONS
        assert row.width % 16 == row.height % 16 == 0
    assert {tier.text_encoder.name for tier in TIERS.values()} <= FILES.keys()
    assert MODELS.keys() >= set(PRECISIONS)


def test_guide_values_of_the_tiers():
    """The guide's table of tiers, and its table of use cases."""
    rows = {name: (t.settings.precision, t.settings.steps, t.settings.guidance) for name, t in TIERS.items()}
    assert rows["24 GB standard"] == ("BF16", 28, 5.0)
    assert rows["24 GB optimized"] == ("Q4_K_M", 20, 5.0)
    assert rows["24 GB Lightning"] == ("Q4_K_M", 8, 1.8)
    assert rows["8 GB quality"] == ("Q4_K_M", 20, 5.0)
    assert rows["8 GB low memory"] == ("Q3_K_M", 16, 5.0)
    assert rows["CPU"] == ("Q3_K_M", 16, 4.0)
    sizes = {name: case.settings.width for name, case in USE_CASES.items()}
    assert sizes == {"interactive": 512, "production": 768, "portfolio": 1024, "premium": 1536, "gallery batch": 512}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("case", USE_CASES)
def test_a_use_case_asks_no_more_of_a_tier_than_it_carries(tier, case):
    settings, notes = settings_for(tier, case)
    assert PRECISIONS.index(settings.precision) <= PRECISIONS.index(TIERS[tier].best)
    assert settings.width <= TIERS[tier].largest
    assert bool(notes) == (settings.width < USE_CASES[case].settings.width)
    assert settings.steps == USE_CASES[case].settings.steps


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"no tier '4 GB'; choose one of 80 GB, .*CPU"):
        settings_for("4 GB")
    with pytest.raises(ValueError, match="no use case 'fun'; choose one of standard, interactive"):
        settings_for("CPU", "fun")


@pytest.mark.parametrize(
    ("precision", "row"), [("BF16", "kontextkit.bf16.peak_gb"), ("Q8_0", "kontextkit.q8_0.peak_gb")]
)
def test_the_memory_forecast_lies_above_what_was_measured_but_not_far(precision, row):
    """The row counts torch's own memory; the forecast the driver's too."""
    whole = forecast(Settings(precision, 28, 2.5, 1024, 1024)).whole_gb
    assert ROWS[row]["measured"] < whole < ROWS[row]["measured"] + 1.5


@pytest.mark.parametrize(("precision", "side", "cap"), [("Q3_K_M", 512, 6), ("Q4_K_M", 768, 8), ("Q5_K_M", 768, 10)])
def test_what_ran_under_a_cap_is_not_forecast_to_fail(precision, side, cap):
    settings = Settings(precision, 20, 5.0, side, side)
    coming, machine = forecast(settings), Machine("cuda", "a card", int(cap * 1e9), int(64e9))
    assert ROWS[f"gguf.{precision.lower()}.peak_gb.{side}"]["measured"] <= cap
    warnings = coming.warnings(machine, settings.model.gb, 16)
    assert not any("will not fit" in warning for warning in warnings)


def test_the_time_forecast_on_the_measured_card_is_the_measured_one():
    """797 TFLOP/s: what a plain product reached there."""
    full = forecast(Settings("BF16", 28, 2.5, 1024, 1024), tflops=797)
    assert full.step_seconds == pytest.approx(ROWS["gguf.bf16.step_ms.eager"]["measured"] / 1e3, rel=0.05)
    smaller = forecast(Settings("Q4_K_M", 20, 5.0, 768, 768), tflops=797)
    assert smaller.step_seconds == pytest.approx(ROWS["gguf.q4_k_m.step_ms.768"]["measured"] / 1e3, rel=0.1)


def test_a_run_that_will_not_fit_is_warned_of():
    tiny, settings = Machine("cuda", "a card", int(2e9), int(8e9)), TIERS["80 GB"].settings
    warnings = forecast(settings).warnings(tiny, settings.model.gb, 24)
    assert "This will not fit" in warnings[0]
    assert "8 GB of memory" in warnings[1]
    half = Machine("cuda", "a card", int(8e9), int(64e9))
    (streamed,) = forecast(TIERS["12 GB"].settings).warnings(half, 6.93, 16)
    assert re.search(r"About 0\.\d of 6\.9 GB of weights", streamed)
    assert forecast(TIERS["12 GB"].settings).warnings(card("a card", 12288), 6.93, 16) == []


def test_the_help_page_shows_the_tables():
    page = (ROOT / "js" / "docs" / "KontextTier.md").read_text()
    for name, row in [(n, t.settings) for n, t in TIERS.items()] + [(n, c.settings) for n, c in USE_CASES.items()]:
        lora = "distilled" if row.lora else ""
        cells = (name, row.precision, lora, row.steps, row.guidance, f"{row.width}x{row.height}", row.preset)
        assert "| " + " | ".join(map(str, cells)).replace("|  |", "| |") + " |" in page
    words = " ".join(page.replace("and more is", "is").split())
    assert STANDARD in words
    for tier in TIERS.values():
        assert not tier.card_gb or f"{tier.card_gb:g} is {tier.name}" in words
