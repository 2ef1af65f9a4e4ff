package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// TestLogs_Join: the access line of a request, the decision line, the audit row and
// the answer can be told to belong together.
func TestLogs_Join(t *testing.T) {
	g := start(t, options{site: "log\nauth\nauth_require /scoped/* scope nobody:has"})
	made := g.key(manage.KeySpec{})
	key := made.Text.Reveal()
	access := func(path string) map[string]any {
		var found map[string]any
		eventually(t, "the access line of "+path, func() bool {
			for _, line := range g.logLines("http.log.access") {
				request, _ := line["request"].(map[string]any)
				if uri, _ := request["uri"].(string); strings.HasPrefix(uri, path) {
					found = line
					return true
				}
			}
			return false
		})
		return found
	}
	decision := func(instance string) map[string]any {
		for _, line := range g.logLines("auth.decision") {
			if line["instance"] == instance {
				return line
			}
		}
		t.Errorf("no decision line of %s", instance)
		return nil
	}
	g.ok(g.get("/good", "X-API-Key: "+key))
	if line := access("/good"); line["credential_id"] != made.Key.ID || line["auth_code"] != nil || line["instance"] != nil {
		t.Errorf("%v", line)
	}
	for _, c := range []struct{ path, key, code, credential string }{
		{"/forged", mistyped(key), "invalid_credential", ""},
		{"/scoped/x", key, "insufficient_scope", made.Key.ID},
		{"/missing", "", "missing_credential", ""},
	} {
		headers := []string{}
		if c.key != "" {
			headers = append(headers, "X-API-Key: "+c.key)
		}
		a := g.get(c.path, headers...)
		line := access(c.path)
		credential, _ := line["credential_id"].(string)
		if line["auth_code"] != c.code || line["instance"] != a.Inst || a.Inst == "" || credential != c.credential {
			t.Errorf("%s: %v, the client was told %s", c.path, line, a.Inst)
		}
		if d := decision(a.Inst); d["path"] != c.path || d["code"] != c.code {
			t.Errorf("%s: %v", c.path, d)
		}
	}
	// A key in a path is masked wherever the path is written down.
	a := g.get("/leaky/" + key + "/x?y=1")
	if d := decision(a.Inst); d["path"] != "/leaky/REDACTED/x" {
		t.Errorf("%v", d)
	}
	eventually(t, "the leak", func() bool {
		for _, line := range g.logLines("auth.audit") {
			if line["action"] == "key.leaked" && line["path"] == "/leaky/REDACTED/x" && line["client_ip"] == "127.0.0.1" {
				return true
			}
		}
		return false
	})
	long := "/long/" + strings.Repeat("x", 600) + "/" + key
	if d := decision(g.get(long).Inst); !strings.HasSuffix(d["path"].(string), "x…") || strings.Contains(d["path"].(string), key[8:20]) {
		t.Errorf("%v", d)
	}
	backend, _ := g.backend()
	db, err := store.Open(context.Background(), backend, store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	eventually(t, "its row", func() bool {
		rows, err := db.AuditOf(context.Background(), made.Key.ID)
		return err == nil && len(rows) == 2 && strings.Contains(rows[1].Detail, `"path":"/leaky/REDACTED/x"`) && strings.Contains(rows[1].Detail, `"address":"127.0.0.1"`)
	})
	if strings.Contains(g.logs(), key[len(key)-30:]) {
		t.Error("the log has the key")
	}
}
