package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// longUpstream serves what does not end by itself, and knows which of its
// requests are still open, by their X-Auth-Credential-Id and path.
type longUpstream struct {
	*httptest.Server
	goOn chan struct{} // closed to let /slowly answer
	mu   sync.Mutex
	open map[string]int
}

func startLong(t *testing.T) *longUpstream {
	u := &longUpstream{open: map[string]int{}, goOn: make(chan struct{})}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(u.serve))
	u.Config.Protocols = new(http.Protocols)
	u.Config.Protocols.SetHTTP1(true)
	u.Config.Protocols.SetUnencryptedHTTP2(true)
	u.Start()
	t.Cleanup(u.Close)
	t.Cleanup(u.CloseClientConnections)
	return u
}

func (u *longUpstream) serve(w http.ResponseWriter, r *http.Request) {
	name := r.Header.Get("X-Auth-Credential-Id") + r.URL.Path
	u.count(name, 1)
	defer u.count(name, -1)
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/events": // one event, then silence
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = control.Flush()
		<-r.Context().Done()
	case "/download":
		block := make([]byte, 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	case "/upload":
		_ = control.EnableFullDuplex()
		_, _ = io.WriteString(w, "go on\n")
		_ = control.Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	case "/socket", "/slowly":
		if r.URL.Path == "/slowly" {
			<-u.goOn
		}
		conn, rw, err := control.Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello\n")
		_, _ = io.Copy(conn, rw)
	}
}

func (u *longUpstream) count(name string, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.open[name] += n
}

func (u *longUpstream) isOpen(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open[name] > 0
}

// stream is a client's side of something that does not end by itself.
type stream struct {
	t     *testing.T
	name  string // at the upstream
	close func()
	ended chan error // what the reading ended with; nil is a clean end
}

