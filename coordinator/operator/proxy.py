"""Reverse proxy (nginx) in front of SuperLink: lets other machines reach the sites' API of SuperLink's port only.

SuperLink's other APIs ask for no credentials. Allowed requests are listed, and matched against the request as it was
sent: nginx's own view of a path, with `..` and escapes resolved, is not the one that SuperLink would get.
"""

import grp
import os
import pwd
import shutil
from pathlib import Path

from fedpp.errors import ConfigError
from fedpp.files import replace

from .address import Address
from .coordinator_certificates import Given

NAME = "nginx.conf"
PLACES = ("/usr/sbin", "/usr/local/sbin")  # not on every user's PATH
BODY = "16m"  # Flower cuts arrays into objects of 5 MiB, and sends one object a request

CONFIGURATION = """\
# Written by `python -m coordinator up` at each start: changes are lost.
daemon off;
{user}
worker_processes 2;
pid nginx.pid;
error_log stderr error;

events {{
    worker_connections 1024;
}}

http {{
    access_log off;
    server_tokens off;
    default_type text/plain;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    uwsgi_temp_path temp-uwsgi;
    scgi_temp_path temp-scgi;

    # SuperLink reads a request before it authenticates it.
    client_max_body_size {body};
    # No request or reply is written to a disk.
    proxy_request_buffering off;
    proxy_buffering off;
    client_body_timeout 300s;
    send_timeout 300s;
    proxy_connect_timeout 10s;
    proxy_send_timeout 300s;
    proxy_read_timeout 300s;

    map "$request_method $request_uri" $passes {{
        default 0;
        "~^POST /v1/fleet/[a-z-]+\\z" 1;
    }}

    upstream superlink {{
        server {superlink};
        keepalive 64;
        keepalive_timeout 3s;  # SuperLink closes after 5 s: no request must run into that
    }}

    server {{
        listen {listen} ssl;
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sites:1m;
        ssl_session_tickets off;

        if ($passes = 0) {{
            return 403;
        }}
        # Requests that nginx itself rejects, such as a path that leaves the root.
        error_page 400 405 414 494 497 =403 /refused;
        location = /refused {{
            internal;
            return 403;
        }}
        location / {{
            proxy_pass https://superlink;
            proxy_http_version 1.1;
            proxy_set_header Host localhost;
            proxy_set_header Connection "";
            # SuperLink would log these headers, in which a site may claim anything.
            proxy_set_header X-Forwarded-For "";
            proxy_set_header X-Forwarded-Proto "";
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate ca.pem;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
        }}
    }}
}}
"""


def program() -> str:
    """Return nginx's path; raise `ConfigError` if it is not installed."""
    found = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *PLACES)))
    if found is None:
        raise ConfigError(
            "--listen needs nginx, which is not installed: install it (on Debian, apt-get install nginx-light)"
        )
    return found


def command(nginx: str, folder: Path, *, listen: Address, upstream: Address, shown: Given, ca: Path) -> list[str]:
    """Write nginx's configuration and links to its certificates into a folder; return the command that runs it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, path in (("server.pem", shown.certificate), ("server.key", shown.key), ("ca.pem", ca)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())  # in the configuration a path's `$` could not be quoted
    content = CONFIGURATION.format(user=_user(), body=BODY, superlink=upstream, listen=listen)
    replace(folder / NAME, content.encode())
    return [nginx, "-p", f"{folder}/", "-c", NAME, "-e", "stderr"]


def _user() -> str:
    """Return the directive that makes nginx's workers the user nobody, if their master is root."""
    if os.geteuid() != 0:
        return ""
    nobody = pwd.getpwnam("nobody")
    return f"user nobody {grp.getgrgid(nobody.pw_gid).gr_name};"
