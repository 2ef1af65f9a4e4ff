package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func init() {
	caddy.RegisterModule(panicker{})
	httpcaddyfile.RegisterHandlerDirective("test_panic", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) { return panicker{}, nil })
	httpcaddyfile.RegisterDirectiveOrder("test_panic", httpcaddyfile.Before, "respond")
}

// panicker panics with what the client sent.
type panicker struct{}

func (panicker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_panic", New: func() caddy.Module { return panicker{} }}
}

func (panicker) ServeHTTP(_ http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	session, _, _ := strings.Cut(r.Header.Get("Cookie"), ";")
	if strings.HasPrefix(session, "other=") { // nobody can know that one; where auth stands, the key before it is gone
		session = r.Header.Get("Referer")
	}
	panic("panicking over " + session + " for " + r.RequestURI)
}

// leakyUpstream says everything back in headers, redirects and broken answers.
func leakyUpstream(t *testing.T) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookie := r.Header.Get("Cookie")
		w.Header().Set("Set-Cookie", cookie)
		// What is shaped like a key; nobody can know the other part. Where auth stands, it is gone.
		if session, _, _ := strings.Cut(cookie, ";"); !strings.HasPrefix(session, "other=") {
			w.Header().Set("X-Echo", session)
		}
		w.Header().Set("Location", "https://elsewhere.test/cb?access_token="+url.QueryEscape(cookie))
		switch {
		case strings.HasPrefix(r.URL.Path, "/missing"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasPrefix(r.URL.Path, "/cut"):
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "half")
			panic(http.ErrAbortHandler)
		case strings.HasPrefix(r.URL.Path, "/moved"):
			w.WriteHeader(http.StatusFound)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

const canaryConfig = `{
	admin {admin}
	http_port {http}
	https_port {https}
	skip_install_trust
	storage file_system {dir}/caddy
	servers {
		trace
		protocols h1 h2 h2c h3
	}
	log {
		output file {dir}/default.log
		format {format}
		level DEBUG
	}
	metrics
	auth {
		store sqlite {dir}/auth.db
		redis {redis}
		poll_interval 20ms
		max_staleness 500ms
		refuse_query sig
		{unsafe}
	}
}
https://localhost:{https}, http://127.0.0.1:{plain} {
	tls internal
	log {
		output file {dir}/access.log
		format {format}
		level DEBUG
	}
	log_append seen {http.request.header.X-Api-Key}
	log_append where {http.request.orig_uri}
	log_append query {http.request.uri.query}
	tracing {
		span canary
	}
	@php path /php/*
	route @php {
		reverse_proxy unix/{cgi} {
			transport fastcgi {
				env SCRIPT_FILENAME {program}
			}
		}
	}
	auth {
		public /open/*
		ambiguous_paths allow
		refuse_query ticket
	}
	auth_require /forbidden/* scope nobody:has
	handle /dead/* {
		reverse_proxy 127.0.0.1:1
	}
	handle /panic/* {
		test_panic
	}
	reverse_proxy {leaky}
	handle_errors 502 {
		respond "no upstream" 502
	}
}
`

// canaries are secrets and every form in which one must not be found.
type canaries struct{ key, secret string }

func (c canaries) needles() map[string]string {
	out := map[string]string{}
	for name, text := range map[string]string{"key": c.key[len(c.key)-30:], "secret": c.secret} {
		out[name+" plain"] = text
		percent := ""
		for i := range len(text) {
			percent += fmt.Sprintf("%%%02x", text[i])
		}
		out[name+" percent"] = percent
		out[name+" hex"] = hex.EncodeToString([]byte(text))
		for offset := range 3 {
			b := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", offset) + text))
			out[fmt.Sprintf("%s base64 %d", name, offset)] = b[4 : len(b)-4]
		}
	}
	return out
}

// find returns where the canaries are in text, ignoring case for hex and
// percent.
func (c canaries) find(where string, text []byte) []string {
	var found []string
	lower := bytes.ToLower(text)
	for form, needle := range c.needles() {
		in := text
		if strings.Contains(form, "hex") || strings.Contains(form, "percent") {
			in = lower
		}
		if i := bytes.Index(in, []byte(needle)); i >= 0 {
			from, to := max(0, i-150), min(len(text), i+len(needle)+60)
			found = append(found, fmt.Sprintf("%s: %s in %q", where, form, text[from:to]))
		}
	}
	return found
}

type planted struct {
	target string
	header http.Header
}

// plant puts the canaries everywhere a client can. Only the key is shaped
// like one; the other secret is where only names give it away.
func (c canaries) plant() []planted {
	percent := ""
	for i := range len(c.key) {
		percent += fmt.Sprintf("%%%02X", c.key[i])
	}
	var out []planted
	add := func(target string, header ...string) {
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h[header[i]] = append(h[header[i]], header[i+1])
		}
		out = append(out, planted{target, h})
	}
	key, secret := c.key, c.secret
	for _, path := range []string{"/ok", "/open/x", "/missing/x", "/dead/x", "/forbidden/x", "/panic/x", "/moved/x", "/cut/x", "/php/x"} {
		add(path, "X-Api-Key", key)
		add(path, "X-Api-Key", key, "Cookie", "session="+key+"; other="+secret, "Referer", "https://app.test/?api_key="+secret+"&q="+key)
		add(path, "Authorization", "Bearer "+key, "X-Custom", key, "User-Agent", "agent/1.0 ("+key+")")
		add(path, "X-Api-Key", secret)
		add(path, "X-Api-Key", key, "X-Api-Key", secret)
		add(path, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(key+":"+secret)))
		add(path, "Authorization", "Bearer "+key, "X-Encoded", base64.URLEncoding.EncodeToString([]byte("u:"+key)), "X-Hex", hex.EncodeToString([]byte(key)))
		add(path, "X_Api_Key", key, "X.Api.Key", secret, "Api_Key", secret)
		add(path, "Sec-Websocket-Protocol", "v1, "+key, "X-Original-Url", "/x?token="+secret)
		add(path, "X-"+key, "x")
		for _, query := range []string{"api_key=" + secret, "api_key=" + key, "q=" + key, "q=" + percent, "x%5Fapi_key=" + secret, key + "=1", "a[b][access_token]=" + secret, "a=1;token=" + secret, "next=%2Fx%3Fapi_key%3D" + secret, "sig=" + secret, "ticket=" + secret, "a=1%26api_key=" + secret, "%61ccess%5ftoken=" + secret} {
			add(path+"?"+query, "X-Api-Key", key)
			add(path+"?"+query, "Referer", "https://app.test/x?"+query)
		}
		add(path+"/"+key, "X-Api-Key", key)
		add(path + "/" + percent)
		add(path + "/" + hex.EncodeToString([]byte(key)))
		add(path + "%253Fapi_key=" + secret + "?y=1")
		add(path + ";token=" + secret)
	}
	return out
}

