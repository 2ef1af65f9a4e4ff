package outbound

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// keys is a source whose credential can be replaced.
type keys struct {
	mu      sync.Mutex
	now     string
	next    []string // what Renew gives
	renewed int
	failure error
	renew   error

	accepted int
	stale    bool // others than it fetch what it gives
}

func (k *keys) Accepted(Credential) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.accepted++
}

func (k *keys) credential() Credential {
	return Credential{Header: "Authorization", Value: auth.NewSecret(k.now)}
}

func (k *keys) Credential(context.Context) (Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.credential(), k.failure
}

func (k *keys) Renew(_ context.Context, refused Credential) (Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.renew != nil {
		return Credential{}, k.renew
	}
	if refused.Is(k.credential()) {
		if k.renewed++; len(k.next) == 0 {
			return Credential{}, ErrKept
		}
		k.now, k.next = k.next[0], k.next[1:]
	}
	c := k.credential()
	c.fresh = !k.stale
	return c, nil
}

// guarded is an upstream that wants one credential and tells what it got.
type guarded struct {
	*httptest.Server
	want atomic.Pointer[string]
	n    atomic.Int32
	read atomic.Int64 // how much of a refused body it reads
}

func newGuarded(t *testing.T, want string) *guarded {
	g := &guarded{}
	g.want.Store(&want)
	g.read.Store(1 << 30)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.n.Add(1)
		if r.Header.Get("Authorization") != *g.want.Load() {
			_, _ = io.CopyN(io.Discard, r.Body, g.read.Load())
			w.Header().Set("X-Refused", "1")
			w.WriteHeader(401)
			fmt.Fprintf(w, "not %d", g.n.Load())
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(400)
		}
		fmt.Fprintf(w, "%s %d %d ", r.Method, r.ContentLength, len(body))
		_, _ = w.Write(body)
	}))
	t.Cleanup(g.Close)
	return g
}

func transport(t *testing.T, s Source) *Transport {
	base := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(base.CloseIdleConnections)
	return &Transport{Base: base, Source: s, Failed: func(_ *http.Request, f *grant.Failure) *http.Response {
		return &http.Response{StatusCode: 503, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(f.Cause)))}
	}}
}

func roundTrip(t *testing.T, tr *Transport, r *http.Request) (int, string) {
	t.Helper()
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode, string(body)
}

// body counts how it is used, as the server's would not like.
type body struct {
	io.Reader
	closed atomic.Int32
	reads  atomic.Int32
}

func (b *body) Read(p []byte) (int, error) {
	if b.closed.Load() > 0 {
		return 0, errors.New("read after close")
	}
	b.reads.Add(1)
	return b.Reader.Read(p)
}

func (b *body) Close() error { b.closed.Add(1); return nil }

