package redact

import (
	"bytes"
	"maps"
)

// maskedNames is immutable.
type maskedNames struct {
	plain   map[string]bool // names as they are often written that are no credentials
	headers map[string]bool // normalized names of headers that carry credentials
	params  []string        // parameter names beyond the built-in ones
	scanner *Scanner
	whole   map[string]bool // normalized names that are credentials, of headers and of parameters
}

// Headers whose values are credentials, normalized. Names that end in one of
// the refused parameter names are masked too.
var maskedHeaders = []string{
	"authorization", "proxyauthorization", "cookie", "setcookie",
	"apitoken", "xapitoken", "authkey", "xauthkey", "sessiontoken", "xsessiontoken", "xjwt", "token", "xtoken", "secret", "xsecret",
	"password", "xpassword", "dpop", "xcsrftoken", "xgitlabtoken", "privatetoken", "xvaulttoken", "xauthassertion", "securitytoken", "xamzsecuritytoken",
}

// plainNames are names that nearly every request or log entry has. They only
// save time: looked at closely they come out as no credentials.
var plainNames = []string{
	"Accept", "Accept-Encoding", "Accept-Language", "Alt-Svc", "Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Date", "Etag",
	"Host", "Last-Modified", "Origin", "Referer", "Server", "User-Agent", "Vary", "Via", "Location",
	"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Request-Id", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Www-Authenticate",
	"X-Auth-Subject", "X-Auth-Method", "X-Auth-Credential-Id", "X-Auth-Scopes", "X-Auth-Environment", "X-Auth-Issuer", "X-Auth-Client-Id",
	"remote_ip", "remote_port", "client_ip", "proto", "method", "host", "uri", "headers", "tls", "resumed", "version", "cipher_suite", "server_name", "ech",
	"request", "upstream", "duration", "status", "size", "bytes_read", "user_id", "resp_headers", "error", "err_id", "err_trace", "msg",
}

// setPlain leaves out of the plain names what was made a credential.
func (n *maskedNames) setPlain() {
	n.whole = maps.Clone(n.headers)
	maps.Copy(n.whole, n.scanner.refused)
	maps.Copy(n.whole, n.scanner.whole)
	n.plain = nil
	plain := make(map[string]bool, len(plainNames))
	for _, name := range plainNames {
		if !n.name(name) {
			plain[name] = true
		}
	}
	n.plain = plain
}

func (n *maskedNames) name(name string) bool {
	if n.plain[name] {
		return false
	}
	var buf [64]byte
	b := normalize(buf[:0], []byte(name))
	if len(b) == 0 {
		return false
	}
	if n.headers[string(b)] {
		return true
	}
	if cut, ok := bytes.CutPrefix(b, []byte("http")); ok && n.headers[string(cut)] {
		return true
	}
	if !n.scanner.last[b[len(b)-1]] {
		return false
	}
	for _, end := range builtinNames {
		if bytes.HasSuffix(b, []byte(end)) {
			return true
		}
	}
	return n.scanner.refused[string(b)]
}

// simple looks at a name of nothing but letters, digits, - and _, quickly: who
// writes a text chooses how many names are in it.
func (n *maskedNames) simple(name string) (refused, simple bool) {
	const longest = 48
	if len(name) > longest {
		return false, false
	}
	var buf [longest]byte
	b := buf[:0]
	for i := range len(name) {
		switch c := name[i]; {
		case isAlnum(c):
			b = append(b, lower(c))
		case c != '-' && c != '_':
			return false, false
		}
	}
	if len(b) < shortestName {
		return false, true
	}
	if n.whole[string(b)] {
		return true, true
	}
	if cut, ok := bytes.CutPrefix(b, []byte("http")); ok && n.headers[string(cut)] {
		return true, true
	}
	if endings[b[len(b)-1]] {
		for _, end := range builtinNames {
			if bytes.HasSuffix(b, []byte(end)) {
				return true, true
			}
		}
	}
	return false, true
}

// endings are the bytes that built-in names end with.
var endings = func() (t [256]bool) {
	for _, name := range builtinNames {
		t[name[len(name)-1]] = true
	}
	return t
}()
