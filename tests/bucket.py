"""A stand-in for Google Cloud Storage: one bucket in memory, behind the addresses that the real clients call.

TensorFlow's file system (epath, TensorBoard's files), TensorStore (Orbax's arrays) and Google's own client (which Orbax
asks what kind of bucket it is) run as they are: environment variables lead them here. TensorFlow's cannot be given an
address, so it comes through a proxy, which ends its TLS under a certificate of our own.
"""

import base64
import datetime
import email
import hashlib
import ipaddress
import json
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAME = "bucket"


class Bucket:
    """The objects of `gs://bucket`, by name, and how to reach them.

    Attributes:
      objects: content by name; only whole objects are ever here.
      environment: variables for the process that is to use it.
    """

    def __init__(self, server: ThreadingHTTPServer, certificate: Path):
        address = f"127.0.0.1:{server.server_port}"
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.uploads: dict[str, str] = {}
        self.lock = threading.RLock()
        self.environment = {
            "https_proxy": f"http://{address}",
            "CURL_CA_BUNDLE": str(certificate),
            "TENSORSTORE_GCS_HTTP_URL": f"http://{address}",
            "STORAGE_EMULATOR_HOST": f"http://{address}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
        }

    def put(self, name: str, content: bytes) -> dict:
        with self.lock:
            self.objects[name] = content
            self.generations[name] = max(self.generations.values(), default=0) + 1
            return self.describe(name)

    def describe(self, name: str) -> dict:
        generation = str(self.generations[name])
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": NAME,
            "size": str(len(self.objects[name])),
            "generation": generation,
            "metageneration": "1",
            "updated": f"2026-01-01T00:00:{int(generation) % 60:02d}.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(self.objects[name]).digest()).decode(),
        }

    def listed(self, prefix: str = "", delimiter: str = "", startOffset: str = "", endOffset: str = "", **_) -> dict:
        """Objects and, up to the delimiter, directories below a prefix, as the parameters of the request name them."""
        with self.lock:
            names = sorted(name for name in self.objects if name.startswith(prefix) and name >= startOffset)
            names = [name for name in names if not endOffset or name < endOffset]
            ends = {name: name.find(delimiter, len(prefix)) if delimiter else -1 for name in names}
            prefixes = sorted({name[: end + 1] for name, end in ends.items() if end >= 0})
            return {"items": [self.describe(name) for name in names if ends[name] < 0], "prefixes": prefixes}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):  # A client that was killed hangs up.
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: Bucket
    tls: ssl.SSLContext

    def log_message(self, *args) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def answer(self, status: int, content: bytes | dict = b"", **headers: str) -> None:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def respond(self) -> None:
        body = self.body()
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        with self.bucket.lock:
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method.split():
                    return handle(self, *map(unquote, match.groups()), query=query, body=body)
        self.answer(400, f"the stand-in does not know {self.command} {self.path}".encode())

    do_GET = do_POST = do_PUT = do_DELETE = respond

    def about(self, *, query, body) -> None:
        self.answer(200, {"kind": "storage#bucket", "name": NAME, "location": "US", "locationType": "region"})

    def elsewhere(self, *, query, body) -> None:
        self.answer(403)

    def layout(self, *, query, body) -> None:
        self.answer(200, {"kind": "storage#storageLayout", "bucket": NAME, "location": "US"})

    def list(self, *, query, body) -> None:
        self.answer(200, self.bucket.listed(**query))

    def matches(self, name: str, query: dict) -> bool:
        """Whether the object is of the generation that the request asks for (0: absent)."""
        here = self.bucket.generations[name] if name in self.bucket.objects else 0
        return int(query.get("ifGenerationMatch", here)) == here

    def get(self, name: str, *, query, body) -> None:
        content = self.bucket.objects.get(name)
        if content is None:
            return self.answer(404)
        if not self.matches(name, query):
            return self.answer(412)
        if self.path.startswith("/storage/v1") and query.get("alt") != "media":
            return self.answer(200, self.bucket.describe(name))
        headers = {"x_goog_generation": str(self.bucket.generations[name])}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self.answer(200, content, **headers)
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return self.answer(416)
        shown = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], Content_Range=shown, **headers)

    def upload(self, *, query, body) -> None:
        if query["uploadType"] == "multipart":  # as Google's own client sends it: what is said of the object, then it
            content_type = self.headers["Content-Type"].encode()
            message = email.message_from_bytes(b"Content-Type: " + content_type + b"\r\n\r\n" + body)
            described, content = (part.get_payload(decode=True) for part in message.get_payload())
            query, body = query | json.loads(described), content
        name = query["name"]
        if not self.matches(name, query):
            return self.answer(412)
        if query["uploadType"] == "resumable":
            session = str(len(self.bucket.uploads))
            self.bucket.uploads[session] = name
            return self.answer(200, Location=f"https://www.googleapis.com/session/{session}")
        self.answer(200, self.bucket.put(name, body))

    def session(self, number: str, *, query, body) -> None:
        """Content of a resumable upload: all at once, as TensorFlow sends it."""
        assert self.headers.get("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}").startswith("bytes 0-")
        self.answer(200, self.bucket.put(self.bucket.uploads[number], body))

    def rewrite(self, name: str, target: str, *, query, body) -> None:
        if name not in self.bucket.objects:
            return self.answer(404)
        self.answer(200, {"done": True, "resource": self.bucket.put(target, self.bucket.objects[name])})

    def delete(self, name: str, *, query, body) -> None:
        if name not in self.bucket.objects:
            return self.answer(404)
        if not self.matches(name, query):
            return self.answer(412)
        del self.bucket.objects[name]
        self.answer(204)


ROUTES = (
    ("POST", f"/upload/storage/v1/b/{NAME}/o", Handler.upload),
    ("PUT", r"/session/(\d+)", Handler.session),
    ("GET", f"/storage/v1/b/{NAME}", Handler.about),
    ("GET", f"/storage/v1/b/{NAME}/storageLayout", Handler.layout),
    ("GET", f"/storage/v1/b/{NAME}/o", Handler.list),
    ("POST", f"/storage/v1/b/{NAME}/o/([^/]+)/rewriteTo/b/{NAME}/o/([^/]+)", Handler.rewrite),
    ("GET", f"(?:/download)?/storage/v1/b/{NAME}/o/([^/]+)", Handler.get),
    ("DELETE", f"/storage/v1/b/{NAME}/o/([^/]+)", Handler.delete),
    ("GET", f"/{NAME}/(.+)", Handler.get),
    ("GET POST", f"/(?:(?:up|down)load/)?storage/v1/b/(?!{NAME}/).*", Handler.elsewhere),
)


def _certify(directory: Path) -> Path:
    """Writes a certificate, with its key, that stands for Google's hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    hosts = [x509.DNSName("*.googleapis.com"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, pem = directory / "certificate.pem", serialization.Encoding.PEM
    plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, *plain))
    return path


@contextmanager
def serve(directory: Path) -> Iterator[Bucket]:
    """Serves an empty bucket from threads of this process; `directory` gets a certificate."""
    certificate = _certify(directory)
    handler = type("BucketHandler", (Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
    handler.bucket = Bucket(server, certificate)
    handler.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    handler.tls.load_cert_chain(certificate)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
