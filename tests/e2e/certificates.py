"""Authorities and certificates for tests of TLS."""
import subprocess
import tempfile
from pathlib import Path


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)


class Folder:
    """Certificates of the openssl command, in files that are made anew."""

    def __init__(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name)

    def __truediv__(self, name):
        return self.path / name

    def authority(self, name):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2, "-subj",
                f"/CN={name}", "-keyout", self / f"{name}.key", "-out", self / f"{name}.pem")

    def make(self, name, authority):
        """A certificate for 127.0.0.1, in place of what is there."""
        fresh = self / f"{name}.fresh"
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-addext",
                "subjectAltName=IP:127.0.0.1", "-keyout", f"{fresh}.key", "-out", f"{fresh}.csr")
        openssl("x509", "-req", "-in", f"{fresh}.csr", "-days", 2, "-CA", self / f"{authority}.pem", "-CAkey",
                self / f"{authority}.key", "-CAcreateserial", "-copy_extensions", "copy", "-out", f"{fresh}.pem")
        Path(f"{fresh}.key").rename(self / f"{name}.key")
        Path(f"{fresh}.pem").rename(self / f"{name}.pem")
