"""Settings: defaults, HTCondor's language, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import knobs
from pilot.configuration import UNDER_MASTER, from_values, load
from pilot.settings import KNOBS, Settings, SettingsError


def config(directory: Path, text: str) -> Path:
    file = directory / "sailplane.conf"
    file.write_text(text)
    return file


def test_defaults_follow_one_another() -> None:
    settings = Settings(local_dir=Path("/glide"))
    assert settings.log == Path("/glide/log")
    assert settings.sailplane_pool_socket == Path("/glide/pool/socket")
    assert settings.sailplane_pilot_proxy is None
    assert settings.sailplane_max_output_bytes == 100 << 30


def test_every_knob_has_a_default_that_is_allowed_a_meaning_and_its_fields_name() -> None:
    settings = Settings()
    for field, row in KNOBS.items():
        assert row.name == field.rstrip("_").upper()
        assert row.meaning.endswith(".")
        assert row.default or row.unset
        getattr(settings, field)


def test_file_macros_and_environment(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        "LOCAL_DIR = /somewhere\nNUM_CPUS = 2 * $(HALF)\nHALF = 3\nUPDATE_INTERVAL = 2 min\n"
        'START = TARGET.Owner =?= "ali ce" && \\\n  True\nSPOOL =\n',
    )
    settings = load(file, {"_CONDOR_SAILPLANE_SWITCH": "None", "_CONDOR_HALF": "4", "X509_USER_PROXY": "/tmp/p"})
    assert settings.log == Path("/somewhere/log")
    assert settings.spool == Path("/somewhere/spool")
    assert settings.num_cpus == 8
    assert settings.update_interval == 120.0
    assert settings.start.startswith('TARGET.Owner =?= "ali ce"')
    assert settings.sailplane_switch == "none"
    assert settings.sailplane_pilot_proxy == Path("/tmp/p")
    assert settings.warnings == ()


def test_the_nodes_own_configuration_is_not_read(tmp_path: Path) -> None:
    foreign = config(tmp_path, "NUM_CPUS = 7\n")
    settings = load(None, {"CONDOR_CONFIG": str(foreign), "HOME": str(tmp_path)})
    assert settings.num_cpus is None


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    file = config(tmp_path, "NUM_CPUS = 7\n")
    assert load(None, {"SAILPLANE_CONFIG": str(file)}).num_cpus == 7


def test_an_unknown_name_is_warned_about_with_the_nearest(tmp_path: Path) -> None:
    (warning,) = load(config(tmp_path, "SAILPLANE_SWICH = none\n"), {}).warnings
    assert "SAILPLANE_SWICH" in warning
    assert "SAILPLANE_SWITCH;" in warning


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("NUM_CPUS", "many", "whole number from 1"),
        ("NUM_CPUS", "1.5", "whole number"),
        ("NUM_CPUS", "0", "from 1"),
        ("STARTD_PORT", "70000", "up to 65535"),
        ("START", "TARGET.x ==", "ClassAd expression"),
        ("UPDATE_INTERVAL", "3 weeks", "seconds"),
        ("UPDATE_INTERVAL", "-3", "seconds"),
        ("SAILPLANE_SWITCH", "sudo", "glexec or userns or none"),
        ("EXECUTE", "work", "absolute path"),
        ("SAILPLANE_MAX_OUTPUT_BYTES", "1 X", "bytes"),
        ("SAILPLANE_POOL_OWNER_FROM_PROXY", "maybe", "True or False"),
        ("STARTD_NAME", "a b", "letters"),
        ("NETWORK_INTERFACE", "eth0", "IP address"),
    ],
)
def test_a_wrong_value_names_knob_value_and_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_values({name: value}, source=None)
    assert (caught.value.knob, caught.value.value) == (name, value)
    assert allowed in caught.value.allowed
    assert name in str(caught.value)


def test_a_wrong_number_of_a_knob_that_htcondor_knows_is_ours_to_report(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NUM_CPUS = 'many'"):
        load(config(tmp_path, "NUM_CPUS = many\n"), {})


def test_a_malformed_file_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Line 2"):
        load(config(tmp_path, "LOG = /x\nthis is no setting\n"), {})


def test_a_file_that_is_not_there_or_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="this account can read"):
        load(tmp_path / "none.conf", {})
    file = tmp_path / "a file.conf"
    file.write_text("")
    with pytest.raises(SettingsError, match="letters, digits"):
        load(file, {})


@pytest.mark.parametrize(
    ("text", "bytes_"), [("0", 0), ("5", 5), ("2 K", 2048), ("2kb", 2048), ("1.5 M", 3 << 19), ("2 * 8", 16)]
)
def test_sizes(text: str, bytes_: int) -> None:
    assert knobs.size().parse(text) == bytes_


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("7 s", 7), ("2 min", 120), ("1h", 3600), ("0.5 d", 43200)])
def test_durations(text: str, value: float) -> None:
    assert knobs.seconds().parse(text) == value


@pytest.mark.parametrize("text", ["", "undefined", "error", '"7"', "true", "1/0", "7 7", "nan", "x"])
def test_what_is_no_number(text: str) -> None:
    for kind in (knobs.integer(), knobs.number()):
        with pytest.raises(ValueError):  # noqa: PT011  (parse has no words; the knob adds them)
            kind.parse(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("0.25", 0.25), ("1 / 4.0", 0.25), ("10", 10)])
def test_numbers(text: str, value: float) -> None:
    assert knobs.number(0, 10).parse(text) == value


@pytest.mark.parametrize("text", ["-0.1", "10.5", "1e400", "0.0 / 0.0", "2 s"])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (as above)
        knobs.number(0, 10).parse(text)


def test_a_macro_that_refers_to_itself_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.settingsreader.READ_CPU_S", 1)
    with pytest.raises(SettingsError, match="refer to themselves"):
        load(config(tmp_path, "NUM_CPUS = $(A)\nA = $(B)\nB = $(A)\n"), {})


def test_a_configuration_that_is_not_read_in_time_is_not_called_one_with_such_macros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.settingsreader.READ_DEADLINE_S", 0.001)
    with pytest.raises(SettingsError, match="is read within"):
        load(config(tmp_path, "NUM_CPUS = 1\n"), {})


def test_settings_whose_names_the_administrator_makes_up_are_read_by_family(tmp_path: Path) -> None:
    file = config(tmp_path, "SIZE = 2\nslot_type_1 = cpus=$(SIZE)\nMachine_Resource_tape = a, b\nOTHER_TYPE_1 = x\n")
    found = load(file, {}).family
    assert found["SLOT_TYPE_1"] == "cpus=2"
    assert found["MACHINE_RESOURCE_TAPE"] == "a, b"
    assert "OTHER_TYPE_1" not in found


def test_under_a_master_its_configuration_adds_to_htcondors_defaults(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        "LOCAL_DIR = /x\nLOG = $(LOCAL_DIR)/log\nLOCK = $(LOCAL_DIR)/lock\nCONDOR_HOST = cm.example\nNUM_CPUS = 1\n"
        "FILETRANSFER_PLUGINS = $(FILETRANSFER_PLUGINS) /x/plugin\nSTARTD.MEMORY = 7\nOTHER.NUM_CPUS = 3\n",
    )
    settings = load(file, {UNDER_MASTER: "OTHER"})
    assert (settings.num_cpus, settings.memory, settings.network_interface) == (3, 7, "*")
    assert (settings.collector_host, settings.sailplane_run_dir) == ("cm.example", Path("/x/lock/sailplane_other"))
    assert (settings.filetransfer_plugins or "").split() == [
        str(settings.sailplane_wrapper_dir / "curl_plugin.py"),
        "/x/plugin",
    ]
    plain = load(file, {})
    assert (plain.num_cpus, plain.memory, plain.network_interface) == (1, None, "127.0.0.1")
    with pytest.raises(SettingsError, match="-local-name"):
        load(file, {UNDER_MASTER: "a b"})