// TestTransport_Replay: a request is sent again with its whole body where that
// was kept, once, and else it is not.
func TestTransport_Replay(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB
	for _, tc := range []struct {
		name   string
		body   string
		length int64 // -1: chunked
		read   int64 // by the upstream before it refuses
		most   int64
		status int
		times  int32
	}{
		{"no body", "", 0, 0, 0, 200, 2},
		{"short", "hello", 5, 1 << 20, 0, 200, 2},
		{"short, unread", "hello", 5, 0, 0, 200, 2},
		{"short, half read", long[:60000], 60000, 1000, 0, 200, 2},
		{"chunked", "hello", -1, 1 << 20, 0, 200, 2},
		{"the limit", long[:DefaultMaxReplay], DefaultMaxReplay, 1 << 20, 0, 200, 2},
		{"the limit, chunked", long[:DefaultMaxReplay], -1, 1 << 20, 0, 200, 2},
		{"one more", long[:DefaultMaxReplay+1], DefaultMaxReplay + 1, 1 << 20, 0, 401, 1},
		{"one more, chunked", long[:DefaultMaxReplay+1], -1, 1 << 20, 0, 401, 1},
		{"long", long, int64(len(long)), 1 << 20, 0, 401, 1},
		{"long, kept", long, int64(len(long)), 1 << 20, 1 << 20, 200, 2},
		{"none kept", "hello", 5, 1 << 20, -1, 401, 1},
	} {
		up := newGuarded(t, "new")
		up.read.Store(tc.read)
		k := &keys{now: "old", next: []string{"new"}}
		tr := transport(t, k)
		tr.MaxReplay = tc.most
		b := &body{Reader: strings.NewReader(tc.body)}
		r, _ := http.NewRequest("PUT", up.URL, nil)
		if tc.length != 0 {
			r.Body, r.ContentLength = b, tc.length
		}
		r.Header.Set("Authorization", "caller's")
		before := r.Header.Clone()
		status, text := roundTrip(t, tr, r)
		if want := fmt.Sprintf("PUT %d %d %s", tc.length, len(tc.body), tc.body); status != tc.status || up.n.Load() != tc.times || status == 200 && text != want {
			t.Errorf("%s: %d after %d times: %.60s", tc.name, status, up.n.Load(), text)
		}
		if k.renewed != 1 {
			t.Errorf("%s: renewed %d times", tc.name, k.renewed)
		}
		if !reflect.DeepEqual(r.Header, before) {
			t.Errorf("%s: the request was changed: %v", tc.name, r.Header)
		}
		if tc.length != 0 {
			within(t, tc.name+": the body is closed once", func() bool { return b.closed.Load() == 1 })
		}
	}
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for tick, end := time.NewTicker(time.Millisecond), time.Now().Add(5*time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// TestTransport_SecondRefusal: the client gets the upstream's own answer.
func TestTransport_SecondRefusal(t *testing.T) {
	up := newGuarded(t, "never")
	if status, text := roundTrip(t, transport(t, &keys{now: "old", next: []string{"new", "newer"}}), get401(up, "hello")); status != 401 || text != "not 2" || up.n.Load() != 2 {
		t.Errorf("%d %s after %d", status, text, up.n.Load())
	}
	up = newGuarded(t, "never") // nothing else to try with
	if status, text := roundTrip(t, transport(t, &keys{now: "old"}), get401(up, "hello")); status != 401 || text != "not 1" || up.n.Load() != 1 {
		t.Errorf("%d %s after %d", status, text, up.n.Load())
	}
}

func get401(up *guarded, text string) *http.Request {
	r, err := http.NewRequest("POST", up.URL, strings.NewReader(text))
	if err != nil {
		panic(err)
	}
	return r
}

// TestTransport_Failures: without a credential nothing is sent; where one can't
// be renewed the client does not get the 401.
func TestTransport_Failures(t *testing.T) {
	up := newGuarded(t, "x")
	b := &body{Reader: strings.NewReader("hello")}
	r := get401(up, "")
	r.Body, r.ContentLength = b, 5
	if status, text := roundTrip(t, transport(t, &keys{failure: &grant.Failure{Cause: grant.CauseRefused}}), r); status != 503 || text != "refused" || up.n.Load() != 0 || b.closed.Load() != 1 {
		t.Errorf("%d %s, sent %d times, closed %d times", status, text, up.n.Load(), b.closed.Load())
	}
	if status, text := roundTrip(t, transport(t, &keys{now: "old", renew: &grant.Failure{Cause: grant.CauseUnavailable}}), get401(up, "hello")); status != 503 || text != "unavailable" || up.n.Load() != 1 {
		t.Errorf("%d %s, sent %d times", status, text, up.n.Load())
	}
	if _, err := transport(t, &keys{failure: context.Canceled}).RoundTrip(get401(up, "")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	gone := get401(up, "x")
	gone.URL.Host = "127.0.0.1:1"
	if res, err := transport(t, &keys{now: "x"}).RoundTrip(gone); err == nil {
		t.Error(res.Status)
	}
}

// TestTransport_CallersCredential: nothing that the caller showed, in any
// spelling, goes along with ours; the rest does.
func TestTransport_CallersCredential(t *testing.T) {
	var got http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer srv.Close()
	tr := transport(t, NewStatic("X-Vendor-Key", "", grant.Fixed(auth.NewSecret("ours"))))
	tr.Caller = func(*http.Request) map[string]bool { return map[string]bool{"x_api_key": true} }
	r, _ := http.NewRequest("GET", srv.URL, nil)
	r.Header = http.Header{
		"Authorization": {"Bearer caller"}, "authorization": {"Bearer caller"}, "AUTHORIZATION": {"x"}, "X-Api-Key": {"caller"}, "X_Api_Key": {"caller"}, "x.api.key": {"caller"},
		"X-Vendor-Key": {"caller"}, "X_vendor_KEY": {"caller"}, "X-Auth-Subject": {"acme"}, "X-Other": {"a", "b"}, "User-Agent": {"me"}, "Accept-Encoding": {"identity"},
	}
	roundTrip(t, tr, r)
	if want := (http.Header{"X-Vendor-Key": {"ours"}, "X-Auth-Subject": {"acme"}, "X-Other": {"a", "b"}, "User-Agent": {"me"}, "Accept-Encoding": {"identity"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// TestTransport_Redirect: a client that follows a redirect to another server,
// as health checks may, does not take the credential there.
func TestTransport_Redirect(t *testing.T) {
	other := newGuarded(t, "")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/here" {
			http.Redirect(w, r, "/there", http.StatusFound)
			return
		}
		if r.Header.Get("Authorization") != "ours" {
			t.Errorf("%s: no credential", r.URL)
		}
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer srv.Close()
	within := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // it leads on, on its own host
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s: the credential went along", r.URL)
		}
		if r.URL.Path == "/1" {
			http.Redirect(w, r, "/2", http.StatusFound)
		}
	}))
	defer within.Close()
	tr := transport(t, &keys{now: "ours"})
	for _, start := range []string{srv.URL + "/here", srv.URL + "/there"} {
		res, err := (&http.Client{Transport: tr}).Get(start)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != 200 {
			t.Errorf("%s", res.Status)
		}
	}
	if other.n.Load() != 2 {
		t.Errorf("%d", other.n.Load())
	}
	lead := httptest.NewServer(http.RedirectHandler(within.URL+"/1", http.StatusFound))
	defer lead.Close()
	res, err := (&http.Client{Transport: tr}).Get(lead.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 || res.Request.Header.Get("Authorization") != "" {
		t.Errorf("%s %v", res.Status, res.Request.Header)
	}
}

// TestTransport_Streams: a body goes through as it comes, and answers begin
// before it has ended; a thousandfold of what is kept costs no memory.
func TestTransport_Streams(t *testing.T) {
	var got atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Body.Read(buf)
			got.Add(int64(n))
			_, _ = w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	tr := transport(t, &keys{now: "x"})
	in, out := io.Pipe()
	r, _ := http.NewRequest("POST", srv.URL, in)
	go func() { _, _ = io.WriteString(out, "one") }()
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	piece := make([]byte, 3)
	for _, text := range []string{"one", "two"} {
		if text != "one" {
			_, _ = io.WriteString(out, text)
		}
		if _, err := io.ReadFull(res.Body, piece); err != nil || string(piece) != text {
			t.Fatalf("%q %v", piece, err)
		}
	}
	go func() { _, _ = out.Write(bytes.Repeat([]byte("x"), 64<<20)); _ = out.Close() }()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != 64<<20 {
		t.Errorf("%d %v", n, err)
	}
}

// TestTransport_RefusedStream: a stream that is refused at its beginning begins
// again with what it had sent, and goes on.
func TestTransport_RefusedStream(t *testing.T) {
	up := newGuarded(t, "new")
	up.read.Store(3)
	tr := transport(t, &keys{now: "old", next: []string{"new"}})
	in, out := io.Pipe()
	r, _ := http.NewRequest("POST", up.URL, in)
	go func() {
		_, _ = io.WriteString(out, "one")
		within(t, "it was refused", func() bool { return up.n.Load() > 0 })
		_, _ = io.WriteString(out, "two")
		_ = out.Close()
	}()
	if status, text := roundTrip(t, tr, r); status != 200 || text != "POST -1 6 onetwo" {
		t.Errorf("%d %s", status, text)
	}
}

// TestTransport_Thousand: a thousand requests whose token was revoked cause one
// renewal, and all pass.
func TestTransport_Thousand(t *testing.T) {
	up := newGuarded(t, "new")
	k := &keys{now: "old", next: []string{"new"}}
	tr := transport(t, k)
	var all sync.WaitGroup
	for n := range 1000 {
		all.Go(func() {
			text := fmt.Sprintf("body %d", n)
			if status, body := roundTrip(t, tr, get401(up, text)); status != 200 || !strings.HasSuffix(body, text) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	all.Wait()
	if k.renewed != 1 {
		t.Errorf("renewed %d times", k.renewed)
	}
}

// fixedAnswer is a base that costs nothing.
type fixedAnswer struct{ res *http.Response }

func (f fixedAnswer) RoundTrip(*http.Request) (*http.Response, error) { return f.res, nil }

// TestTransport_Allocations: a token that is there costs nothing, putting it on
// a request a copy of its headers.
func TestTransport_Allocations(t *testing.T) {
	i := newIssuer(time.Hour)
	s := started(i, 0)
	defer s.Close()
	get(t, s)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _, _ = s.Credential(ctx) }); n != 0 {
		t.Errorf("a token costs %v allocations", n)
	}
	tr := &Transport{Base: fixedAnswer{&http.Response{StatusCode: 200, Body: http.NoBody}}, Source: s, Caller: func(*http.Request) map[string]bool { return map[string]bool{} }}
	r, _ := http.NewRequest("GET", "http://127.0.0.1/", nil)
	for _, name := range []string{"Accept", "Accept-Encoding", "User-Agent", "Via", "X-Auth-Subject", "X-Auth-Method", "X-Auth-Scopes", "X-Auth-Credential-Id", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		r.Header.Set(name, "x")
	}
	n := testing.AllocsPerRun(1000, func() { _, _ = tr.RoundTrip(r) })
	t.Logf("putting it on a request: %v allocations", n)
	if n > 8 { // of which the map is most
		t.Errorf("putting it on a request costs %v allocations", n)
	}
}

// hasty is an upstream that refuses as soon as it has the headers, which Go's
// server does not do, and says back twice three bytes of what it takes.
func hasty(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				if r.Header.Get("Authorization") != "new" {
					_, _ = io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
					_, _ = io.Copy(io.Discard, r.Body)
					return
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
				three := make([]byte, 3)
				for range 2 {
					if _, err := io.ReadFull(r.Body, three); err != nil {
						return
					}
					_, _ = conn.Write(three)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// TestTransport_RefusedWhileItWaits: a stream whose client waits for an answer
// before it sends on is sent again at once, not when it sends.
func TestTransport_RefusedWhileItWaits(t *testing.T) {
	at := hasty(t)
	tr := transport(t, &keys{now: "old", next: []string{"new"}})
	in, out := io.Pipe()
	defer out.Close()
	r, _ := http.NewRequest("POST", at, in)
	go func() { _, _ = io.WriteString(out, "one") }()
	done := make(chan *http.Response, 1)
	go func() {
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	var res *http.Response
	select {
	case res = <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for the client, who waits for it")
	}
	defer res.Body.Close()
	for _, text := range []string{"one", "two"} {
		if text == "two" {
			_, _ = io.WriteString(out, text)
		}
		three := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, three); err != nil || string(three) != text {
			t.Fatalf("%q %v", three, err)
		}
	}
}

// strict is a body that must not be closed while it is read, nor twice: its
// buffer is given to another request then, as Caddy's request_buffers does.
type strict struct {
	io.Reader
	t      *testing.T
	busy   atomic.Bool
	closed atomic.Int32
}

func (b *strict) Read(p []byte) (int, error) {
	if b.closed.Load() > 0 {
		b.t.Error("read after close")
	}
	b.busy.Store(true)
	defer b.busy.Store(false)
	return b.Reader.Read(p)
}

func (b *strict) Close() error {
	if b.closed.Add(1) > 1 {
		b.t.Error("closed twice")
	}
	return nil
}

// TestTransport_ClosesOnce: whatever becomes of a refused request, its body is
// closed once, and not while a given-up attempt reads it.
func TestTransport_ClosesOnce(t *testing.T) {
	up := newGuarded(t, "never")
	up.read.Store(1000) // it answers while the body is under way
	for name, renew := range map[string]error{"unavailable": &grant.Failure{Cause: grant.CauseUnavailable}, "canceled": context.Canceled, "kept": ErrKept, "another": nil} {
		for _, n := range []int{5, 60 << 10, 4 << 20} {
			tr := transport(t, &keys{now: "old", next: []string{"new"}, renew: renew})
			b := &strict{Reader: bytes.NewReader(make([]byte, n)), t: t}
			r, _ := http.NewRequest("POST", up.URL, nil)
			r.Body, r.ContentLength = b, int64(n)
			if res, err := tr.RoundTrip(r); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			within(t, fmt.Sprintf("%s, %d bytes: it is closed", name, n), func() bool { return b.closed.Load() == 1 })
		}
	}
	in, out := io.Pipe() // a read that is under way
	b := &strict{Reader: in, t: t}
	r, _ := http.NewRequest("POST", hasty(t), nil)
	r.Body, r.ContentLength = b, -1
	go func() { _, _ = io.WriteString(out, "one") }()
	if status, _ := roundTrip(t, transport(t, &keys{now: "old", renew: &grant.Failure{Cause: grant.CauseUnavailable}}), r); status != 503 {
		t.Error(status)
	}
	if b.busy.Load() && b.closed.Load() > 0 {
		t.Error("closed while it is read")
	}
	_ = out.Close()
	within(t, "it is closed when the read has ended", func() bool { return b.closed.Load() == 1 })
}

// TestTransport_LongRefusal: a refused body that is too long to be sent again
// goes on to the upstream, whose answer is the client's.
func TestTransport_LongRefusal(t *testing.T) {
	const size = 400 << 10
	var got atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		n, _ := io.CopyN(io.Discard, r.Body, size/4)
		w.WriteHeader(401)
		w.(http.Flusher).Flush()
		m, _ := io.Copy(io.Discard, r.Body)
		got.Store(n + m)
		_, _ = io.WriteString(w, "the reason")
	}))
	defer srv.Close()
	k := &keys{now: "old", next: []string{"new"}}
	b := &strict{Reader: bytes.NewReader(make([]byte, size)), t: t}
	r, _ := http.NewRequest("POST", srv.URL, nil)
	r.Body, r.ContentLength = b, size
	if status, text := roundTrip(t, transport(t, k), r); status != 401 || text != "the reason" || got.Load() != size || k.renewed != 1 {
		t.Errorf("%d %q, the upstream got %d", status, text, got.Load())
	}
	within(t, "it is closed", func() bool { return b.closed.Load() == 1 })
}

// TestTransport_StalledRefusal: the body of a 401 that nobody sees holds nothing
// up.
func TestTransport_StalledRefusal(t *testing.T) {
	end := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "new" {
			w.WriteHeader(401)
			w.(http.Flusher).Flush()
			<-end
		}
	}))
	defer srv.Close()
	defer close(end)
	began := time.Now()
	if status, _ := roundTrip(t, transport(t, &keys{now: "old", next: []string{"new"}}), get401(&guarded{Server: srv}, "hello")); status != 200 || time.Since(began) > 2*time.Second {
		t.Errorf("%d after %s", status, time.Since(began))
	}
}

// TestTransport_Trailers: the caller's are not sent, which could hold its
// credential.
func TestTransport_Trailers(t *testing.T) {
	var got http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got = r.Trailer
	}))
	defer srv.Close()
	r, _ := http.NewRequest("POST", srv.URL, io.NopCloser(strings.NewReader("x")))
	r.Trailer = http.Header{"X-Api-Key": {"caller"}}
	if status, _ := roundTrip(t, transport(t, &keys{now: "ours"}), r); status != 200 || len(got) != 0 {
		t.Errorf("%d %v", status, got)
	}
}