// monitor records what Redis is told until stop is called.
func monitor(t *testing.T, addr string) (stop func() []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	done := make(chan struct{})
	go func() { _, _ = io.Copy(&buf, conn); close(done) }()
	return func() []byte {
		_ = conn.Close()
		<-done
		return buf.Bytes()
	}
}

// clients speak each protocol to the gateway.
func clients(t *testing.T, plain, https string) map[string]func(planted) int {
	t.Helper()
	insecure := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"} //nolint:gosec // the certificate is the test's own
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	h2 := &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true}
	h3 := &http3.Transport{TLSClientConfig: insecure.Clone()}
	t.Cleanup(func() { h2c.CloseIdleConnections(); h2.CloseIdleConnections(); _ = h3.Close() })
	with := func(rt http.RoundTripper, base, proto string) func(planted) int {
		return func(p planted) int {
			req, err := http.NewRequest(http.MethodGet, base, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = p.target
			if proto == "HTTP/3.0" { // its client does not take opaque targets
				if req.URL, err = url.Parse(base + p.target); err != nil {
					return 0
				}
			}
			req.Host = "localhost"
			req.Header = p.header.Clone()
			res, err := rt.RoundTrip(req)
			if err != nil {
				return 0 // a panic ends the stream; a client may refuse to send a header
			}
			defer res.Body.Close()
			if res.Proto != proto {
				t.Errorf("protocol %s, want %s", res.Proto, proto)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			return res.StatusCode
		}
	}
	h1 := func(addr string, wrap func(net.Conn) net.Conn) func(planted) int {
		return func(p planted) int {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			conn = wrap(conn)
			text := "GET " + p.target + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
			for name, values := range p.header {
				for _, v := range values {
					text += name + ": " + v + "\r\n"
				}
			}
			if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
				t.Fatal(err)
			}
			answer, _ := io.ReadAll(conn) // a panic cuts it
			var status int
			_, _ = fmt.Sscanf(string(answer), "HTTP/1.1 %d", &status)
			return status
		}
	}
	return map[string]func(planted) int{
		"h1":  h1(plain, func(c net.Conn) net.Conn { return c }),
		"h1s": h1(https, func(c net.Conn) net.Conn { return tls.Client(c, insecure.Clone()) }),
		"h2c": with(h2c, "http://"+plain, "HTTP/2.0"),
		"h2":  with(h2, "https://"+https, "HTTP/2.0"),
		"h3":  with(h3, "https://"+https, "HTTP/3.0"),
	}
}

