package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// tlsSite is a whole configuration with one site over TLS.
func tlsSite(addr, directives string) options {
	_, port, _ := net.SplitHostPort(addr)
	return options{full: fmt.Sprintf(`{
	admin off
	persist_config off
	skip_install_trust
	auto_https disable_redirects
	storage file_system {dir}/caddy
	log {
		output file {dir}/log.json
		format auth_redact
		level DEBUG
	}
	servers {
		protocols h1 h2 h2c h3
	}
	auth {
		store sqlite {dir}/auth.db
		poll_interval 20ms
	}
}
https://localhost:%s {
	tls internal
	%s
}
http://{addr} {
	%s
}
`, port, directives, directives)}
}

// startTLS starts a gateway and waits for its certificate.
func startTLS(t *testing.T, https, directives string) *gateway {
	t.Helper()
	g := start(t, tlsSite(https, directives))
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", https, insecureTLS())
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return g
}

func insecureTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"} //nolint:gosec // the certificate is the test's own
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan metadata.MD, 100)
	note := func(ctx context.Context) {
		md, _ := metadata.FromIncomingContext(ctx)
		served <- md
	}
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			note(ctx)
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "of-the-upstream"))
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			note(ss.Context())
			return next(srv, ss)
		}))
	h := health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, h)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)

	https := freeAddr(t)
	g := startTLS(t, https, "auth\nauth_require /grpc.health.v1.Health/Watch scope streams\nreverse_proxy h2c://"+l.Addr().String())
	plain, streams := g.plainKey(), g.key(manage.KeySpec{Scopes: []string{"streams"}}).Text.Reveal()
	for name, dial := range map[string]struct {
		addr  string
		creds credentials.TransportCredentials
	}{"h2c": {g.addr, insecure.NewCredentials()}, "h2": {https, credentials.NewTLS(insecureTLS())}} {
		t.Run(name, func(t *testing.T) {
			conn, err := grpc.NewClient("passthrough:///"+dial.addr, grpc.WithTransportCredentials(dial.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := grpc_health_v1.NewHealthClient(conn)
			with := func(header, value string) context.Context {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				t.Cleanup(cancel)
				if header == "" {
					return ctx
				}
				return metadata.AppendToOutgoingContext(ctx, header, value)
			}
			check := func(ctx context.Context) error {
				_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
				return err
			}
			for what, c := range map[string]struct {
				ctx  context.Context
				code codes.Code
				text string
			}{
				"none":    {with("", ""), codes.Unauthenticated, "no credential: send"},
				"unknown": {with("x-api-key", plain[:len(plain)-1]+"!"), codes.Unauthenticated, "unknown, mistyped"},
				"two":     {metadata.AppendToOutgoingContext(with("x-api-key", plain), "authorization", "Bearer "+plain), codes.InvalidArgument, "more than one credential"},
			} {
				err := check(c.ctx)
				if status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.text) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if len(served) != 0 {
				t.Error("the upstream was reached")
			}
			var trailer metadata.MD
			if _, err := client.Check(with("authorization", "Bearer "+plain), &grpc_health_v1.HealthCheckRequest{}, grpc.Trailer(&trailer)); err != nil {
				t.Fatal(err)
			}
			md := <-served
			if got := md.Get("x-auth-subject"); len(got) != 1 || got[0] != "acme" || len(md.Get("authorization")) != 0 {
				t.Errorf("the upstream saw %v", md)
			}
			if trailer.Get("x-trailer")[0] != "of-the-upstream" {
				t.Errorf("trailer %v", trailer)
			}
			// A stream: refused by scope, then open.
			watch := func(key string) (*grpc_health_v1.HealthCheckResponse, error) {
				s, err := client.Watch(with("x-api-key", key), &grpc_health_v1.HealthCheckRequest{})
				if err != nil {
					return nil, err
				}
				return s.Recv()
			}
			if _, err := watch(plain); status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "streams") {
				t.Errorf("%v", err)
			}
			if res, err := watch(streams); err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
				t.Errorf("%v %v", res, err)
			}
			<-served
		})
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// TestRefusalEndsOnlyItsStream: on HTTP/2 and 3 a refused request with a body
// leaves the connection and its other streams alone.
func TestRefusalEndsOnlyItsStream(t *testing.T) {
	https := freeAddr(t)
	g := startTLS(t, https, "auth\nreverse_proxy {upstream}")
	key := g.plainKey()
	h2 := &http.Transport{TLSClientConfig: insecureTLS(), ForceAttemptHTTP2: true}
	h3 := &http3.Transport{TLSClientConfig: insecureTLS()}
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	defer h2c.CloseIdleConnections()
	defer h3.Close()
	for name, c := range map[string]struct {
		rt   http.RoundTripper
		base string
	}{"h2": {h2, "https://" + https}, "h3": {h3, "https://" + https}, "h2c": {h2c, "http://" + g.addr}} {
		t.Run(name, func(t *testing.T) {
			conns := map[string]bool{}
			trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conns[i.Conn.LocalAddr().String()] = true }}
			for i := range 6 {
				body := io.Reader(http.NoBody)
				if i%2 == 0 {
					body = io.LimitReader(endless{}, 1<<22)
				}
				req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, c.base+"/", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "localhost:" + port(https)
				if name == "h2c" {
					req.Host = g.addr
				}
				want := 401
				if i%2 == 1 {
					req.Header.Set("X-Api-Key", key)
					want = 200
				}
				res, err := c.rt.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if res.StatusCode != want || res.Header.Get("Connection") != "" {
					t.Errorf("request %d: %d, Connection %q", i, res.StatusCode, res.Header.Get("Connection"))
				}
			}
			if name != "h3" && len(conns) != 1 {
				t.Errorf("%d connections", len(conns))
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestEarlyData sends requests as HTTP/3 0-RTT: what could be replayed is sent
// again by its client.
func TestEarlyData(t *testing.T) {
	https := freeAddr(t)
	g := startTLS(t, https, "handle /late/* {\nauth\nreverse_proxy {upstream}\n}\nhandle {\nauth {\nearly_data allow\n}\nreverse_proxy {upstream}\n}")
	key := g.plainKey()
	bound := g.key(manage.KeySpec{Networks: []string{"127.0.0.0/8"}}).Text.Reveal()
	session := tls.NewLRUClientSessionCache(10)
	conf := insecureTLS()
	conf.ClientSessionCache, conf.NextProtos = session, []string{http3.NextProtoH3}
	warm := &http3.Transport{TLSClientConfig: conf}
	get, _ := http.NewRequest(http.MethodGet, "https://"+https+"/late/x", nil)
	get.Header.Set("X-Api-Key", key)
	res, err := warm.RoundTrip(get)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	// The ticket follows the handshake.
	eventually(t, "a session ticket", func() bool { _, ok := session.Get("localhost"); return ok })
	_ = warm.Close()
	g.upstream.take()

	early := func(method, path, key string) (status int, early string) {
		t.Helper()
		conn, err := quic.DialAddrEarly(t.Context(), https, conf, &quic.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.CloseWithError(0, "") }()
		cc := (&http3.Transport{}).NewClientConn(conn)
		str, err := cc.OpenRequestStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest(method, "https://localhost:"+port(https)+path, nil)
		req.Header.Set("X-Api-Key", key)
		if err := str.SendRequestHeader(req); err != nil {
			t.Fatal(err)
		}
		_ = str.Close()
		res, err := str.ReadResponse()
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if !conn.ConnectionState().Used0RTT {
			t.Fatal("it was no early data")
		}
		for _, s := range g.upstream.take() {
			early = s.Header.Get("Early-Data")
		}
		return res.StatusCode, early
	}
	for _, c := range []struct {
		method, path, key string
		want              int
	}{
		{http.MethodGet, "/late/x", key, 200},
		{http.MethodPost, "/late/x", key, 425},
		{http.MethodGet, "/late/x", bound, 425},
		{http.MethodPost, "/x", key, 200},
		{http.MethodGet, "/x", bound, 200},
	} {
		status, upstream := early(c.method, c.path, c.key)
		// On a busy machine the handshake may be complete when the request is
		// judged; then it is no early data any more, and says nothing.
		for range 20 {
			if status != 200 || upstream != "" {
				break
			}
			status, upstream = early(c.method, c.path, c.key)
		}
		if status != c.want || status == 200 && upstream != "1" {
			t.Errorf("%s %s: %d, want %d; the upstream saw Early-Data %q", c.method, c.path, status, c.want, upstream)
		}
	}
	// A proxy before us says so (RFC 8470, 5.1).
	a := g.do(http.MethodPost, "/late/x", "X-Api-Key", key, "Early-Data", "1")
	g.want(a, 425, auth.CodeTooEarly)
	g.ok(g.do(http.MethodPost, "/late/x", "X-Api-Key", key))
}

// TestServerSentEvents: events arrive when they are sent, not when the stream
// ends.
func TestServerSentEvents(t *testing.T) {
	next := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	}))
	defer up.Close()
	g := start(t, options{raw: "http://{addr} {\nauth\nreverse_proxy " + up.Listener.Addr().String() + "\n}"})
	req, _ := http.NewRequest(http.MethodGet, "http://"+g.addr+"/", nil)
	req.Header.Set("X-Api-Key", g.plainKey())
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		line, err := lines.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("%q %v", line, err)
		}
		_, _ = lines.ReadString('\n')
		next <- struct{}{}
	}
}
