package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// clientsOf are clients of every version of HTTP.
func clientsOf(t *testing.T) map[string]http.RoundTripper {
	t.Helper()
	h2, h3 := &http.Transport{TLSClientConfig: insecureTLS(), ForceAttemptHTTP2: true}, &http3.Transport{TLSClientConfig: insecureTLS()}
	t.Cleanup(func() { h2.CloseIdleConnections(); _ = h3.Close() })
	return map[string]http.RoundTripper{"h2": h2, "h3": h3}
}

// TestForged_OverHTTP2And3: what holds for forged identities and for paths over
// HTTP/1 holds over HTTP/2 and 3.
func TestForged_OverHTTP2And3(t *testing.T) {
	https := freeAddr(t)
	p := newOP(t)
	o := tlsSite(https, "auth_login corp {\nerrors handle_errors\npublic /static/*\n}\nauth_require /admin/* scope admin\nreverse_proxy {upstream}\nhandle_errors {\nreverse_proxy {upstream}\n}")
	o.full = strings.Replace(o.full, "poll_interval 20ms", "poll_interval 20ms\n"+loginConf(p, ""), 1)
	g := start(t, o)
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", https, insecureTLS())
		return err == nil && conn.Close() == nil
	})
	key := g.key(manage.KeySpec{}).Text.Reveal()
	for _, version := range slices.Sorted(maps.Keys(clientsOf(t))) {
		client := clientsOf(t)[version]
		ask := func(method, target string, headers ...string) (int, []seen) {
			t.Helper()
			g.upstream.take()
			r, err := http.NewRequest(method, "https://"+https+target, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "localhost:" + port(https)
			for i := 0; i < len(headers); i += 2 {
				r.Header[headers[i]] = []string{headers[i+1]}
			}
			var a answer
			eventually(t, "an answer", func() bool { // the first packets of HTTP/3 may be lost
				res, err := client.RoundTrip(r)
				if err != nil {
					return false
				}
				a = readAnswer(t, res)
				return true
			})
			return a.Status, g.upstream.take()
		}
		for _, spelling := range allSpellings {
			if strings.ContainsAny(spelling, "~'!") && version == "h3" {
				continue // its client does not send them
			}
			for _, one := range [][2]string{{"GET", "/auth/callback?api_key=1"}, {"POST", "/auth/logout"}, {"GET", "/"}, {"GET", "/?access_token=1"}} {
				status, got := ask(one[0], one[1], spelling, "admin", "Authorization", "Bearer "+mistyped(key), "Sec-Fetch-Site", "cross-site")
				if len(got) != 1 || len(identityOf(got[0].Header)) > 0 || strings.Contains(fmt.Sprint(got[0].Header), "admin") || got[0].Header.Get("Authorization") != "" {
					t.Errorf("%s %v as %s: %d, the upstream saw %+v", version, one, spelling, status, got)
				}
			}
			if _, got := ask("GET", "/x", spelling, "admin", "X-Api-Key", key); len(got) != 1 || got[0].Header.Get("X-Auth-Subject") != "acme" || strings.Contains(fmt.Sprint(got[0].Header), "admin") {
				t.Errorf("%s as %s: the upstream saw %+v", version, spelling, got)
			}
		}
		for _, target := range []string{"/static/%c0%ae%c0%ae/x", "/static/%ef%bc%8e%ef%bc%8e/x", "/static/..%20/x", "/%2561dmin/x", "/%c1%a1dmin/x", "/%ef%bd%81dmin/x", "/admin%20/x"} {
			_, got := ask("GET", target, "X-Api-Key", key)
			for _, s := range got {
				if s.Header.Get("X-Auth-Subject") != "" {
					t.Errorf("%s %s: it passes", version, target)
				}
			}
		}
	}
}

// rawH2 is a connection of HTTP/2 that does what no client does.
type rawH2 struct {
	t       *testing.T
	conn    *tls.Conn
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	stream  uint32
}

func dialH2(t *testing.T, addr string, settings ...http2.Setting) *rawH2 {
	t.Helper()
	conf := insecureTLS()
	conf.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	h := &rawH2{t: t, conn: conn, framer: http2.NewFramer(conn, conn), stream: 1}
	h.encoder = hpack.NewEncoder(&h.block)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.framer.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return h
}

// headers is the header block of a request.
func (h *rawH2) headers(fields ...string) []byte {
	h.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = h.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // into memory
	}
	return bytes.Clone(h.block.Bytes())
}