// openStream opens a path and reads its first bytes.
func openStream(t *testing.T, client *http.Client, base, path string, k manage.Made) *stream {
	t.Helper()
	s := &stream{t: t, name: k.Key.ID + path, ended: make(chan error, 1)}
	if path == "/socket" {
		s.openSocket(base, k)
		return s
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.close = cancel
	t.Cleanup(cancel)
	var body io.Reader
	method := http.MethodGet
	if path == "/upload" {
		method, body = http.MethodPost, dripping{ctx}
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	name, value := headerFor(k)
	req.Header.Set(name, value)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 {
		t.Fatalf("%s: %s", path, res.Status)
	}
	if _, err := io.ReadFull(res.Body, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		s.ended <- err
	}()
	return s
}

// headerFor is how a key, or a token in its place, is sent.
func headerFor(k manage.Made) (name, value string) {
	if text := k.Text.Reveal(); strings.HasPrefix(text, "ey") || strings.HasPrefix(text, "ca_at_") {
		return "Authorization", "Bearer " + text
	}
	return "X-API-Key", k.Text.Reveal()
}

// dripping is a body that goes on slowly until its request ends.
type dripping struct{ ctx context.Context }

func (d dripping) Read(p []byte) (int, error) {
	timer := time.NewTimer(5 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-d.ctx.Done():
		return 0, io.EOF
	case <-timer.C:
		return copy(p, "x"), nil
	}
}

func (s *stream) openSocket(base string, k manage.Made) {
	scheme, addr, _ := strings.Cut(base, "://")
	var conn net.Conn
	var err error
	if scheme == "https" {
		conn, err = tls.Dial("tcp", addr, insecureTLS())
	} else {
		conn, err = net.Dial("tcp", addr)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.close = func() { _ = conn.Close() }
	s.t.Cleanup(s.close)
	name, value := headerFor(k)
	_, _ = io.WriteString(conn, "GET /socket HTTP/1.1\r\nHost: "+addr+"\r\n"+name+": "+value+
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 {
		s.t.Fatalf("%v %v", res, err)
	}
	if line, err := br.ReadString('\n'); line != "hello\n" {
		s.t.Fatalf("%q %v", line, err)
	}
	go func() {
		_, err := io.Copy(io.Discard, br)
		if err == nil {
			err = io.EOF // a socket has no clean end
		}
		s.ended <- err
	}()
}

// wantEnd waits until both sides are cut.
func (s *stream) wantEnd(u *longUpstream, why string) {
	s.t.Helper()
	select {
	case err := <-s.ended:
		if err == nil {
			s.t.Errorf("%s: the client took it for a complete answer", why)
		}
	case <-time.After(5 * time.Second):
		s.t.Errorf("%s: it goes on", why)
	}
	eventually(s.t, why+": the upstream's side ends", func() bool { return !u.isOpen(s.name) })
}

func (s *stream) wantOpen(u *longUpstream, why string) {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.t.Errorf("%s: it ended with %v", why, err)
	default:
		if !u.isOpen(s.name) {
			s.t.Errorf("%s: the upstream's side ended", why)
		}
	}
}

// streamClients are a client for each protocol, and where each goes.
func streamClients(t *testing.T, plain, https string) map[string]struct {
	client *http.Client
	base   string
} {
	protocols := func(set func(*http.Protocols)) *http.Transport {
		p := new(http.Protocols)
		set(p)
		tr := &http.Transport{Protocols: p, TLSClientConfig: insecureTLS()}
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	h3 := &http3.Transport{TLSClientConfig: insecureTLS()}
	t.Cleanup(func() { _ = h3.Close() })
	out := map[string]struct {
		client *http.Client
		base   string
	}{}
	for name, c := range map[string]struct {
		rt   http.RoundTripper
		base string
	}{
		"h1":     {protocols(func(p *http.Protocols) { p.SetHTTP1(true) }), "http://" + plain},
		"h1 tls": {protocols(func(p *http.Protocols) { p.SetHTTP1(true) }), "https://localhost:" + port(https)},
		"h2c":    {protocols(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }), "http://" + plain},
		"h2":     {protocols(func(p *http.Protocols) { p.SetHTTP2(true) }), "https://localhost:" + port(https)},
		"h3":     {h3, "https://localhost:" + port(https)},
	} {
		out[name] = struct {
			client *http.Client
			base   string
		}{&http.Client{Transport: c.rt}, c.base}
	}
	return out
}

// TestStreams_EndWithTheirCredential opens what does not end by itself over
// every protocol and ends the credential in every way.
func TestStreams_EndWithTheirCredential(t *testing.T) {
	u := startLong(t)
	addrs := freeAddrs(t, 1)
	g := startTLS(t, addrs[0], "auth\nencode gzip\nreverse_proxy "+u.Listener.Addr().String()+" {\nflush_interval -1\n}")
	t.Run("all", func(t *testing.T) { endStreams(t, g, u, addrs[0]) })
	reasons := map[any]bool{}
	for _, l := range g.logLines("auth.decision") {
		if l["code"] == "stream_ended" {
			reasons[l["reason"]] = true
			if l["credential_id"] == nil || l["hint"] == nil {
				t.Errorf("the log line does not say which: %v", l)
			}
		}
	}
	for _, want := range []string{"revoked", "owner_disabled", "expired"} {
		if !reasons[want] {
			t.Errorf("no stream was ended for %s: %v", want, reasons)
		}
	}
	if n := gathered(t, "caddy_auth_streams_ended_total", map[string]string{"reason": "revoked"}); n < 10 {
		t.Errorf("%v revoked streams counted", n)
	}
}

func endStreams(t *testing.T, g *gateway, u *longUpstream, https string) {
	ctx := context.Background()
	m := g.manager()
	for protocol, c := range streamClients(t, g.addr, https) {
		paths := []string{"/events", "/download", "/upload"}
		if strings.HasPrefix(protocol, "h1") {
			paths = []string{"/events", "/download", "/socket"}
		}
		for _, path := range paths {
			t.Run(protocol+path, func(t *testing.T) {
				t.Parallel()
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				owner := "passing-" + strings.NewReplacer(" ", "", "/", "-").Replace(protocol+path)
				base := c.base
				revoked, owners := g.key(manage.KeySpec{}), g.key(manage.KeySpec{Owner: owner})
				good, rotated := g.key(manage.KeySpec{}), g.key(manage.KeySpec{})
				a := openStream(t, c.client, base, path, revoked)
				a2 := openStream(t, c.client, base, path, revoked)
				b := openStream(t, c.client, base, path, owners)
				bystander := openStream(t, c.client, base, path, good)
				replaced := openStream(t, c.client, base, path, rotated)

				_, err := m.Edit(ctx, []string{good.Key.ID}, func(s *manage.KeySpec) { s.Name = "renamed" })
				must(err)
				_, err = m.Revoke(ctx, []string{revoked.Key.ID}, "test")
				must(err)
				a.wantEnd(u, "revoked")
				a2.wantEnd(u, "revoked, another request")
				_, err = m.SetOwnerDisabled(ctx, owner, true, "test")
				must(err)
				b.wantEnd(u, "owner disabled")
				_, err = m.SetOwnerDisabled(ctx, owner, false, "")
				must(err)
				_, err = m.Rotate(ctx, rotated.Key.ID, time.Second, nil)
				must(err)
				replaced.wantEnd(u, "the overlap ended")
				bystander.wantOpen(u, "another key, edited")
				bystander.close()
			})
		}
	}
}

func TestStreams_Detached(t *testing.T) {
	u := startLong(t)
	g := start(t, options{raw: "http://{addr} {\nauth {\nstreams detached\n}\nreverse_proxy " + u.Listener.Addr().String() + " {\nflush_interval -1\n}\n}"})
	k := g.key(manage.KeySpec{})
	s := openStream(t, http.DefaultClient, "http://"+g.addr, "/events", k)
	if _, err := g.manager().Revoke(context.Background(), []string{k.Key.ID}, "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is refused", func() bool { return g.get("/x", "X-API-Key: "+k.Text.Reveal()).Status == 401 })
	s.wantOpen(u, "detached")
	s.close()
}

// TestStreams_NobodyCanTell: once the gateway does not know any more whether a
// credential holds, what it let in ends, as it would not let it in again.
func TestStreams_NobodyCanTell(t *testing.T) {
	u := startLong(t)
	g := start(t, options{auth: "max_staleness 1s", raw: "http://{addr} {\nauth\nreverse_proxy " + u.Listener.Addr().String() + " {\nflush_interval -1\n}\n}"})
	s := openStream(t, http.DefaultClient, "http://"+g.addr, "/events", g.key(manage.KeySpec{}))
	path := filepath.Join(g.dir, "auth.db")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	s.wantEnd(u, "stale")
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
}

// TestStreams_NoWayAround: what a client can do, and an upstream that takes its
// time, don't keep a stream open.
func TestStreams_NoWayAround(t *testing.T) {
	u := startLong(t)
	upstream := u.Listener.Addr().String()
	https := freeAddr(t)
	proxy := "reverse_proxy " + upstream + " {\nflush_interval -1\n}\n"
	g := startTLS(t, https, "route /late/* {\nauth\nerror 404\n}\nauth\n"+proxy+"handle_errors {\nuri strip_prefix /late\n"+proxy+"}")
	m := g.manager()
	revoke := func(t *testing.T, k manage.Made) {
		t.Helper()
		if _, err := m.Revoke(context.Background(), []string{k.Key.ID}, "test"); err != nil {
			t.Fatal(err)
		}
	}
	for protocol, c := range streamClients(t, g.addr, https) {
		t.Run("from the error routes, "+protocol, func(t *testing.T) {
			k := g.key(manage.KeySpec{})
			s := openStream(t, c.client, c.base, "/late/events", k)
			s.name = k.Key.ID + "/events"
			revoke(t, k)
			s.wantEnd(u, "from the error routes")
		})
	}
	// A byte more than the request makes net/http stop watching the connection.
	t.Run("a byte too many", func(t *testing.T) {
		k := g.key(manage.KeySpec{})
		conn, br := g.dial(t, "GET /slowly HTTP/1.1\r\nHost: "+g.addr+"\r\nX-API-Key: "+k.Text.Reveal()+
			"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		eventually(t, "the upstream has it", func() bool { return u.isOpen(k.Key.ID + "/slowly") })
		if _, err := io.WriteString(conn, "x"); err != nil {
			t.Fatal(err)
		}
		revoke(t, k)
		eventually(t, "the key is refused", func() bool { return g.get("/x", "X-API-Key: "+k.Text.Reveal()).Status == 401 })
		eventually(t, "the connection is cut", func() bool { _, err := conn.Write([]byte("y")); return err != nil })
		close(u.goOn) // now the upstream agrees to the upgrade
		if text, err := io.ReadAll(br); strings.Contains(string(text), "hello") {
			t.Errorf("got %q, %v", text, err)
		}
		eventually(t, "the upstream's side ends", func() bool { return !u.isOpen(k.Key.ID + "/slowly") })
	})
}

// dial opens a connection and writes to it.
func (g *gateway) dial(t *testing.T, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}