// canaryRun drives the whole matrix and returns every place where a canary
// was found, and the statuses that were seen.
func canaryRun(t *testing.T, format, unsafe string) (found []string, statuses map[int]int) {
	t.Helper()
	r := servers.StartRedis(t)
	leaky := leakyUpstream(t)
	cgi, program := servers.StartCGI(t)
	addrs := freeAddrs(t, 4)
	admin, plain, https, redirect := addrs[0], addrs[1], addrs[2], addrs[3]
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	conf := strings.NewReplacer("{admin}", admin, "{http}", port(redirect), "{https}", port(https), "{plain}", port(plain), "{redis}", r.URL(),
		"{cgi}", cgi, "{program}", program, "{leaky}", leaky.Listener.Addr().String(), "{format}", format, "{unsafe}", unsafe).Replace(canaryConfig)
	conf = strings.ReplaceAll(conf, "http://127.0.0.1:"+port(plain), "http://:"+port(plain))
	g := start(t, options{full: conf})
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", https, insecureTLS())
		return err == nil && conn.Close() == nil
	})
	stopMonitor := monitor(t, r.Addr)
	c := canaries{key: g.key(manage.KeySpec{Owner: "canary"}).Text.Reveal(), secret: "s3cret-canary-0123456789-abcdefghij"}
	statuses = map[int]int{}
	all := c.plant()
	drive := func(requests []planted) {
		for proto, send := range clients(t, plain, https) {
			answers := 0
			for _, p := range requests {
				status := send(p)
				statuses[status]++
				if status != 0 {
					answers++
				}
			}
			if answers < len(requests)/2 {
				t.Errorf("%s: only %d of %d requests were answered", proto, answers, len(requests))
			}
		}
	}
	drive(all)
	// The auto-HTTPS redirect server, where no handler of ours runs.
	toRedirect := clients(t, redirect, https)["h1"]
	for _, p := range all[:40] {
		statuses[toRedirect(p)]++
	}
	// The admin API: what it logs and what it answers.
	for _, path := range []string{"/config/", "/metrics", "/reverse_proxy/upstreams", "/config/?api_key=" + c.secret + "&q=" + c.key} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+admin+path, nil)
		req.Header.Set("X-Api-Key", c.key)
		req.Header.Set("Referer", "http://x.test/?token="+c.secret)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		found = append(found, c.find("admin "+strings.SplitN(path, "?", 2)[0], body)...)
	}
	// Nothing can be decided: the store is gone.
	if err := os.Rename(filepath.Join(g.dir, "auth.db"), filepath.Join(g.dir, "away.db")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "503", func() bool {
		return clients(t, plain, https)["h1"](planted{"/ok", http.Header{"X-Api-Key": {c.key}}}) == 503
	})
	drive(all[:30])
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	found = append(found, c.find("redis MONITOR", stopMonitor())...)
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found = append(found, c.find(filepath.Base(path), text)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, statuses
}

func TestCanary_NoSecretAnywhere(t *testing.T) {
	found, statuses := canaryRun(t, "auth_redact", "")
	for _, f := range found {
		t.Error(f)
	}
	t.Logf("statuses: %v", statuses)
	for _, want := range []int{200, 302, 308, 400, 401, 403, 404, 502, 503} {
		if statuses[want] == 0 {
			t.Errorf("no %d was driven: %v", want, statuses)
		}
	}
}

// TestCanary_TheTestFindsWhatIsThere is the control: with logs that may print
// credentials the same search finds them, in each log.
func TestCanary_TheTestFindsWhatIsThere(t *testing.T) {
	found, _ := canaryRun(t, "json", "unsafe_logs")
	all := strings.Join(found, "\n")
	for _, want := range []string{"default.log: key plain", "default.log: secret plain", "access.log: key plain", "access.log: secret plain", "access.log: key percent", "access.log: key hex", "access.log: key base64"} {
		if !strings.Contains(all, want) {
			t.Errorf("the search does not find %s", want)
		}
	}
	for _, f := range found {
		if !strings.Contains(f, ".log: ") {
			t.Error(f)
		}
	}
}
