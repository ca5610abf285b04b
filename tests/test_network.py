"""Addresses are split at one place, IPv6 too, and what only looks like one is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from serving.network import host_and_port, host_of, is_loopback, join_address, limited_network, split_address

ADDRESSES = {
    "127.0.0.1:50051": ("127.0.0.1", 50051),
    "[::1]:0": ("::1", 0),
    "[2001:db8::1]:65535": ("2001:db8::1", 65535),
    "[fe80::1%eth0]:1": ("fe80::1%eth0", 1),
    "search.example.org:443": ("search.example.org", 443),
}
NO_ADDRESSES = [
    *("", ":", ":1", "[]:1", "8080", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1"),
    *("::1:50051", "[::1]", "[::1:50051", "::1]:50051", "[localhost]:1", "[127.0.0.1]:1", "a:b:1", "ray://head:1"),
    *("localhost:٣", "localhost:" + "1" * 5_000),
]


@pytest.mark.parametrize(("address", "parts"), ADDRESSES.items())
def test_an_address_is_a_host_and_a_port(address, parts):
    assert host_and_port(address) == split_address(address, "--address", "") == parts
    assert join_address(*parts) == address
    assert host_of(address) == parts[0]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_refused_by_the_name_of_its_flag(text):
    assert host_and_port(text) is None
    with pytest.raises(UserError, match="--address 127.0.0.1:1"):
        split_address(text, "--address", "127.0.0.1:1")


@given(st.text(st.sampled_from("[]:.%01a"), max_size=12))
def test_any_text_is_refused_or_comes_back_as_it_was(text):
    parts = host_and_port(text)
    assert parts is None or host_and_port(join_address(*parts)) == parts


@pytest.mark.parametrize(
    ("authority", "host"),
    [("localhost", "localhost"), ("[::1]", "::1"), ("localhost:", "localhost"), ("", ""), ("::1", ""), ("[x]", "")],
)
def test_who_an_http_request_is_for_may_have_no_port(authority, host):
    assert host_of(authority) == host


def test_loopback_addresses_are_known_and_names_are_not_trusted():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.0.2.1", "localhost.example.org")))


def test_a_customers_ipv6_addresses_are_one_caller():
    assert limited_network("2001:db8:1:2:3::4") == limited_network("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert limited_network("2001:db8:1:3::1") != limited_network("2001:db8:1:2::1")
    assert limited_network("::ffff:192.0.2.1") == "192.0.2.1"
    assert limited_network("fe80::1%eth0") == "fe80::/64"
    assert [limited_network(peer) for peer in ("192.0.2.1", "unix:/run/x", "")] == ["192.0.2.1", "unix:/run/x", ""]
