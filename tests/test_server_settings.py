"""Settings from file, environment and flags: which wins, what is refused and where it stands, what is safe."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from chain import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from serving.caller_limits import LimitSettings
from serving.server_settings import PREFIX, ServerSettings, read_arguments
from serving.settings_sources import SettingsError, read_settings, settings_of, to_toml
from serving.tls import TlsSettings


def read(*argv, **environment):
    return read_arguments([str(word) for word in argv], environment)[0]


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "server.toml").write_text(text)
        return tmp_path / "server.toml"

    return write


def test_flags_come_before_the_environment_before_the_file_before_defaults(file):
    config = file("grace = 1\nbundle = 'of the file'\nstore = 'of the file'\n[limits]\nrate = 1\nburst = 1\n")
    environment = {"IMAGE_SEARCH_STORE": "of the environment", "IMAGE_SEARCH_LIMITS_RATE": "2"}
    read_ = read("--config", config, "--limits-rate", 3, "--bundle", "of a flag", **environment)
    assert (read_.bundle, read_.store, read_.grace) == ("of a flag", "of the environment", 1.0)
    assert read_.limits == dataclasses.replace(LimitSettings(), rate=3.0, burst=1.0)
    assert read(IMAGE_SEARCH_CONFIG=str(config)).bundle == "of the file"


def test_paths_in_a_file_are_relative_to_it_and_all_others_to_where_one_is(file):
    config = file("index = 'index'\n[tls]\ncertificate = '/etc/a.pem'\nkey = 'a.key'\n")
    assert read("--config", config).index == config.parent / "index"
    assert read("--config", config).tls == TlsSettings(Path("/etc/a.pem"), config.parent / "a.key")
    assert read("--config", config, "--index", ".").index == Path()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grase = 1", ("grase in {file}", "did you mean grace?")),
        ("[limits]\nrtae = 1", ("limits.rtae in {file}", "did you mean limits.rate?")),
        ("grace = 'long'", ("a number for grace", "'long'", "in {file}")),
        ("grace = true", ("a number for grace", "True")),
        ("grace = -1", ("grace of at least 0", "-1")),
        ("grace = nan", ("a number for grace",)),
        ("insecure = 1", ("true or false for insecure",)),
        ("index = 7", ("a path for index",)),
        ("tls = 'yes'", ("a table [tls]", "'yes'")),
        ("[access.certificates]\njob = 'write'", ("a list of texts for each name for access.certificates",)),
        ("[access.certificates]\njob = ['wirte']", ("'wirte' for 'job'", "access.certificates")),
        ("grace = = 1", ("in TOML", "line 1")),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(file, text, told):
    config = file(text)
    with pytest.raises(SettingsError) as refusal:
        read("--config", config)
    for words in told:
        assert words.format(file=config) in str(refusal.value)


@pytest.mark.parametrize(
    ("argv", "environment", "told"),
    [
        ((), {"IMAGE_SEARCH_GRACY": "1"}, "IMAGE_SEARCH_GRACY in the environment; did you mean IMAGE_SEARCH_GRACE?"),
        ((), {"IMAGE_SEARCH_INSECURE": "maybe"}, "'maybe'; correct it in the environment, IMAGE_SEARCH_INSECURE"),
        (("--limits-concurrent-calls", "1.5"), {}, "'1.5'; correct it after --limits-concurrent-calls"),
        (("--limits-callers", "0"), {}, "limits.callers of at least 1"),
        (("--config", "/nowhere/server.toml"), {}, "/nowhere/server.toml (No such file or directory)"),
        (("--tls-certificate", "a.pem"), {}, "give both"),
        (("--tls-client-ca", "a.pem"), {}, "tls.certificate and tls.key with tls.client_ca"),
    ],
)
def test_what_is_wrong_elsewhere_is_named_with_its_place(argv, environment, told):
    with pytest.raises(SettingsError) as refusal:
        read(*argv, **environment)
    assert told in str(refusal.value)


def test_what_kubernetes_says_of_a_service_of_this_name_is_no_setting():
    told = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT_GRPC": "50051",
        "PORT": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP": "",
    }
    assert read(**{f"IMAGE_SEARCH_{name}": value for name, value in told.items()}) == ServerSettings()


TLS = ("--tls-certificate", "a.pem", "--tls-key", "a.key")
TOKENS = ("--access-tokens", "tokens.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "search.example.org", "localhost.example.org"])
@pytest.mark.parametrize("flag", ["--address", "--admin-address"])
def test_a_public_address_is_refused_without_tls_and_tokens(host, flag):
    for given_, lacking in [((), "none of TLS and tokens"), (TLS, "no tokens"), (TOKENS, "no TLS")]:
        with pytest.raises(SettingsError, match=lacking):
            read(flag, f"{host}:50051", *given_)
    for given_ in [(*TLS, *TOKENS), ("--insecure",)]:
        assert read(flag, f"{host}:50051", *given_)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_a_loopback_address_needs_nothing(host):
    assert read("--address", f"{host}:0").admin_on_main
    assert not read("--address", f"{host}:0", "--admin-address", f"{host}:0").admin_on_main


def test_the_page_stays_on_a_loopback_address_because_it_is_plain_http():
    with pytest.raises(SettingsError, match="a loopback address for the page"):
        read("--http-address", "0.0.0.0:8080", *TLS, *TOKENS)
    assert read("--http-address", "0.0.0.0:8080", "--insecure")
    assert read("--http-address", "[::1]:8080")
    with pytest.raises(UserError, match="--http-address 127.0.0.1:50051"):
        read("--http-address", "8080", "--insecure")
    assert read("--http-origins", "https://a.example, https://b.example").http.origins == (
        "https://a.example",
        "https://b.example",
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "collector.example.org"])
def test_metrics_stay_on_a_loopback_address_unless_others_are_to_read_them(host):
    for given_ in ((), (*TLS, *TOKENS)):
        with pytest.raises(SettingsError, match=r"a loopback address for metrics.*--observe-metrics-public"):
            read("--observe-metrics-address", f"{host}:9090", *given_)
    for allowed in ("--insecure", "--observe-metrics-public"):
        assert read("--observe-metrics-address", f"{host}:9090", allowed)
    assert read("--observe-metrics-address", "[::1]:9090")
    with pytest.raises(SettingsError):  # which says nothing of the other addresses
        read("--observe-metrics-public", "--address", f"{host}:50051")


def test_operators_do_not_call_at_a_public_address_unless_told():
    assert not read("--address", "0.0.0.0:50051", "--insecure").admin_on_main


def test_certificates_of_clients_without_permissions_would_lock_everybody_out(file):
    config = file("[tls]\ncertificate='a'\nkey='b'\nclient_ca='c'\n")
    with pytest.raises(SettingsError, match="tls.client_ca alone"):
        read("--config", config)
    with pytest.raises(SettingsError, match="tls.client_ca with access.certificates"):
        read("--config", file("[access.certificates]\njob = ['write']\n"))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "received neither"),
        (("--index", "a", "--store", "milvus://b"), "received both"),
        (("--store", "milvus://b"), "--bundle with --store"),
    ],
)
def test_a_server_is_told_what_to_serve(argv, told):
    with pytest.raises(UserError) as refusal:
        read(*argv).check_source()
    assert told in str(refusal.value)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PATH = st.none() | TEXT.filter(lambda text: text and "\0" not in text).map(Path)
VALUES = {
    "index": PATH, "store": TEXT, "bundle": TEXT, "insecure": st.booleans(), "grace": st.floats(0, 1e9),
}  # fmt: skip


@settings(max_examples=25)
@given(values=st.fixed_dictionaries(VALUES), names=st.dictionaries(TEXT, st.lists(st.just("search"))))
def test_what_is_printed_reads_back_as_it_was(values, names, tmp_path_factory):
    tls = TlsSettings(Path("/a"), Path("/b"), Path("/c")) if names else TlsSettings()
    access = dataclasses.replace(ServerSettings().access, certificates=names)
    given_ = ServerSettings(**values, tls=tls, access=access)
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_text(to_toml(given_), "utf-8")
    again = read_settings(ServerSettings, file, {}, PREFIX, {})
    if given_.index is not None:  # a relative path counts from the file
        given_ = dataclasses.replace(given_, index=file.parent / given_.index)
    assert again == given_


def test_print_config_prints_what_is_in_effect(capsys, monkeypatch):
    from serving.server import main

    monkeypatch.setenv("IMAGE_SEARCH_GRACE", "3")
    assert main(["--print-config", "--limits-rate", "50"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert (printed["grace"], printed["limits"]["rate"], printed["address"]) == (3.0, 50.0, "127.0.0.1:50051")


def test_settings_in_documents_are_settings(file):
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert read("--config", file(example)).access.asked_for


def test_the_settings_to_begin_with_are_safe_for_others_and_where_the_unit_looks(file):
    deploy = ROOT / "deploy"
    given_ = read("--config", deploy / "server.toml")
    assert given_.access.asked_for
    assert not given_.admin_on_main
    unit = (deploy / "image-search.service").read_text()
    assert all(path in unit for path in (str(given_.index), str(given_.tls.key.parent / "server.toml")))


def test_every_setting_is_documented():
    """In a row of a table, with the default and the help that the command line gives."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    for known in settings_of(ServerSettings):
        assert f"| `{known.name}` | {shown(known.default)} | {known.unit} | {known.help} |" in page, known.name
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(settings_of(ServerSettings)))


def shown(default):
    return (
        "" if default in (None, "", {}, ()) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    )