// TestTransport_TellsWhatIsTaken: the source learns what the upstream takes.
func TestTransport_TellsWhatIsTaken(t *testing.T) {
	up := newGuarded(t, "new")
	k := &keys{now: "old", next: []string{"new"}}
	tr := transport(t, k)
	for range 3 {
		roundTrip(t, tr, get401(up, "x"))
	}
	if k.accepted != 3 {
		t.Errorf("%d accepted", k.accepted)
	}
	up = newGuarded(t, "never")
	k = &keys{now: "old", next: []string{"new"}}
	roundTrip(t, transport(t, k), get401(up, "x"))
	if k.accepted != 0 {
		t.Errorf("%d accepted", k.accepted)
	}
}

// locked is a body like that of an HTTP/1 server: closing it waits for a read.
type locked struct {
	mu sync.Mutex
	io.Reader
	reads  chan struct{}
	closed atomic.Int32
}

func (b *locked) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads <- struct{}{}
	return b.Reader.Read(p)
}

func (b *locked) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed.Add(1)
	return nil
}

// early answers while it reads the body, and has closed that by then, as Go's
// HTTP/2 transport does.
type early struct {
	status int
	reads  chan struct{}
}

func (e early) RoundTrip(r *http.Request) (*http.Response, error) {
	go func() { _, _ = io.Copy(io.Discard, r.Body) }()
	<-e.reads
	_ = r.Body.Close()
	return &http.Response{StatusCode: e.status, Header: http.Header{}, Body: http.NoBody}, nil
}

