package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// redisUp is what the gauge says.
func (g *gateway) redisUp() bool {
	return gathered(g.t, "caddy_auth_redis_up", map[string]string{}) == 1
}

func TestRedis_RecordsSurviveTheGateway(t *testing.T) {
	r := servers.StartRedis(t)
	conf := options{auth: "redis " + r.URL(), site: "auth"}
	g := start(t, conf)
	key := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+key))
	eventually(t, "a record", func() bool { return len(r.Dump()) == 1 })
	for name, value := range r.Dump() {
		if !strings.HasPrefix(name, "caddy-auth:") || strings.Contains(name+value, "acme") {
			t.Errorf("record %q", name)
		}
		if ttl := r.Admin.PTTL(t.Context(), name).Val(); ttl <= 9*time.Minute || ttl > 10*time.Minute {
			t.Errorf("ttl %s", ttl)
		}
	}
	hits, stores := g.metricsNow("redis", "hit"), g.metricsNow("store", "hit")
	if err := stopCaddy(); err != nil {
		t.Fatal(err)
	}
	conf.dir = g.dir
	h := start(t, conf)
	h.ok(h.get("/", "X-API-Key: "+key))
	if got := h.metricsNow("redis", "hit") - hits; got != 1 {
		t.Errorf("%v Redis hits", got)
	}
	if got := h.metricsNow("store", "hit") - stores; got != 0 {
		t.Errorf("%v store reads", got)
	}
	if !h.redisUp() {
		t.Error("redis_up is not 1")
	}
}

// metricsNow reads a counter, which goes on over restarts in one process.
func (g *gateway) metricsNow(tier, result string) float64 {
	g.t.Helper()
	return gathered(g.t, "caddy_auth_lookups_total", map[string]string{"tier": tier, "result": result})
}

func TestRedis_ACLUserAndTLS(t *testing.T) {
	dir := t.TempDir()
	ca := writeCert(t, dir)
	admin := &redis.Options{Password: "root-password", TLSConfig: &tls.Config{RootCAs: ca, ServerName: "localhost", MinVersion: tls.VersionTLS12}}
	r := servers.StartRedisWith(t, admin, "--tls-cert-file", dir+"/cert.pem", "--tls-key-file", dir+"/key.pem", "--tls-ca-cert-file", dir+"/cert.pem",
		"--tls-auth-clients", "no", "--requirepass", "root-password")
	// Exactly what docs/redis.md says.
	r.Do("ACL", "SETUSER", "gateway", "on", ">user-password", "resetkeys", "~caddy-auth:*", "resetchannels", "&caddy-auth:*", "-@all", "+getrange", "+set", "+ping", "+publish", "+subscribe", "+hello", "+auth")
	t.Setenv("REDIS_PASSWORD", "user-password")
	conf := func(password string) options {
		return options{site: "auth", auth: fmt.Sprintf("redis {\naddresses %s\nusername gateway\npassword %s\ntls {\nca %s/cert.pem\nserver_name localhost\n}\ntimeout 1s\n}", r.Addr, password, dir)}
	}
	g := start(t, conf("{env.REDIS_PASSWORD}"))
	key := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+key))
	eventually(t, "a record", func() bool { return len(r.Dump()) == 1 })
	if strings.Contains(g.logs(), "redis can't be used") || strings.Contains(g.logs(), "takes no records") || strings.Contains(g.logs(), "doorbells") {
		t.Errorf("the ACL user may not do what it needs: %s", g.logs())
	}
	// A wrong password is an outage of Redis, not of the gateway, and is not printed.
	if err := g.load(conf("wrong-password")); err != nil {
		t.Fatal(err)
	}
	g.answers()
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
	eventually(t, "the log says why", func() bool { return strings.Contains(g.logs(), "WRONGPASS") })
	if logs := g.logs(); strings.Contains(logs, "wrong-password") || strings.Contains(logs, "user-password") {
		t.Error("a password is in the log")
	}
}

// writeCert makes a certificate for localhost and returns a pool with it.
func writeCert(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	return pool
}

