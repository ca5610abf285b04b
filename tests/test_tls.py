"""TLS on real connections: who can connect, what a client certificate allows, new certificates without a restart."""

from __future__ import annotations

import shutil
import socket
import ssl

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import running

from protos.imageretrieval.v1 import (
    index_service_pb2,
    index_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.settings_sources import SettingsError
from serving.tls import CertificateFiles, TlsSettings

SEARCH = search_service_pb2.SearchRequest(query=query_pb2.Query(text="red"), page_size=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture
def files(authority, tmp_path):
    """The server's certificate and key, to be replaced, and the settings that name them."""
    certificate, key = authority.issue("server")
    paths = tmp_path / "server.pem", tmp_path / "server.key"
    shutil.copy(certificate, paths[0])
    shutil.copy(key, paths[1])
    return paths


def flags(files, *others):
    return ("--tls-certificate", str(files[0]), "--tls-key", str(files[1]), *others)


def channel(address, authority, pair=(None, None)):
    certificate, key = (path and path.read_bytes() for path in pair)
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, certificate)
    # Not the connection of another channel to the same address.
    return grpc.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def search(opened):
    return search_service_pb2_grpc.SearchServiceStub(opened).Search(SEARCH, timeout=30, wait_for_ready=True)


def wait_until_ready(opened):
    for answer in health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=30):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return


def presented(address):
    """The certificate that a new connection gets, in DER."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 30) as raw, context.wrap_socket(raw) as connection:
        return connection.getpeercert(binary_form=True)


def der(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_connections_are_encrypted_and_new_certificates_are_taken_over_without_a_restart(index, authority, files):
    with running(index, *flags(files)) as (_, address), channel(address, authority) as old:
        wait_until_ready(old)
        assert search(old).hits
        with grpc.insecure_channel(address) as plain, pytest.raises(grpc.RpcError):
            search_service_pb2_grpc.SearchServiceStub(plain).Search(SEARCH, timeout=5)
        first = der(files[0])
        assert presented(address) == first

        certificate, key = authority.issue("renewed")
        shutil.copy(certificate, files[0])  # the key does not belong to it yet
        assert presented(address) == first
        assert search(old).hits
        shutil.copy(key, files[1])
        assert presented(address) == der(certificate) != first
        assert search(old).hits  # on its old connection
        with channel(address, authority) as new:
            assert search(new).hits

        files[0].unlink()
        assert presented(address) == der(certificate)


def test_mutual_tls_lets_known_certificates_in_with_their_scopes(index, authority, files, tmp_path):
    config = tmp_path / "server.toml"
    config.write_text('[access.certificates]\nreader = ["search"]\n"job.example.org" = ["search", "admin"]\n')
    others = Authority(tmp_path, "others")
    mutual = flags(files, "--tls-client-ca", str(authority.certificate), "--config", str(config))
    with running(index, *mutual) as (_, address), channel(address, authority, authority.issue("reader")) as reader:
        wait_until_ready(reader)
        assert search(reader).hits
        with pytest.raises(grpc.RpcError) as refusal:
            index_service_pb2_grpc.IndexServiceStub(reader).ListSnapshots(index_service_pb2.ListSnapshotsRequest())
        assert refusal.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
        with channel(address, authority, authority.issue("by-name", "DNS:job.example.org")) as job:
            assert search(job).hits
        with channel(address, authority, authority.issue("stranger")) as stranger, pytest.raises(grpc.RpcError) as no:
            search(stranger)
        assert no.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for pair in ((None, None), others.issue("reader")):
            with channel(address, authority, pair) as outsider, pytest.raises(grpc.RpcError) as no:
                search_service_pb2_grpc.SearchServiceStub(outsider).Search(SEARCH, timeout=5)
            assert no.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("what", ["absent", "not PEM", "of another key", "of no authority"])
def test_files_that_cannot_be_used_stop_the_start(authority, files, what):
    certificate, key = files
    client_ca = None
    if what == "absent":
        certificate.unlink()
    elif what == "not PEM":
        certificate.write_text("certificate")
    elif what == "of another key":
        shutil.copy(authority.key, key)
    else:
        client_ca = key
    with pytest.raises(SettingsError):
        CertificateFiles(TlsSettings(certificate, key, client_ca))
