"""A glidein script's file becomes settings, and nothing in it becomes more than one value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.configuration import GLIDEIN_SETTINGS, UNDER_MASTER, load
from pilot.glideinconfig import (
    BadGlideinConfig,
    Derived,
    Variable,
    configuration,
    derive,
    parse_values,
    parse_variables,
    quoted,
)
from pilot.glideinfile import write_settings
from pilot.settings import SettingsError

NOW = 1_000_000
PLAIN = {"GLEXEC", "STARTD_NAME"}


def life(**values: object) -> tuple[int, int]:
    texts = {f"GLIDEIN_{key}": str(value) for key, value in values.items()}
    found = derive(texts, [], PLAIN, now=NOW, dice=0.0).settings
    return int(found["GLIDEIN_ToRetire"]) - NOW, int(found["GLIDEIN_ToDie"]) - NOW


def test_lines_are_keys_and_values_and_the_last_counts() -> None:
    text = "# comment\n\nGLIDEIN_Site  CERN-PROD \nA 1\nEMPTY\nA 2 with words\n"
    assert parse_values(text) == {"GLIDEIN_Site": "CERN-PROD", "A": "2 with words", "EMPTY": ""}


@pytest.mark.parametrize("line", ["=1", "1A 2", "A=1", "\x00"])
def test_a_line_of_another_form_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(BadGlideinConfig, match="line 2"):
        parse_values(f"A 1\n{line}\n")


def test_condor_vars_say_what_becomes_of_a_key() -> None:
    text = """