// TestRedis_Faults breaks Redis in every way while requests run: good keys
// pass, revoked ones don't, and no request is slower than a deadline allows.
func TestRedis_Faults(t *testing.T) {
	r := servers.StartRedis(t, "--maxmemory", "64mb")
	p := servers.StartProxy(t, r.Addr)
	g := start(t, options{auth: "redis redis://" + p.Addr + "/0\ncache {\nttl 30ms\nnegative_ttl 30ms\n}", site: "auth"})
	good := []string{g.plainKey(), g.plainKey(), g.plainKey()}
	victims := make([]manage.Made, 0, 16)
	for range cap(victims) {
		victims = append(victims, g.key(manage.KeySpec{Owner: "victim"}))
	}
	manager := g.manager()
	ctx := context.Background()
	faults := []struct {
		name       string
		begin, end func()
	}{
		{"none", func() {}, func() {}},
		{"refused", func() { p.Set(servers.Refuse) }, func() { p.Set(servers.Pass) }},
		{"blackhole", func() { p.Set(servers.Blackhole) }, func() { p.Set(servers.Refuse); p.Set(servers.Pass) }},
		{"slow", func() { p.Set(servers.Slow) }, func() { p.Set(servers.Pass) }},
		{"rubbish", func() { p.Set(servers.Rubbish) }, func() { p.Set(servers.Refuse); p.Set(servers.Pass) }},
		{"cut", func() { p.Set(servers.Cut) }, func() { p.Set(servers.Pass) }},
		{"hanging", r.Hang, r.Resume},
		{"killed and restarted", r.Kill, r.Start},
		{"restarted", func() { r.Kill(); r.Start() }, func() {}},
		{"read-only", func() { r.Do("REPLICAOF", "127.0.0.1", "1"); r.Do("CONFIG", "SET", "replica-serve-stale-data", "yes") }, func() { r.Do("REPLICAOF", "NO", "ONE") }},
		{"full", func() { r.Do("CONFIG", "SET", "maxmemory", "1") }, func() { r.Do("CONFIG", "SET", "maxmemory", "64mb") }},
		{"emptied", func() { r.Do("FLUSHALL") }, func() {}},
		{"records of another type", func() {
			for name := range r.Dump() {
				r.Do("EVAL", servers.ToList, 1, name)
			}
		}, func() { r.Do("FLUSHALL") }},
	}
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			victim := victims[i]
			var revoked atomic.Bool
			var slow, total, slowest atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					client := &http.Client{Transport: &http.Transport{}}
					defer client.CloseIdleConnections()
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						key, bad := good[(n+w)%len(good)], false
						if n%4 == 0 {
							key, bad = victim.Text.Reveal(), revoked.Load()
						}
						req, _ := http.NewRequest(http.MethodGet, "http://"+g.addr+"/", nil)
						req.Header.Set("X-Api-Key", key)
						began := time.Now()
						res, err := client.Do(req)
						if err != nil {
							t.Error(err)
							return
						}
						_ = res.Body.Close()
						total.Add(1)
						if took := time.Since(began); took > 40*time.Millisecond {
							slow.Add(1)
							slowest.Store(max(slowest.Load(), int64(took)))
						}
						switch {
						case bad && res.StatusCode != 401:
							t.Errorf("a revoked key: %d", res.StatusCode)
						case key != victim.Text.Reveal() && res.StatusCode != 200:
							t.Errorf("a good key: %d", res.StatusCode)
						}
					}
				})
			}
			began := time.Now()
			f.begin()
			if _, err := manager.Revoke(ctx, []string{victim.Key.ID}, "test"); err != nil {
				t.Error(err)
			}
			eventually(t, "the revoked key is refused", func() bool {
				return g.do(http.MethodGet, "/", "X-Api-Key", victim.Text.Reveal()).Code == string(auth.CodeInvalidCredential)
			})
			revoked.Store(true)
			from := total.Load()
			// Long enough for the breaker to open and to try again.
			eventually(t, "traffic", func() bool {
				return total.Load() > from+1000 && (time.Since(began) > 1200*time.Millisecond || i == 0 || i > 6)
			})
			f.end()
			from = total.Load()
			eventually(t, "traffic after it", func() bool { return total.Load() > from+500 })
			close(stop)
			wg.Wait()
			g.upstream.take()
			t.Logf("%d requests, %d slower than 40 ms, the slowest %s", total.Load(), slow.Load(), time.Duration(slowest.Load()))
			// Each opening of the breaker may cost whoever is inside one deadline.
			if slow.Load() > 48 || time.Duration(slowest.Load()) > 500*time.Millisecond {
				t.Errorf("%d of %d requests waited, one for %s", slow.Load(), total.Load(), time.Duration(slowest.Load()))
			}
		})
	}
	eventually(t, "redis is used again", func() bool { return g.redisUp() })
	if logs := g.logs(); !strings.Contains(logs, "redis can't be used") || !strings.Contains(logs, "redis answers again") {
		t.Error("the log does not say it")
	}
}

