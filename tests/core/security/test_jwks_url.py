"""Which addresses AUTH_JWKS_URL may have."""

import pytest

from app.core.security.jwks import check_jwks_url
from tests.support import short


@pytest.mark.parametrize(
    "url",
    [
        "https://auth.example.com:8443/.well-known/jwks.json?version=2",
        "https://[2001:db8::1]:8443/jwks",
        "HTTPS://AUTH_1.EXAMPLE.COM",
        "http://127.0.0.1:3000/api/auth/jwks",
        "http://[::1]:3000/jwks",
        "http://LOCALHOST/jwks",
        *("http://frontend:3000/api/auth/jwks", "HTTP://Better_Auth-1/jwks", "http://auth.shop.svc:8080/jwks"),
        *("http://auth-0.auth.2048.svc.cluster.local/jwks", "http://auth.shop.svc.cluster.local./jwks"),
    ],
)
def test_https_urls_and_http_urls_of_this_machine_and_its_cluster_are_accepted(url: str) -> None:
    assert check_jwks_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "//auth.example.com/jwks", "file://localhost/etc/passwd", "ftp://127.0.0.1/jwks"),
        *("https:/auth.example.com/jwks", "https://:443/jwks", "https://[::1/jwks", "https://[auth.example.com]/jwks"),
        *("https://auth.example.com:0/jwks", "https://auth.example.com:65536/jwks", "https://@auth.example.com/jwks"),
        *("https://ada:s3cret@auth.example.com/jwks", "http://ada:s3cret@127.0.0.1/jwks"),
        *("http://auth.example.com/jwks", "http://127.1/jwks", "http://auth.example.com#localhost"),
        *("http://frontend./jwks", "http://auth.shop.svc./jwks", "http://svc.evil.example/jwks", "http://.svc/jwks"),
        *("http://auth.svc.evil.example", "http://auth.svc.cluster.local.evil.example", "http://auth.cluster.local"),
        *("http://2130706433/jwks", "http://0x7f000001/jwks", "http://017700000001/jwks", "http://0/jwks"),
        *("http://ada:s3cret@frontend/jwks", "http://frontend@evil.example/jwks", "http://evil.example\\@frontend"),
        *("http://fr\u043entend/jwks", "http://\uff46rontend/jwks", "http://frontend\u3002/jwks", "http://[::ffff:1]"),
        *("http://host.docker.internal:3000/jwks", "http://frontend%2eevil.example/jwks"),
        *("http://localhost\\.example.com", "http:/localhost/jwks", "http://local\u200bhost.example.com/jwks"),
        *(f"https://a.example/{character}jwks" for character in " \n\t\0\xa0"),
        *(" https://a.example/jwks", "https://a .example/jwks", "https://a.example/jwks\n"),
    ],
    ids=short,
)
def test_a_malformed_url_a_user_name_and_http_to_another_machine_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must look like https://.*; http only on a loopback address, ") as caught:
        check_jwks_url(url)

    assert "s3cret" not in str(caught.value)
