package caddymodule

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
	"github.com/caddy-auth/caddy-auth/internal/problem"
)

func init() { caddy.RegisterModule(OutboundTransport{}) }

// OutboundTransport is the transport http that also puts a credential of the
// gateway's own on every request, health checks included, and takes the
// caller's off. When the upstream refuses it with 401, it is renewed and the
// request sent once more.
type OutboundTransport struct {
	// Everything that the transport http has.
	*reverseproxy.HTTPTransport

	// Which credential: the name of an outbound of the auth app.
	Outbound string `json:"outbound,omitempty"`
	// How many bytes of a request's body are kept to send it again. Longer ones
	// pass, but a 401 for them is the client's. Default: 65536; negative: none.
	ReplayBody int64 `json:"replay_body,omitempty"`

	app       *App
	log       *zap.Logger
	decisions *decisionLog
	problems  *problem.Writer
	sends     *outbound.Transport
	checks    *checkMemory
	keys      map[string]bool // folded names of the app's key headers
	plainHTTP *atomic.Bool    // told that the credential crosses a network in clear
}

// CaddyModule returns the Caddy module information.
func (OutboundTransport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.transport.auth_outbound", New: func() caddy.Module {
		return &OutboundTransport{HTTPTransport: new(reverseproxy.HTTPTransport)}
	}}
}

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport auth_outbound <name> {
//		replay_body <size>|off
//		<options of the transport http>
//	}
func (t *OutboundTransport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the transport's name
	if !d.NextArg() {
		return d.Err("want the name of an outbound of the global auth block")
	}
	t.Outbound = d.Val()
	d.Delete()
	if d.NextArg() {
		return d.ArgErr()
	}
	for seen := false; d.NextBlock(0); {
		if d.Nesting() != 1 || d.Val() != "replay_body" { // it is read by whose it is
			d.RemainingArgs()
			continue
		}
		var size string
		if seen || !d.Args(&size) || d.NextArg() {
			return d.Err("replay_body: want one size, such as 64KiB, or off")
		}
		seen = true
		switch n, err := humanize.ParseBytes(size); {
		case size == "off":
			t.ReplayBody = -1
		case err != nil || n == 0 || n > maxReplayBody:
			return d.Errf("replay_body %s: want a size up to %s, or off", size, humanize.IBytes(maxReplayBody))
		default:
			t.ReplayBody = int64(n)
		}
		d.DeleteN(2)
	}
	d.Reset()
	return t.HTTPTransport.UnmarshalCaddyfile(d)
}

// maxReplayBody is how much of every request's body may be kept.
const maxReplayBody = 64 << 20

// Provision finds the credential.
func (t *OutboundTransport) Provision(ctx caddy.Context) error {
	if t.HTTPTransport == nil {
		t.HTTPTransport = new(reverseproxy.HTTPTransport)
	}
	if t.ReplayBody > maxReplayBody {
		return fmt.Errorf("replay_body: want at most %d", int64(maxReplayBody))
	}
	var err error
	if t.Outbound, err = expandText(t.Outbound); err != nil {
		return fmt.Errorf("transport auth_outbound: %w", err)
	}
	app, err := ctx.AppIfConfigured("auth")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return fmt.Errorf("transport auth_outbound %s: there is no global auth block with an outbound %s%s", t.Outbound, t.Outbound, lineOf("auth_outbound", t.Outbound))
	}
	if err != nil {
		return err
	}
	t.app, t.log = app.(*App), ctx.Logger()
	var source outbound.Source = userTokens{t.app}
	if named, ok := t.app.outbound.sources[t.Outbound]; ok {
		source = named
	} else if t.Outbound == outboundUser {
		if err := t.provisionUser(); err != nil {
			return err
		}
	} else {
		return fmt.Errorf("transport auth_outbound: %w%s", unknownName("outbound", t.Outbound, slices.Sorted(maps.Keys(t.app.outbound.sources))), lineOf("auth_outbound", t.Outbound))
	}
	t.decisions, t.plainHTTP = newDecisionLog(t.app.log), new(atomic.Bool)
	if t.problems, err = problem.NewWriter("", t.app.ProblemTypes, nil); err != nil {
		return err
	}
	t.keys = map[string]bool{}
	for _, name := range t.app.KeyHeaders {
		t.keys[string(auth.AppendFolded(nil, name))] = true
	}
	t.checks = newCheckMemory(t.HTTPTransport)
	t.sends = &outbound.Transport{Base: t.checks, Source: source, MaxReplay: t.ReplayBody, Caller: t.callerHeaders, Failed: t.failed}
	return t.HTTPTransport.Provision(ctx)
}