// TestRedis_OneReadForAHerd: ten thousand requests for one cold key.
func TestRedis_OneReadForAHerd(t *testing.T) {
	r := servers.StartRedis(t)
	g := start(t, options{auth: "redis " + r.URL(), site: "auth"})
	key := g.plainKey()
	g.get("/") // the server is warm
	r.Do("CONFIG", "RESETSTAT")
	stores := g.metricsNow("store", "hit")
	herd := 10_000
	var wg sync.WaitGroup
	var bad atomic.Int64
	begin := make(chan struct{})
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 500, MaxIdleConnsPerHost: 500}}
	for range herd {
		wg.Go(func() {
			<-begin
			req, _ := http.NewRequest(http.MethodGet, "http://"+g.addr+"/", nil)
			req.Header.Set("X-Api-Key", key)
			res, err := client.Do(req)
			if err != nil {
				bad.Add(1)
				return
			}
			_ = res.Body.Close()
			if res.StatusCode != 200 {
				bad.Add(1)
			}
		})
	}
	close(begin)
	wg.Wait()
	client.CloseIdleConnections()
	if bad.Load() > 0 {
		t.Errorf("%d refused", bad.Load())
	}
	if n := r.Calls("getrange"); n != "1" {
		t.Errorf("%s Redis reads", n)
	}
	if n := g.metricsNow("store", "hit") - stores; n != 1 {
		t.Errorf("%v store reads", n)
	}
}

func TestRedis_ForgedKeysReachNobody(t *testing.T) {
	r := servers.StartRedis(t)
	g := start(t, options{auth: "redis " + r.URL(), site: "auth"})
	key := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+key))
	r.Do("CONFIG", "RESETSTAT")
	for i := range 50 {
		if end := fmt.Sprintf("%02d", i); !strings.HasSuffix(key, end) { // one in 3,844 keys has it
			g.want(g.get("/", "X-API-Key: "+key[:len(key)-2]+end), 401, auth.CodeInvalidCredential)
		}
	}
	if n := r.Calls("getrange"); n != "" && n != "0" {
		t.Errorf("%s Redis reads for forged keys", n)
	}
}

func TestRedis_ConfigurationsThatAreRefused(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://u:secret-password@127.0.0.1:1/x")
	for conf, want := range map[string]string{
		"redis http://127.0.0.1":                                 "unknown scheme",
		"redis {env.REDIS_URL}":                                  "not a Redis URL",
		"redis redis://127.0.0.1:1?read_timeout=5s":              "takes no query",
		"redis redis://127.0.0.1:1 {\nttl 48h\n}":                "at most 24h",
		"redis {\naddresses a:1 b:2\n}":                          "sentinel_master",
		"redis redis://127.0.0.1:1 {\ntls {\nca /no/ca\n}\n}":    "/no/ca",
		"redis redis://127.0.0.1:1 {\npassword {env.NO_SUCH}\n}": "password",
	} {
		got := startError(t, options{auth: conf, site: "auth"})
		if !strings.Contains(got, want) || strings.Contains(got, "secret-password") {
			t.Errorf("%s: %q, want %q", conf, got, want)
		}
	}
}
