package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const identityNames = "X-Auth-Subject X-Auth-Method X-Auth-Credential-Id X-Auth-Scopes X-Auth-Environment"

// peersSuite compares with what people build otherwise: a service that looks
// keys up in Redis, asked by Caddy's forward_auth and by nginx's auth_request.
func (b *bench) peersSuite(ctx context.Context) ([]Section, error) {
	redis := b.startRedis()
	for i, k := range b.keys {
		sum := sha256.Sum256([]byte(k))
		redis.Do("SET", hex.EncodeToString(sum[:]), fmt.Sprintf(`{"subject":"customer","method":"api_key","credential_id":%q,"scopes":"orders:read orders:write","environment":"live"}`, keyID(i)))
	}
	service, err := b.startService(ctx, redis.Addr)
	if err != nil {
		return nil, err
	}
	defer service.stop()
	nginx, err := b.startNginx(ctx, service.addr)
	if err != nil {
		return nil, err
	}
	defer nginx.stop()
	other := b.startRedis()
	forward := fmt.Sprintf("request_header -X-Auth-*\nforward_auth %s {\nuri /verify\ncopy_headers %s\ntransport http {\nkeepalive_idle_conns_per_host 512\n}\n}\nrequest_header -X-Api-Key", service.addr, identityNames)
	ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "key", sites: "auth"}, spec{name: "forward", sites: "route {\n" + forward + "\n}"},
		spec{name: "asks", sites: "auth", cache: 64, auth: "redis " + other.URL()}, spec{name: "itself"})
	if err != nil {
		return nil, err
	}
	defer stop()
	plain, key, fwd, asks := ps[0], ps[1], ps[2], ps[3]
	for _, p := range []*process{key, fwd, nginx, asks} {
		if err := b.check(p); err != nil {
			return nil, fmt.Errorf("%s: %w", p.addr, err)
		}
		if err := once(ctx, p.addr, keyRequests(p.addr, b.keys), b.conns, 200); err != nil {
			return nil, err
		}
	}
	all := func(name, base string, p *process, also ...int) target {
		return target{name: name, base: base, process: p, requests: keyRequests(p.addr, b.keys), want: 200, also: also}
	}
	seen := map[string]pairing{}
	for _, duet := range [][2]target{ // two at a time: they share the service
		{all("plain", "", plain), all("forward_auth", "plain", fwd, service.pid, redis.Pid())},
		{all("plain", "", plain), all("auth_request", "plain", nginx, service.pid, redis.Pid())},
		{all("plain", "", plain), all("A/A", "plain", ps[4])},
		{all("plain", "", plain), all("asks", "plain", asks, other.Pid())},
		{all("forward_auth", "", fwd, service.pid, redis.Pid()), all("key", "forward_auth", key)},
	} {
		got, err := b.rounds(ctx, b.slice, duet[0], duet[1])
		if err != nil {
			return nil, err
		}
		seen[duet[1].name] = got[duet[1].name]
	}
	versus := wholeRow("key in memory / `forward_auth`, service and Redis", 0.40, seen["key"])
	return []Section{{
		Title: "Beside what people build otherwise",
		Text:  "The service is `test/load/authservice`: Go, one `GET` of the key's SHA-256 in Redis. It, Redis, the upstream and the load share the other core.",
		Rows: []Row{
			row(selfRow, 0, seen["A/A"]), versus, row("Caddy's `forward_auth`, alone", 0, seen["forward_auth"]), wholeRow("`forward_auth`, with service and Redis", 0, seen["forward_auth"]),
			row("nginx `auth_request`, alone", 0, seen["auth_request"]), wholeRow("nginx `auth_request`, with service and Redis", 0, seen["auth_request"]),
			wholeRow("this gateway asking Redis each time, with Redis", 0, seen["asks"]),
		},
	}}, nil
}

func (b *bench) startService(ctx context.Context, redis string) (*process, error) {
	binary := filepath.Join(b.dir, "authservice")
	if err := b.build(ctx, binary, "./test/load/authservice"); err != nil {
		return nil, err
	}
	addr, err := spare()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, addr, redis)
	cmd.Stderr = os.Stderr
	return launch(ctx, cmd, addr)
}

func (b *bench) startNginx(ctx context.Context, service string) (*process, error) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx"
	}
	addr, err := spare()
	if err != nil {
		return nil, err
	}
	dir := b.tb.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
error_log stderr error;
pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000;
	upstream api { server %[2]s; keepalive 64; keepalive_requests 1000000; }
	upstream service { server %[3]s; keepalive 64; keepalive_requests 1000000; }
	server {
		listen %[4]s;
		location / {
			auth_request /_auth;
			auth_request_set $subject $upstream_http_x_auth_subject;
			auth_request_set $method $upstream_http_x_auth_method;
			auth_request_set $credential $upstream_http_x_auth_credential_id;
			auth_request_set $scopes $upstream_http_x_auth_scopes;
			auth_request_set $environment $upstream_http_x_auth_environment;
			proxy_set_header X-Auth-Subject $subject;
			proxy_set_header X-Auth-Method $method;
			proxy_set_header X-Auth-Credential-Id $credential;
			proxy_set_header X-Auth-Scopes $scopes;
			proxy_set_header X-Auth-Environment $environment;
			proxy_set_header X-Api-Key "";
			proxy_set_header Connection "";
			proxy_http_version 1.1;
			proxy_pass http://api;
		}
		location = /_auth {
			internal;
			proxy_pass http://service/verify;
			proxy_pass_request_body off;
			proxy_set_header Content-Length "";
			proxy_set_header Connection "";
			proxy_http_version 1.1;
		}
	}
}
`, dir, b.upstream, service, addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := onGatewayCore(nginx, "-p", dir, "-c", conf)
	cmd.Stderr = os.Stderr
	return launch(ctx, cmd, addr)
}
