package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

var metricName = regexp.MustCompile(`caddy_auth_[a-z_]+`)

// TestErrors_WhoAnswers: the problem is written unless the site hands its
// refusals to its error routes, whatever another site of the same port does.
func TestErrors_WhoAnswers(t *testing.T) {
	g := start(t, options{raw: `
http://a.test:{port} {
	auth {
		errors problem
	}
	reverse_proxy {upstream}
}
http://b.test:{port} {
	auth {
		errors handle_errors
		realm orders
	}
	reverse_proxy {upstream}
	handle_errors {
		auth_problem
	}
}
http://c.test:{port} {
	auth {
		errors handle_errors
	}
	reverse_proxy {upstream}
	handle_errors 401 {
		respond "own page {err.status_code} {err.message}" 401
	}
}
http://d.test:{port} {
	auth {
		public /*
	}
	error /teapot "short and stout" 418
	reverse_proxy 127.0.0.1:1
	handle_errors {
		auth_problem
	}
}`})
	key := g.plainKey()
	ask := func(host, target string, header ...string) answer {
		return g.do("GET", target, append([]string{"Host", host + ":" + port(g.addr)}, header...)...)
	}
	for _, host := range []string{"a.test", "b.test"} {
		a := ask(host, "/")
		g.want(a, 401, auth.CodeMissingCredential)
		if a.Inst == "" || !strings.Contains(g.logs(), a.Inst) || a.Header.Get("Www-Authenticate") == "" || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %+v", host, a)
		}
		g.want(ask(host, "/?api_key=x"), 400, auth.CodeCredentialInQuery)
		g.want(ask(host, "/", "X-Api-Key", key), 200, "")
	}
	if a := ask("b.test", "/"); !strings.Contains(a.Header.Get("Www-Authenticate"), `realm="orders"`) {
		t.Errorf("%v", a.Header)
	}
	if a := ask("c.test", "/"); a.Status != 401 || a.Body != "own page 401 missing_credential" || a.Header.Get("Www-Authenticate") == "" {
		t.Errorf("%+v", a)
	}
	for target, want := range map[string]string{"/": `{"type":"about:blank","title":"Bad Gateway","status":502}`, "/teapot": `{"type":"about:blank","title":"I'm a teapot","status":418}`} {
		if a := ask("d.test", target); strings.TrimSpace(a.Body) != want {
			t.Errorf("%s: %d %s", target, a.Status, a.Body)
		}
	}
}

func TestHealth(t *testing.T) {
	g := start(t, options{auth: "max_staleness 300ms", site: "auth_health /ready\nauth"})
	a := g.get("/ready")
	if a.Status != 200 || a.Body != "ok\n" {
		t.Errorf("%+v", a)
	}
	path := filepath.Join(g.dir, "auth.db")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "503", func() bool { return g.get("/ready").Status == 503 })
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200 again", func() bool { return g.get("/ready").Status == 200 })
}

// TestMetrics_OverHTTP reads what Prometheus would, and looks for labels that
// clients choose.
func TestMetrics_OverHTTP(t *testing.T) {
	g := start(t, options{global: "metrics", raw: "http://{addr} {\nroute /metrics {\nmetrics\n}\nauth\nreverse_proxy {upstream}\n}"})
	key := g.key(manage.KeySpec{Owner: "metrics-owner"})
	g.ok(g.get("/", "X-API-Key: "+key.Text.Reveal()))
	g.want(g.get("/", "X-API-Key: nobodys-key"), 401, auth.CodeInvalidCredential)
	body := ""
	for range 2 {
		if err := g.load(options{global: "metrics", raw: "http://{addr} {\nhandle /metrics {\nmetrics\n}\nhandle {\nauth\nreverse_proxy {upstream}\n}\n}"}); err != nil {
			t.Fatal(err)
		}
		g.answers()
		body = g.get("/metrics").Body
	}
	for _, want := range []string{
		`caddy_auth_requests_total{method="api_key",result="allowed"}`, `caddy_auth_requests_total{method="none",result="invalid_credential"}`,
		`caddy_auth_lookups_total{result="hit",tier="store"}`, `caddy_auth_lookup_seconds_bucket{tier="store"`, "caddy_auth_store_up 1", "caddy_auth_trusted 1",
		"caddy_auth_journal_look_age_seconds", "caddy_auth_journal_lag_seconds", `caddy_auth_cache_entries{kind="identity"} 1`, "caddy_auth_sealed_records_refused_total", "caddy_auth_leaked_keys_total",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, never := range []string{"metrics-owner", key.Key.ID, "nobodys-key", key.Key.Hint} {
		if strings.Contains(body, never) {
			t.Errorf("%q is in the metrics", never)
		}
	}
	if strings.Contains(body, "caddy_auth_redis_up") {
		t.Error("redis_up without Redis")
	}
}

// TestGrafanaDashboard: every metric the dashboard asks for exists.
func TestGrafanaDashboard(t *testing.T) {
	text, err := os.ReadFile("../../packaging/grafana/caddy-auth.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	p := newIDP(t)
	g := start(t, options{
		auth: "redis redis://127.0.0.1:1\n" + p.block(p.secret),
		raw:  "http://{addr} {\nhandle /metrics {\nmetrics\n}\nhandle /partner {\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}\nhandle {\nauth\nreverse_proxy {upstream}\n}\n}",
	})
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
	passed(t, g.get("/partner"))
	p.revoke()
	p.set(func() { p.secret = "another" })
	if a := g.get("/partner"); a.Status != 502 {
		t.Errorf("%d", a.Status)
	}
	body := g.get("/metrics").Body
	n := 0
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			for _, name := range metricName.FindAllString(q.Expr, -1) {
				n++
				if !strings.Contains(body, name) {
					t.Errorf("%s does not exist", name)
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d metrics in the dashboard", n)
	}
}
