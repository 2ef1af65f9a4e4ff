package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestIssuer_Faults breaks what lies between the gateway and an issuer in every
// way: who is known goes on, who is not is undecided and never called bad, what
// was revoked stays so, and all is well when the issuer is.
func TestIssuer_Faults(t *testing.T) {
	i := newIssuer(t)
	p := servers.StartProxy(t, i.Listener.Addr().String())
	g := start(t, options{site: "auth", auth: fmt.Sprintf(`
		issuer corp {
			url %s
			jwks http://%s/keys
			audience api
		}
		introspection legacy {
			url http://%s/introspect
			client_id gateway
			client_secret s3cret
			timeout 500ms
		}`, i.URL, p.Addr, p.Addr)})
	opaque := func(name string) string {
		i.set(func(i *issuer) { i.tokens[name] = `{"active":true,"sub":"bob","iat":1}` })
		return name
	}
	m := g.manager()
	key, known, cached := g.plainKey(), i.token(), opaque("cached")
	eventually(t, "the keys are fetched", func() bool { return g.bearer(known).Status == 200 && g.bearer(cached).Status == 200 })
	faults := map[string]servers.Fault{"refused": servers.Refuse, "blackhole": servers.Blackhole, "drip": servers.Drip, "rubbish": servers.Rubbish, "cut": servers.Cut}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			victim := i.token("jti", "of-"+name)
			if a := g.bearer(victim); a.Status != 200 {
				t.Fatalf("before: %d", a.Status)
			}
			p.Set(fault)
			if _, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: "of-" + name}, false); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for n := range 10 {
				for what, want := range map[string]int{
					key: 200, known: 200, cached: 200, victim: 401,
					i.token("jti", fmt.Sprint(name, n)):                                     200, // its key is known
					i.token("aud", "others"):                                                401,
					i.sign(jose.ES256, i.good("iat", time.Now().Unix()+5), "kid", "x"+name): 503, // it may be newer than what was fetched
					opaque(fmt.Sprintf("new-%s-%d", name, n)):                               503,
					fmt.Sprintf("unknown-%s-%d", name, n):                                   503,
					"ca_live_000000000000000000000000000000000000000000000":                 401,
				} {
					all.Go(func() {
						began := time.Now()
						if a := g.bearer(what); a.Status != want {
							t.Errorf("%.30s: %d %s, want %d", what, a.Status, a.Code, want)
						}
						if took := time.Since(began); took > 4*time.Second {
							t.Errorf("%.30s: took %v", what, took)
						}
					})
				}
			}
			all.Wait()
			p.Set(servers.Refuse) // what hangs is let go
			p.Set(servers.Pass)
			fresh := opaque("after-" + name)
			eventually(t, "the issuer is asked again", func() bool { return g.bearer(fresh).Status == 200 })
			if a := g.bearer("still-unknown-" + name); a.Status != 401 {
				t.Errorf("afterwards: %d %s", a.Status, a.Code)
			}
			g.upstream.take()
		})
	}
}
