"""Other programs as reverse proxies: one thread each, on the shadow's core, keeping their connections to the upstream.

nginx and Envoy can also mirror what passes to a second server (`mirror_to`, a port).
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from benchmarks import harness

START_S = 20


class ReverseProxy(harness.Process):
    """Listens on `port` when it is made.

    Raises:
        NotRun: `program` is not on PATH.
    """

    program: str

    def __init__(self, directory: Path, upstream: int, *, mirror_to: int | None = None) -> None:
        path = harness.require_program(self.program)
        directory.mkdir(exist_ok=True)
        [self.port] = harness.free_ports(1)
        options = self._options(directory, upstream, mirror_to)
        super().__init__(harness.pinned(harness.SHADOW_CORE, path, *options), directory / "stderr")
        self._wait_listening()

    def _options(self, directory: Path, upstream: int, mirror_to: int | None) -> list[str | Path]:
        """Writes what configuration it needs, and returns the command line."""
        raise NotImplementedError

    def _wait_listening(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection((harness.LOOPBACK, self.port)).close()
                return
            except ConnectionRefusedError:  # noqa: PERF203  (it is the loop)
                if self.popen.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.popen.args} does not listen: {self.log.read_text()}") from None
                time.sleep(0.02)


class Nginx(ReverseProxy):
    program = "nginx"
    CONFIG = """
        daemon off; master_process off; worker_rlimit_nofile 65536; pid {directory}/nginx.pid;
        error_log {directory}/error.log;
        events {{ worker_connections 32768; }}
        http {{
            access_log off; client_max_body_size 0; keepalive_timeout 1h; keepalive_requests 1000000000;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
            upstream target {{ server {loopback}:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
            upstream shadow {{ server {loopback}:{mirror_to}; keepalive 1024; keepalive_requests 1000000000; }}
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            server {{
                listen {loopback}:{port} backlog=32768;
                location / {{ {mirror} proxy_pass http://target; }}
                location = /mirror {{ internal; proxy_pass http://shadow$request_uri; }}
            }}
        }}
    """

    def _options(self, directory, upstream, mirror_to):
        values = {
            "directory": directory,
            "loopback": harness.LOOPBACK,
            "port": self.port,
            "upstream": upstream,
            "mirror": "mirror /mirror;" if mirror_to else "",
            "mirror_to": mirror_to or upstream,
        }
        config = directory / "nginx.conf"
        config.write_text(self.CONFIG.format(**values))
        return ["-p", directory, "-c", config, "-e", directory / "error.log"]


class Envoy(ReverseProxy):
    program = "envoy"

    def _options(self, directory, upstream, mirror_to):
        config = directory / "envoy.json"
        config.write_text(json.dumps(self._config(upstream, mirror_to)))
        return ["-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]

    def _config(self, upstream: int, mirror_to: int | None) -> dict:
        def address(port: int) -> dict:
            return {"socket_address": {"address": harness.LOOPBACK, "port_value": port}}

        def cluster(name: str, port: int) -> dict:
            endpoint = {"lb_endpoints": [{"endpoint": {"address": address(port)}}]}
            return {
                "name": name,
                "type": "STATIC",
                "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
                "circuit_breakers": {"thresholds": [{"max_connections": 10000, "max_pending_requests": 10000}]},
            }

        route: dict = {"cluster": "target"}
        clusters = [cluster("target", upstream)]
        if mirror_to:
            route["request_mirror_policies"] = [{"cluster": "shadow"}]
            clusters.append(cluster("shadow", mirror_to))
        api = "type.googleapis.com/envoy.extensions.filters"
        manager = {
            "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front",
            "generate_request_id": False,
            "route_config": {
                "virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
                ]
            },
            "http_filters": [
                {"name": "router", "typed_config": {"@type": f"{api}.http.router.v3.Router"}},
            ],
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        return {
            "static_resources": {
                "listeners": [{"address": address(self.port), "filter_chains": [{"filters": filters}]}],
                "clusters": clusters,
            }
        }


class Haproxy(ReverseProxy):
    program = "haproxy"
    CONFIG = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
frontend front
    bind {loopback}:{port} backlog 32768
    default_backend target
backend target
    http-reuse always
    server upstream {loopback}:{upstream}
"""

    def _options(self, directory, upstream, mirror_to):
        config = directory / "haproxy.cfg"
        config.write_text(self.CONFIG.format(loopback=harness.LOOPBACK, port=self.port, upstream=upstream))
        return ["-db", "-f", config]


class Mitmproxy(ReverseProxy):
    program = "mitmdump"

    def _options(self, directory, upstream, mirror_to):
        target = f"reverse:http://{harness.LOOPBACK}:{upstream}"
        where = ["--listen-host", harness.LOOPBACK, "--listen-port", str(self.port)]
        return ["--quiet", "--mode", target, *where, "--set", f"confdir={directory}"]
