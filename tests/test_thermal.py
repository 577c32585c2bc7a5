"""Clock and temperature from a made-up /sys, and what is said where there is none."""

from __future__ import annotations

from flatlm.runtime.measuring import thermal


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_clocks_and_temperatures_are_read(tmp_path):
    for core, kilohertz in enumerate((1_800_000, 2_400_000)):
        write(tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", str(kilohertz))
    write(tmp_path / "class/thermal/thermal_zone0/temp", "48300")
    write(tmp_path / "class/thermal/thermal_zone0/type", "cpu-thermal")
    assert thermal.clocks(tmp_path) == [1.8, 2.4]
    assert thermal.temperatures(tmp_path) == {"cpu-thermal": 48.3}


def test_a_system_that_shows_neither_is_said_to(tmp_path, monkeypatch):
    monkeypatch.setattr(thermal, "clocks", list)
    monkeypatch.setattr(thermal, "temperatures", dict)
    assert set(thermal.facts().values()) == {thermal.HIDDEN}
