package caddymodule

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// Question is a request whose answer is to be explained.
type Question struct {
	Method string // default GET
	URL    string
	Header http.Header
	// Key is an API key's id: the request is judged as if it came with it.
	Key string
	// From is the client's address. Default: 127.0.0.1.
	From string
}

// Explanation is what a gateway with a configuration answers, and why.
type Explanation struct {
	Status  int         `json:"status"`
	Code    string      `json:"code,omitempty"` // of a refusal
	Detail  string      `json:"detail,omitempty"`
	Reaches string      `json:"reaches,omitempty"` // the handler that a request gets to which passes
	Decided *explained  `json:"decided,omitempty"` // the check that decided; nil: no auth handler had a say
	Steps   []explained `json:"steps"`
	Notes   []string    `json:"notes,omitempty"` // what was not as it is in a gateway
}

// explainMu is held while an explanation is made: configurations that are
// loaded meanwhile are for it.
var explainMu sync.Mutex

// reachedHeader names the handler that a request got to.
const reachedHeader = "X-Caddy-Auth-Reached"

// Explain judges a request as a gateway with a configuration would: its routes,
// matchers and auth handlers run, what comes behind them doesn't. The store is
// read and not written; issuers are asked for their keys, or about a token, as
// a gateway would. config is what adapter makes JSON of, "" if it is JSON, and
// name what lines of it are told by.
func Explain(ctx context.Context, config []byte, name, adapter string, q Question) (*Explanation, error) {
	explainMu.Lock()
	defer explainMu.Unlock()
	e := new(explanation)
	explaining.Store(e)
	defer explaining.Store(nil)
	if adapter != "" {
		a := caddyconfig.GetAdapter(adapter)
		if a == nil {
			return nil, usagef("unknown adapter %q", adapter)
		}
		var err error
		if config, _, err = a.Adapt(config, map[string]any{"filename": name}); err != nil {
			return nil, fmt.Errorf("adapting %s: %w", name, err)
		}
	}
	return e.explain(ctx, config, q)
}

func (e *explanation) explain(ctx context.Context, config []byte, q Question) (*Explanation, error) {
	r, err := q.request(ctx)
	if err != nil {
		return nil, err
	}
	loads := wouldLoad(config)
	config, notes, err := withoutEffects(config, false)
	if err != nil {
		return nil, err
	}
	if loads != nil {
		notes = append(notes, "as it is, a gateway does not load this configuration: "+loads.Error())
	}
	var c caddy.Config
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	provisioned, err := caddy.ProvisionContext(&c)
	if err != nil {
		return nil, err
	}
	app, err := provisioned.App("auth")
	if err != nil {
		return nil, err
	}
	a := app.(*App)
	defer func() { _ = a.Cleanup() }() // it only gives back what it held
	done, err := a.observe(ctx, e, &q)
	if err != nil {
		return nil, err
	}
	defer done()
	httpApp, err := provisioned.App("http")
	if err != nil {
		return nil, err
	}
	srv, err := serverFor(httpApp.(*caddyhttp.App), r.URL)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	if err := serveOnce(srv, w, r); err != nil {
		return nil, err
	}
	return e.result(w, notes), nil
}

// wouldLoad says why a gateway would not load a configuration with its logs. Apps
// other than ours and the sites are left out: some write when they are set up.
func wouldLoad(config []byte) error {
	config, _, err := withoutEffects(config, true)
	if err != nil {
		return err
	}
	var c caddy.Config
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	silence(c.Logging)
	return caddy.Validate(&c)
}

// serveOnce lets a server answer a request. What ends a connection in a gateway
// must not end us.
func serveOnce(srv *caddyhttp.Server, w *httptest.ResponseRecorder, r *http.Request) (err error) {
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler:
			w.Header().Set(reachedHeader, "abort: the connection is closed without an answer")
		default:
			err = fmt.Errorf("a handler of the configuration failed: %v", p)
		}
	}()
	srv.ServeHTTP(w, r)
	return nil
}

func (q *Question) request(ctx context.Context) (*http.Request, error) {
	u, err := url.Parse(q.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("--url: want a whole URL such as https://api.example.com/v1/orders")
	}
	method := q.Method
	if method == "" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(ctx, method, q.URL, nil)
	if err != nil {
		return nil, usagef("--method or --url can't be sent")
	}
	r.RequestURI = targetOf(q.URL)
	r.Header = q.Header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
	from := q.From
	if from == "" {
		from = "127.0.0.1"
	}
	r.RemoteAddr = netJoin(from)
	if u.Scheme == "https" {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: u.Hostname(), Version: tls.VersionTLS13}
	}
	return r, nil
}

// result reads what was answered.
func (e *explanation) result(w *httptest.ResponseRecorder, notes []string) *Explanation {
	out := &Explanation{Code: string(e.code), Status: w.Code, Reaches: w.Header().Get(reachedHeader), Steps: e.steps, Notes: notes}
	var p struct{ Code, Detail string }
	if w.Header().Get("Content-Type") == "application/problem+json" && json.Unmarshal(w.Body.Bytes(), &p) == nil {
		out.Code, out.Detail = p.Code, p.Detail
	}
	for i := range slices.Backward(e.steps) {
		if e.steps[i].Result == checkSkipped {
			continue
		}
		if out.Decided == nil || e.steps[i].Result == checkRefused {
			out.Decided = &e.steps[i]
		}
		if e.steps[i].Result == checkRefused {
			break
		}
	}
	return out
}

// observe opens the store to look things up, and nothing else: nobody follows
// the journal, and nothing is written.
func (a *App) observe(ctx context.Context, e *explanation, q *Question) (done func(), err error) {
	db, err := store.Open(ctx, a.rt.backend, store.Existing)
	if err != nil {
		return nil, err
	}
	rt := a.rt
	rt.db.Store(db)
	rt.verifier = verifier.New(rt.memory, still{}, rt, nil, verifier.Hooks{})
	rt.openedOnce.Do(func() { close(rt.opened) })
	if err := rt.learnAll(ctx, db); err != nil && q.Key == "" {
		return nil, errors.Join(err, db.Close())
	}
	if q.Key != "" {
		k, err := db.KeyByID(ctx, q.Key)
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		e.assumed, e.fp = true, k.Fingerprint
	}
	if _, text, _ := strings.Cut(q.Header.Get("Authorization"), " "); jwt.Looks(text) {
		for _, set := range a.issuers.sets {
			set.Start()
		}
	}
	return func() { _ = db.Close() }, nil
}

// learnAll reads what keys and tokens are judged by.
func (rt *runtime) learnAll(ctx context.Context, db *store.DB) error {
	ring, _, err := ringOf(ctx, db, rt.masters, rt.backend)
	if err != nil {
		return err
	}
	m, err := db.Minter(ctx, ring)
	if err != nil {
		return err
	}
	imported, _, err := db.Imported(ctx)
	if err != nil {
		return err
	}
	if err := rt.readCutOffs(ctx, db); err != nil {
		return err
	}
	rt.verifier.SetImported(imported)
	rt.setMinter(m)
	return nil
}

// still is the fence of who looks once: what was read is the newest there is.
type still struct{}

func (still) Trusted(time.Time) bool { return true }

func (still) Fence(auth.Point, auth.Fingerprint, auth.Parents) feed.Fencing { return feed.Usable }

func (still) LookSoon(context.Context) error { return nil }

func (still) Point() (auth.Point, bool) { return auth.Point{}, true }
