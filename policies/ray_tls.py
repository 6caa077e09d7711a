"""Keys for Ray's own connections, made anew at each start.

Serve's replicas accept pickled calls on ports of all interfaces, and Ray's token does not cover those. With TLS and
client certificates nobody without this start's key can say anything to them.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID_FOR = datetime.timedelta(days=3650)


def ray_tls_environment(folder: Path) -> dict[str, str]:
    """Write one self-signed certificate, which is also its own authority, and its key; returns what Ray reads."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "learner-hub")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(_names_of_this_machine()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256()))
    folder.mkdir(mode=0o700, exist_ok=True)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    for path, content in ((certificate_file, certificate.public_bytes(serialization.Encoding.PEM)),
                          (key_file, private)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": str(certificate_file), "RAY_TLS_SERVER_KEY": str(key_file),
            "RAY_TLS_CA_CERT": str(certificate_file)}


def _names_of_this_machine() -> list[x509.GeneralName]:
    addresses = {address.address.split("%")[0] for found in psutil.net_if_addrs().values() for address in found
                 if address.family in (socket.AF_INET, socket.AF_INET6)}
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName(socket.gethostname())]
    return names + [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(addresses)]