// RoundTrip implements http.RoundTripper.
func (t *OutboundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.SetScheme(r)
	t.warnPlainHTTP(r)
	if t.Outbound == outboundUser && isHealthCheck(r) { // it asks in nobody's name
		return t.checks.RoundTrip(r)
	}
	return t.sends.RoundTrip(r)
}

// callerHeaders are the headers that credentials come in on the request's site,
// folded.
func (t *OutboundTransport) callerHeaders(r *http.Request) map[string]bool {
	c := callerOf(r)
	if c == nil {
		return t.keys
	}
	names := c.handler.sources.Aliases()
	if c.later == nil {
		return names
	}
	names = maps.Clone(names)
	for _, h := range *c.later {
		maps.Copy(names, h.sources.Aliases())
	}
	return names
}

// failed is the answer where there is no credential of ours. It is no error of
// the upstream, which it would otherwise count as. A health check gets what the
// upstream said last: nothing new is known of it.
func (t *OutboundTransport) failed(r *http.Request, f *grant.Failure) *http.Response {
	if isHealthCheck(r) {
		if res := t.checks.last(r); res != nil {
			return res
		}
	}
	refusal := &auth.Refusal{
		Code: auth.CodeUpstreamUnavailable, RetryAfter: f.RetryAfter,
		Detail: "Your credential is good, but the gateway can't get its own for the service behind it now. Try again later.",
	}
	own, page := t.userFailed(r, f)
	switch {
	case own != nil:
		refusal = own
	case f.Cause != grant.CauseUnavailable:
		refusal.Code = auth.CodeUpstreamRefused
		refusal.Detail = "Your credential is good, but the gateway does not get its own for the service behind it. Tell who runs this gateway."
	}
	if c := callerOf(r); c == nil || !c.verified {
		refusal.Detail = strings.Replace(refusal.Detail, "Your credential is good, but the", "The", 1)
	}
	instance := newInstance()
	t.decisions.write("no upstream credential", string(refusal.Code), "", zap.String("code", string(refusal.Code)), zap.Int("status", problem.Status(refusal.Code)),
		zap.String("instance", instance), zap.String("outbound", t.Outbound), zap.NamedError("cause", f))
	w := &answer{header: http.Header{}}
	_ = t.problems.Write(w, r, refusal, instance) // into memory
	if page != nil {
		w.header.Del("Content-Length")
		pageHeaders(w.header)
		w.body.Reset()
		_, _ = w.Write(page(instance))
	}
	return response(r, w.status, w.header, w.body.Bytes())
}

// answer is a response in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// warnPlainHTTP says once that our credential crosses a network in clear.
func (t *OutboundTransport) warnPlainHTTP(r *http.Request) {
	if r.URL.Scheme != "http" || t.plainHTTP.Load() || fetch.Loopback(r.URL.Hostname()) {
		return
	}
	if to, ok := reverseproxy.GetDialInfo(r.Context()); ok && strings.HasPrefix(to.Network, "unix") || t.plainHTTP.Swap(true) {
		return
	}
	t.log.Warn("the credential for an upstream crosses the network in clear: anyone on the way can read it; use https:// for the upstream",
		zap.String("outbound", t.Outbound), zap.String("upstream", r.URL.Host))
}

var (
	_ caddy.Provisioner                                = (*OutboundTransport)(nil)
	_ caddy.CleanerUpper                               = (*OutboundTransport)(nil)
	_ http.RoundTripper                                = (*OutboundTransport)(nil)
	_ caddyfile.Unmarshaler                            = (*OutboundTransport)(nil)
	_ reverseproxy.TLSTransport                        = (*OutboundTransport)(nil)
	_ reverseproxy.H2CTransport                        = (*OutboundTransport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*OutboundTransport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*OutboundTransport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*OutboundTransport)(nil)
)
