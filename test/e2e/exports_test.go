package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// collector is an OTLP receiver over HTTP that keeps what it gets, as bytes:
// texts stand in protocol buffers as they are.
type collector struct {
	*httptest.Server
	mu  sync.Mutex
	got map[string][]byte // by signal: /v1/traces, /v1/metrics, /v1/logs
}

func newCollector(t *testing.T) *collector {
	c := &collector{got: map[string][]byte{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got[r.URL.Path] = append(c.got[r.URL.Path], text...)
	}))
	t.Cleanup(c.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
	return c
}

func (c *collector) has(signal string, texts ...string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range texts {
		if !bytes.Contains(c.got[signal], []byte(s)) {
			return false
		}
	}
	return true
}

// TestCanary_Exports: spans and metrics that leave the process carry no credential,
// of sites without auth neither.
func TestCanary_Exports(t *testing.T) {
	c := newCollector(t)
	g := start(t, options{
		global: "metrics {\nper_host\notlp\n}",
		raw: `http://{addr} {
	tracing {
		span "{http.request.method} {http.request.uri}"
		span_attributes {
			who {http.auth.user.id}
			verb {http.request.proto}
		}
	}
	vars public yes
	vars routes many
	log_append sent {http.request.header.X-Api-Key}
	log_append <early {http.request.header.X-Api-Key}
	vars kept {http.request.header.X-Api-Key}
	log_append kept {vars.kept}
	handle /open/* {
		respond {http.request.uri.path}
	}
	handle {
		auth
		reverse_proxy {upstream}
	}
}`,
	})
	made := g.key(manage.KeySpec{})
	key := made.Text.Reveal()
	g.ok(g.get("/marker-header", "X-API-Key: "+key))
	for _, target := range []string{"/marker-path/" + key, "/open/marker-open/" + key, "/marker-query?api_key=" + key, "/open/marker-openquery?x=" + key} {
		g.get(target)
		g.get("/marker-state", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate: v="+key)
		g.get("/marker-agent", "User-Agent: "+key, "Referer: http://x/?k="+key, "X-Forwarded-For: "+key, "Traceparent: "+key, "Baggage: k="+key)
	}
	g.raw("GET /marker-host HTTP/1.1\r\nHost: " + key + "\r\nConnection: close\r\n\r\n")
	g.raw("GET /marker-cookie HTTP/1.1\r\nHost: " + g.addr + "\r\nCookie: k=" + key + "\r\nConnection: close\r\n\r\n")
	g.raw("GET /marker-forwarded HTTP/1.1\r\nHost: " + g.addr + "\r\nX-Forwarded-Host: " + key + "\r\nX-Forwarded-Proto: " + key + "\r\nConnection: close\r\n\r\n")
	eventually(t, "the spans", func() bool {
		return c.has("/v1/traces", "marker-header", "marker-path", "marker-open", "marker-query", "marker-agent", "marker-state", "marker-openquery", "marker-cookie", "acme", "verb")
	})
	eventually(t, "the metrics", func() bool { return c.has("/v1/metrics", "caddy_http_requests_total", "caddy_auth_requests_total") })
	secret := key[len(key)-40:]
	c.mu.Lock()
	defer c.mu.Unlock()
	for signal, text := range c.got {
		if bytes.Contains(text, []byte(secret)) {
			at := bytes.Index(text, []byte(secret))
			t.Errorf("%s carries the key: %q", signal, text[max(0, at-80):at+40])
		}
	}
	if logs := g.logs(); strings.Contains(logs, secret) || !strings.Contains(logs, "marker-header") {
		t.Error("a log has the key, or not the request")
	}
}

// TestExports_Refused: what can't be masked is refused when it is loaded.
func TestExports_Refused(t *testing.T) {
	newCollector(t)
	g := start(t, options{site: "auth"})
	for name, c := range map[string]struct{ global, site, want string }{
		"a header in a span":  {"", "tracing {\nspan_attributes {\nk {http.request.header.X-API-Key}\n}\n}\nauth", "the span attribute k would export {http.request.header.X-API-Key}"},
		"the URI in a span":   {"", "tracing {\nspan_attributes {\nk \"at {uri}\"\n}\n}\nauth", "the span attribute k would export {http.request.uri}"},
		"the host in a span":  {"", "tracing {\nspan_attributes {\nk {host}\n}\n}\nauth", "the span attribute k would export {http.request.host}"},
		"a variable":          {"", "tracing {\nspan_attributes {\nk {vars.x}\n}\n}\nauth", "the span attribute k would export {http.vars.x}"},
		"every host's metric": {"metrics {\nper_host\nobserve_catchall_hosts\n}", "auth", "observe_catchall_hosts"},
	} {
		if err := g.load(options{global: c.global, site: c.site}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := g.load(options{global: c.global, site: c.site, auth: "unsafe_logs"}); err != nil {
			t.Errorf("%s, with unsafe_logs: %v", name, err)
		}
		for range 4 { // Caddy sets its apps up in random order
			if err := g.load(options{global: c.global, site: strings.TrimSuffix(c.site, "auth")}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, and no auth: %v", name, err)
			}
		}
	}
}
