package caddymodule

import (
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// addressJudge says which address networks of keys are judged on: the
// client's as Caddy determined it, or the peer's where Caddy's way of
// determining it believes what a client wrote.
type addressJudge struct{ peerOnly bool }

// newAddressJudge looks at a server's trusted_proxies. Without strict, Caddy
// takes the left-most address of a list header, which a client can choose.
func newAddressJudge(srv *caddyhttp.Server, log *zap.Logger) addressJudge {
	if srv == nil || srv.TrustedProxiesStrict > 0 || !listHeader(srv.ClientIPHeaders) {
		return addressJudge{}
	}
	if trusting(srv) {
		log.Warn("trusted_proxies without trusted_proxies_strict: clients can choose the address that Caddy takes for theirs, so networks of keys are judged on the peer's address, and nobody's failed sign-ins are counted; " +
			"add to the global options: servers { trusted_proxies_strict }")
	}
	return addressJudge{peerOnly: true}
}

func listHeader(headers []string) bool {
	if len(headers) == 0 {
		return true // X-Forwarded-For
	}
	for _, h := range headers {
		if strings.EqualFold(h, "X-Forwarded-For") || strings.EqualFold(h, "Forwarded") {
			return true
		}
	}
	return false
}

// trusting reports whether the server trusts any proxy. Caddy keeps the
// loaded module in an unexported field; it is only compared with nil here.
func trusting(srv *caddyhttp.Server) bool {
	if srv.TrustedProxiesUnix || len(srv.TrustedProxiesRaw) > 0 {
		return true
	}
	f := reflect.ValueOf(srv).Elem().FieldByName("trustedProxies")
	return f.IsValid() && f.Kind() == reflect.Interface && !f.IsNil()
}

// of returns the address an identity's networks are judged on; the zero
// address if there are none, or if it is not known.
func (j addressJudge) of(r *http.Request, id *auth.Identity) netip.Addr {
	if id.Networks == "" {
		return netip.Addr{}
	}
	if j.peerOnly {
		return parseAddr(r.RemoteAddr)
	}
	return parseAddr(clientIP(r))
}

// ofSender is the address that what a client gets wrong is counted under; the zero
// address if it can't be believed. Behind a proxy whose word on it is no good the
// peer is the proxy, and one client's failures would be everybody's.
func (j addressJudge) ofSender(r *http.Request) netip.Addr {
	if j.peerOnly {
		if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
			return netip.Addr{}
		}
	}
	return j.any(r)
}

// clientIP is the client's address as Caddy determined it, for logs.
func clientIP(r *http.Request) string {
	if ip, ok := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string); ok && ip != "" {
		return ip
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func parseAddr(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr()
	}
	a, _ := netip.ParseAddr(s) // zero if it is none, as for a unix socket
	return a
}