// TestTransport_DoesNotWaitForTheClient: an early answer is passed on while the
// client has not sent all, whatever its status.
func TestTransport_DoesNotWaitForTheClient(t *testing.T) {
	for _, status := range []int{200, 401, 404} {
		for range 20 {
			in, out := io.Pipe()
			b := &locked{Reader: in, reads: make(chan struct{}, 9)}
			tr := transport(t, &keys{now: "old", renew: ErrKept})
			tr.Base = early{status, b.reads}
			r, _ := http.NewRequest("POST", "http://127.0.0.1/", nil)
			r.Body, r.ContentLength = b, -1
			done := make(chan struct{})
			go func() {
				defer close(done)
				if res, err := tr.RoundTrip(r); err != nil || res.StatusCode != status {
					t.Error(res, err)
				}
			}()
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Fatalf("%d: it waits for the client", status)
			}
			_ = out.Close()
			within(t, "the body is closed", func() bool { return b.closed.Load() == 1 })
		}
	}
}

// TestTransport_OwnRefusals: what refuses a fresh credential too gives its 401 to
// the client, and costs the token endpoint one question in a while; other
// requests, and it when it accepts again, are as before.
func TestTransport_OwnRefusals(t *testing.T) {
	var allow atomic.Bool
	var want atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/bad") && !allow.Load() || r.Header.Get("Authorization") < fmt.Sprintf("key-%02d", want.Load()) {
			w.WriteHeader(401)
		}
	}))
	defer srv.Close()
	k := &keys{now: "key-00"}
	for n := 1; n < 90; n++ {
		k.next = append(k.next, fmt.Sprintf("key-%02d", n))
	}
	tr := transport(t, k)
	call := func(path string) int {
		r, _ := http.NewRequest("GET", srv.URL+path, nil)
		status, _ := roundTrip(t, tr, r)
		return status
	}
	for range 100 {
		if status := call("/bad"); status != 401 {
			t.Fatal(status)
		}
		if status := call("/good"); status != 200 {
			t.Fatal(status)
		}
	}
	if k.renewed > 2 {
		t.Errorf("renewed %d times", k.renewed)
	}
	for n := range 5 { // revoked, for all
		want.Store(int32(10 * n))
		k.mu.Lock()
		k.now = fmt.Sprintf("key-%02d", 10*n-5)
		k.next = []string{fmt.Sprintf("key-%02d", 10*n)}
		k.mu.Unlock()
		if status := call("/good"); n > 0 && status != 200 {
			t.Errorf("%d: %d", n, status)
		}
	}
	k.mu.Lock()
	k.stale, k.now, k.next = true, "key-50", []string{"key-51", "key-52"}
	k.mu.Unlock()
	before := k.renewed
	for range 2 { // what may be as old as the refused one says nothing
		call("/bad/2")
	}
	if k.renewed != before+2 || tr.own.n.Load() != 1 {
		t.Errorf("renewed %d times, %d remembered", k.renewed-before, tr.own.n.Load())
	}
	allow.Store(true)
	if status := call("/bad"); status != 200 || tr.own.n.Load() != 0 {
		t.Errorf("%d, %d remembered", status, tr.own.n.Load())
	}
	var o ownRefusals
	for n := range 3 * maxOwn {
		r, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1/%d", n), nil)
		o.add(r, time.Now())
		if !o.has(r, time.Now()) || o.has(r, time.Now().Add(ownFor)) || len(o.at) > maxOwn {
			t.Fatalf("%d: %d remembered", n, len(o.at))
		}
	}
}
