package e2e

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// importKeys imports texts for an owner.
func (g *gateway) importKeys(owner string, texts ...string) {
	g.t.Helper()
	p, err := manage.NewPattern("legacy", `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	if err != nil {
		g.t.Fatal(err)
	}
	var rows []*manage.Imported
	for _, text := range texts {
		row, err := p.CheckImport(manage.ImportRow{KeySpec: manage.KeySpec{Owner: owner, Scopes: []string{"a"}}, Key: auth.NewSecret(text)}, time.Now())
		if err != nil {
			g.t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if _, err := g.manager().Import(context.Background(), p, rows); err != nil {
		g.t.Fatal(err)
	}
}

// known waits until the gateway has heard of a key.
func (g *gateway) known(key string) {
	g.t.Helper()
	eventually(g.t, "the gateway knows the key", func() bool { return g.get("/", "X-API-Key: "+key).Status == 200 })
	g.upstream.take()
}

// TestImported: a key that was made elsewhere works like our own, in headers
// only, and what merely looks like one is nobody's.
func TestImported(t *testing.T) {
	const key, other, stranger = "6f1c1f0a-9d55-4b3e-8b1a-0c0f9e5d7a21", "0b7e2c94-51ad-4f6e-a3c8-7d1e90b25f43", "c3d94e10-7a2b-4c8f-9e61-5b0a8d27f3e6"
	g := start(t, options{site: "auth"})
	g.want(g.get("/", "X-API-Key: "+key), 401, auth.CodeInvalidCredential)
	g.importKeys("acme", key)
	g.known(key)
	g.importKeys("beta", other) // of a pattern that the gateway knows by now
	g.known(other)
	s := g.ok(g.get("/", "Authorization: Bearer "+key))
	if s.Header.Get("X-Auth-Subject") != "acme" || s.Header.Get("X-Auth-Scopes") != "a" || strings.Contains(s.Header.Get("Authorization"), key) {
		t.Errorf("the upstream saw %v", s.Header)
	}
	g.want(g.get("/", "X-API-Key: "+stranger), 401, auth.CodeInvalidCredential)
	for _, target := range []string{"/?id=" + key, "/a/" + key, "/?id=" + strings.ReplaceAll(url.QueryEscape(key), "-", "%2d"), "/?a=" + stranger + "&b=" + key} {
		g.want(g.get(target), 400, auth.CodeCredentialInQuery)
	}
	g.ok(g.get("/orders/"+stranger+"?page="+stranger, "X-API-Key: "+key)) // an id like any other
	if g.get("/?note="+key).Detail == "" || !strings.Contains(g.get("/?note="+key).Detail, "note") {
		t.Error("the answer does not name the parameter")
	}
	eventually(t, "the leak is written down", func() bool {
		var seen []string
		return strings.Contains(strings.Join(append(seen, g.logs()), ""), "leaked")
	})
	g.upstream.take()
	if strings.Contains(g.logs(), key) {
		t.Error("an imported key is in a log")
	}
	if !strings.Contains(g.logs(), stranger) {
		t.Error("what is no key was masked")
	}
	if err := stopCaddy(); err != nil {
		t.Fatal(err)
	}
	if err := g.load(options{site: "auth"}); err != nil { // it is known after a start too
		t.Fatal(err)
	}
	g.answers()
	g.ok(g.get("/", "X-API-Key: "+key))
	m := g.manager()
	k, err := m.Find(context.Background(), auth.NewSecret(key))
	if err != nil || k.Format != "legacy" {
		t.Fatalf("%+v, %v", k, err)
	}
	made, err := m.Rotate(context.Background(), k.ID, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.refused(key)
	g.known(made.Text.Reveal())
	g.good("the key of ours that replaces it", made.Text.Reveal())
}