# VarName             Type Default CondorName Req Export UserJobEnvName
GLIDEIN_Site           S    -       +          N   Y      OSG_SITE_NAME
GLEXEC_BIN             C    NONE    GLEXEC     N   N      -
SLOTS                  I    4       NUM_CPUS   N   Y      +
X                      S    -       XX         Y   N      @
"""
    variables = parse_variables(text)
    assert variables[0] == Variable("GLIDEIN_Site", "S", None, "GLIDEIN_Site", False, True, "OSG_SITE_NAME")
    derived = derive({"GLIDEIN_Site": 'A "B"', "X": "x y"}, variables, PLAIN, now=NOW, dice=0)
    assert derived == Derived(
        {"GLIDEIN_Site": '"A \\"B\\""', "GLEXEC": "NONE", "NUM_CPUS": "4", "XX": '"x y"'},
        {"GLIDEIN_Site": '"A \\"B\\""', "NUM_CPUS": "4"},
        {"OSG_SITE_NAME": 'A "B"', "SLOTS": "4", "XX": "x y"},
    )


@pytest.mark.parametrize(
    "line", ["A S - + N Y", "A Q - + N Y -", "A S - + X Y -", "A S - + N y -", "A-B S - + N Y -", "A S - $(B) N Y -"]
)
def test_a_bad_line_of_condor_vars_is_refused(line: str) -> None:
    with pytest.raises(BadGlideinConfig, match="condor_vars, line 1"):
        parse_variables(line)


def test_a_required_key_must_be_there() -> None:
    with pytest.raises(BadGlideinConfig, match="GLIDEIN_Entry"):
        derive({}, parse_variables("GLIDEIN_Entry S - + Y Y -"), PLAIN, now=NOW, dice=0)


def test_the_pilots_life_follows_glideinwms() -> None:
    assert life(Max_Walltime=172_800, Job_Max_Time=86_400, Graceful_Shutdown=120) == (85_910, 172_310)
    assert life(Retire_Time=3_600, Job_Max_Time=1_000) == (3_600, 4_600)
    assert life(Max_Walltime=7_200, Job_Max_Time=86_400) == (600, 6_710), "at least ten minutes for jobs"
    early = derive({"GLIDEIN_Retire_Time": "6000"}, [], PLAIN, now=NOW, dice=1.0).settings
    assert int(early["GLIDEIN_ToRetire"]) == NOW + 5_400


def test_times_that_the_script_has_worked_out_itself_stay() -> None:
    values = {"GLIDEIN_ToDie": "2000000", "GLIDEIN_ToRetire": "1900000", "GLIDEIN_Max_Walltime": "100"}
    found = derive(values, [], PLAIN, now=NOW, dice=0).settings
    assert (found["GLIDEIN_ToRetire"], found["GLIDEIN_ToDie"]) == ("1900000", "2000000")


@pytest.mark.parametrize("walltime", ["900", "soon", "-5", ""])
def test_a_pilot_that_could_take_no_job_is_refused(walltime: str) -> None:
    with pytest.raises(BadGlideinConfig):
        derive({"GLIDEIN_Max_Walltime": walltime}, [], PLAIN, now=NOW, dice=0)


def test_a_file_becomes_settings_attributes_and_job_variables(tmp_path: Path) -> None:
    (tmp_path / "condor_vars.lst").write_text("SITE_WORD S - + N Y SITE_WORD\nGLEXEC_BIN C - GLEXEC N N -\n")
    (tmp_path / "glidein_config").write_text(
        "CONDOR_VARS_FILE condor_vars.lst\nGLIDEIN_Site $(LOG) 'quoted' \"here\" \\\nSITE_WORD it's $HOME\n"
        "GLEXEC_BIN /opt/glexec\nGLIDEIN_CPUS 3\nGLIDEIN_MaxMemMBs auto\nGLIDEIN_ToDie 5\n"
    )
    made = write_settings(tmp_path / "glidein_config")
    read = load(None, {GLIDEIN_SETTINGS: str(made)})
    assert str(read.glexec) == "/opt/glexec"
    assert (read.num_cpus, read.memory, read.glidein_todie) == (3, None, 5)
    assert read.attributes["GLIDEIN_Site"] == quoted("$(LOG) 'quoted' \"here\" \\")
    assert dict(read.starter_job_environment)["SITE_WORD"] == "it's $HOME"
    assert oct(made.stat().st_mode & 0o777) == "0o600"


def test_what_config_says_wins(tmp_path: Path) -> None:
    (tmp_path / "glidein_config").write_text("GLIDEIN_CPUS 3\n")
    (tmp_path / "own.conf").write_text("NUM_CPUS = 5\n")
    made = write_settings(tmp_path / "glidein_config")
    assert load(tmp_path / "own.conf", {GLIDEIN_SETTINGS: str(made)}).num_cpus == 5


VALUES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=40
)


@settings(max_examples=25, deadline=None)
@given(VALUES, VALUES)
def test_no_value_becomes_another_setting(tmp_path_factory: pytest.TempPathFactory, site: str, word: str) -> None:
    where = tmp_path_factory.mktemp("glidein")
    (where / "vars").write_text("WORD S - + N Y WORD\n")
    (where / "glidein_config").write_text(f"CONDOR_VARS_FILE vars\nGLIDEIN_Site x{site}\nWORD y{word}\n")
    made = write_settings(where / "glidein_config")
    read = load(None, {GLIDEIN_SETTINGS: str(made)})
    assert set(read.attributes) == {"GLIDEIN_Site", "WORD"}
    assert str(read.num_cpus) == "None"


@pytest.mark.parametrize("name", ["Name", "ClaimId", "state", "_condor_PrivX", "Requirements"])
def test_an_ads_own_attributes_are_not_to_be_set(name: str, tmp_path: Path) -> None:
    (tmp_path / "c").write_text(f'STARTD_ATTRS = {name}\n{name} = "mine"\n')
    with pytest.raises(SettingsError, match="STARTD_ATTRS"):
        load(tmp_path / "c", {})


def test_start_and_rank_are_there_already(tmp_path: Path) -> None:
    """Glidein pools name them in STARTD_ATTRS."""
    (tmp_path / "c").write_text("STARTD_ATTRS = START, RANK\nSTART = x > 1\n")
    read = load(tmp_path / "c", {})
    assert (read.attributes, read.start) == ({}, "x > 1")


def test_an_attribute_must_be_an_expression(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("STARTD_ATTRS = Site, Fine\nSite = not a site\nFine = Cpus + 1\n")
    with pytest.raises(SettingsError, match="Site"):
        load(tmp_path / "c", {})


def test_a_file_that_is_too_large_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadGlideinConfig, match="cannot be read"):
        write_settings(tmp_path / "nowhere")
    (tmp_path / "big").write_bytes(b"A 1\n" * 300_000)
    with pytest.raises(BadGlideinConfig, match="more than"):
        write_settings(tmp_path / "big")
    assert os.listdir(tmp_path) == ["big"]


def test_nothing_said_gives_no_lines() -> None:
    assert configuration(derive({}, [], PLAIN, now=NOW, dice=0)) == []


def test_under_a_master_a_setting_of_the_startds_own_adds_to_the_common_one(tmp_path: Path) -> None:
    """As glideinWMS writes it."""
    (tmp_path / "c").write_text(
        "STATISTICS_TO_PUBLISH_LIST = DEFAULT\n"
        "STARTD.STATISTICS_TO_PUBLISH_LIST = $(STATISTICS_TO_PUBLISH_LIST) JobBusyTime\n"
        "STARTD.STARTD_JOB_ATTRS = $(STARTD_JOB_ATTRS) VO\n"
    )
    read = load(tmp_path / "c", {UNDER_MASTER: "STARTD"})
    assert (read.statistics_to_publish_list, read.startd_job_attrs) == ("DEFAULT JobBusyTime", ("VO",))