// request opens a stream with a bad key.
func (h *rawH2) request(key string) error {
	h.stream += 2
	return h.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: h.stream, EndStream: true, EndHeaders: true,
		BlockFragment: h.headers(":method", "GET", ":scheme", "https", ":authority", "localhost:"+port(h.conn.RemoteAddr().String()), ":path", "/", "x-api-key", key),
	})
}

// TestH2_Attacks: what strangers do with frames stands in nobody's way and ends
// by itself: streams that are reset at once, headers without end, and readers that
// don't read.
func TestH2_Attacks(t *testing.T) {
	https := freeAddr(t)
	g := startTLS(t, https, "auth\nreverse_proxy {upstream}")
	key := g.plainKey()
	bad := mistyped(key)
	client := &http.Client{Transport: clientsOf(t)["h2"]}
	good := func(when string) {
		t.Helper()
		for range 20 {
			r, err := http.NewRequest(http.MethodGet, "https://"+https+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "localhost:" + port(https)
			r.Header.Set("X-API-Key", key)
			res, err := client.Do(r)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%s: %v %v", when, res, err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	}
	good("before")

	t.Run("rapid reset", func(t *testing.T) {
		h := dialH2(t, https)
		go func() { _, _ = io.Copy(io.Discard, h.conn) }()
		for range 5000 { // the server may have enough before that
			if h.request(bad) != nil || h.framer.WriteRSTStream(h.stream, http2.ErrCodeCancel) != nil {
				break
			}
		}
		good("after")
	})
	t.Run("continuation", func(t *testing.T) {
		h := dialH2(t, https)
		done := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, h.conn); done <- err }()
		h.stream += 2
		err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.headers(":method", "GET", ":scheme", "https", ":authority", "localhost:"+port(h.conn.RemoteAddr().String()), ":path", "/", "x-api-key", bad)})
		sent := 0
		for ; err == nil && sent < 64<<20; sent += 16 << 10 {
			err = h.framer.WriteContinuation(h.stream, false, h.headers("x-filler", strings.Repeat("x", 16<<10)))
		}
		if err == nil {
			t.Errorf("%d bytes of headers are taken", sent)
		}
		<-done
		good("after")
	})
	t.Run("readers that don't read", func(t *testing.T) {
		// No window: not one byte of an answer can be sent.
		h := dialH2(t, https, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		const streams = 100
		ended := map[uint32]bool{}
		for range streams { // a few kilobytes: the socket takes them all
			if h.request(bad) != nil {
				break
			}
		}
		for len(ended) < streams {
			frame, err := h.framer.ReadFrame()
			var netErr net.Error
			if errors.As(err, &netErr) && netErr.Timeout() {
				t.Fatalf("%d of %d streams ended", len(ended), streams)
			}
			if err != nil {
				break // the whole connection has
			}
			switch f := frame.(type) {
			case *http2.RSTStreamFrame:
				ended[f.StreamID] = true
			case *http2.SettingsFrame:
				if !f.IsAck() {
					_ = h.framer.WriteSettingsAck() // the next read tells
				}
			}
		}
		good("after")
	})
}

// TestFlood_OverHTTP2And3: refusals are slowed down over every version, and a flood
// in one connection leaves others alone.
func TestFlood_OverHTTP2And3(t *testing.T) {
	https := freeAddr(t)
	o := tlsSite(https, "auth\nreverse_proxy {upstream}")
	o.full = strings.Replace(o.full, "poll_interval 20ms", "poll_interval 20ms\nrefusal_rate 1", 1)
	g := start(t, o)
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", https, insecureTLS())
		return err == nil && conn.Close() == nil
	})
	key := g.plainKey()
	for version, client := range clientsOf(t) {
		ask := func(key string) int {
			r, err := http.NewRequest(http.MethodGet, "https://"+https+"/", nil)
			if err != nil {
				t.Error(err)
				return 0
			}
			r.Host = "localhost:" + port(https)
			r.Header.Set("X-API-Key", key)
			res, err := client.RoundTrip(r)
			if err != nil {
				return 0
			}
			_ = res.Body.Close()
			return res.StatusCode
		}
		eventually(t, version, func() bool { return ask(key) == 200 })
		before := gathered(t, "caddy_auth_refusals_slowed_total", nil)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if status := ask(mistyped(key)); status != 401 && status != 0 {
					t.Errorf("%s: %d", version, status)
				}
			})
		}
		for range 5 {
			if status := ask(key); status != 200 {
				t.Errorf("%s, a good one beside: %d", version, status)
			}
		}
		all.Wait()
		if n := gathered(t, "caddy_auth_refusals_slowed_total", nil) - before; n == 0 {
			t.Errorf("%s: nothing was slowed", version)
		}
	}
}
