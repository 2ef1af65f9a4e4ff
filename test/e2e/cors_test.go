package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestCORS_InABrowser takes the Caddyfile of docs/cors.md and lets Chromium
// fetch through it from another origin.
func TestCORS_InABrowser(t *testing.T) {
	text, err := os.ReadFile("../../docs/cors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, site, _ := strings.Cut(string(text), "```caddyfile\n")
	site, _, _ = strings.Cut(site, "```")
	var g *gateway
	report := servers.Browse(t, func(origin string) string {
		conf := strings.NewReplacer("api.example.com {", "http://{addr} {", "https://app.example.com", origin, "127.0.0.1:9000", "{upstream}").Replace(site)
		g = start(t, options{raw: conf})
		return fmt.Sprintf(`<!doctype html><script>
(async () => {
	const out = {};
	const ask = async (name, url, init) => {
		try {
			const a = await fetch(url, init);
			const body = await a.json();
			out[name] = { status: a.status, code: body.code || "", challenge: a.headers.get("WWW-Authenticate") || "" };
		} catch (e) { out[name] = { failed: String(e) }; }
	};
	const key = %q, api = %q;
	await ask("good", api + "/orders", { headers: { "X-API-Key": key } });
	await ask("bearer", api + "/orders", { method: "PUT", headers: { "Authorization": "Bearer " + key, "Content-Type": "application/json" }, body: "{}" });
	await ask("bad", api + "/orders", { headers: { "X-API-Key": "wrong" } });
	await ask("none", api + "/orders");
	await ask("query", api + "/orders?api_key=" + key);
	await ask("other header", api + "/orders", { headers: { "X-API-Key": key, "X-Unheard-Of": "1" } });
	await fetch("/report", { method: "POST", body: JSON.stringify(out) });
})();
</script>`, g.plainKey(), "http://"+g.addr)
	})
	var got map[string]struct {
		Status                  int
		Code, Challenge, Failed string
	}
	if err := json.Unmarshal([]byte(report), &got); err != nil {
		t.Fatalf("%v in %s", err, report)
	}
	for name, want := range map[string]struct {
		status int
		code   string
	}{"good": {200, ""}, "bearer": {200, ""}, "bad": {401, "invalid_credential"}, "none": {401, "missing_credential"}, "query": {400, "credential_in_query"}} {
		if got[name].Status != want.status || got[name].Code != want.code {
			t.Errorf("%s: %+v", name, got[name])
		}
	}
	if !strings.HasPrefix(got["bad"].Challenge, "Bearer ") {
		t.Errorf("the page does not see the challenge: %+v", got["bad"])
	}
	if got["other header"].Failed == "" {
		t.Error("a header that the preflight does not allow was sent: the browser enforces nothing here")
	}
	for _, s := range g.upstream.take() {
		if s.Method == "OPTIONS" {
			t.Error("a preflight reached the upstream")
		}
	}
}
